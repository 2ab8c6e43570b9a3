"""The Hydra configuration groups, importable as `lightning_lance.conf`."""
