"""A small standard library, for what reads that of Python and is not about its size."""

import shutil
import sysconfig
from pathlib import Path

# In a process of its own: `python_stdlib` reads this folder.
READ_LIBRARY = """
import types
from lightning_lance.sources import files
files.sysconfig = types.SimpleNamespace(get_paths=lambda: {{"stdlib": {library!r}}})
"""


def copy_library(folder: Path) -> str:
    """Copy a few small files of the standard library, and return the folder."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]:
        if file.stat().st_size < 16_000:
            shutil.copy(file, folder)
    return str(folder)
