"""The systems that ../../check_laws.py checks, one file each, in the use that its documentation recommends.

Each has

- `NAME`, for the table, and `PACKAGE`, whose version is told,
- `WORKERS`, numbers of worker processes that are tried,
- `FORKS`, whether a process that has imported it may fork, and `WRAPS`, whether it is documented to repeat windows so
  that all ranks have equally many,
- `REMARKS`, what else to say of a law that it does not keep, or not by itself,
- `store(folder, count, per_file)`, which writes windows 0 to count - 1 in order, so many to a file if it has files,
- `open_run(folder, batch_size, *, workers, seed, rank, world_size, states)`, which gives `(length, epoch, save)`: `len`
  of the loader, or None if it has none; a function whose every call iterates over the rest of an epoch, as lists of the
  numbers of the windows in a batch; and a function that gives the state after the last batch. `states` has the states
  that all ranks of another run saved, or is None.

What a system does not claim to do raises `NotOfferedError`, with a reason in its own terms.
"""

import numpy as np

# Tokens of a window.
LENGTH = 17


class NotOfferedError(Exception):
    """The system does not claim to do what was asked of it."""


def numbered(first, last):
    """Make the windows first to last - 1, (last - first, LENGTH) int32: each is its number, again and again."""
    return np.repeat(np.arange(first, last, dtype=np.int32)[:, None], LENGTH, axis=1)


def numbers(windows):
    """Read the numbers of windows, (n, LENGTH), back.

    Raises:
        AssertionError: If a window is not one that was stored.
    """
    windows = np.asarray(windows)
    if windows.shape[1:] != (LENGTH,) or (windows != windows[:, :1]).any():
        raise AssertionError("A window was served that was never stored.")
    return windows[:, 0].tolist()
