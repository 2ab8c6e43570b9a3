"""The command, as a user runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.warm import BUILDING, TRAINING, server

#: Runs a command in this process: exit code, standard output, standard error.
Run = Callable[..., tuple[int, str, str]]

COMMAND = [str(Path(sys.executable).with_name("lightning-lance"))]


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Return the exit status of the installed script, in a process that need not import first, and what it writes."""
    imports = TRAINING if {"train", "doctor"} & {*arguments[:1]} else BUILDING
    done = server(imports).run(
        Path(COMMAND[0]), *arguments, folder=folder, environment={**os.environ, **environment}, timeout=100
    )
    return done.returncode, done.stdout, done.stderr
