"""Which other processes of this machine have files mapped into their memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")


def processes_that_map(folder: str) -> list[int]:
    """Return the ids of other processes that have mapped files in a folder, as far as this user may see; Linux only.

    A process that serves windows of a local store maps its files, from when it opens it to when it ends.
    """
    wanted = os.fsencode(os.path.realpath(folder)) + b"/"
    found = []
    with suppress(OSError):
        for process in _PROCESSES.iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            # It may have ended, or be another user's.
            with suppress(OSError):
                if wanted in (process / "maps").read_bytes():
                    found.append(int(process.name))
    return sorted(found)
