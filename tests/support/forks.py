"""What a forked process does."""

from __future__ import annotations

import os
import pickle


def in_a_fork(work: object) -> object:
    """What `work()` gives, or raises, in a forked process."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writing, pickle.dumps(work()))  # type: ignore[operator]
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    return answer
