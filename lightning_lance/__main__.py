"""The command `lightning-lance` as `python -m lightning_lance`, where its script is not on the path."""

from lightning_lance.cli.main import main

main()
