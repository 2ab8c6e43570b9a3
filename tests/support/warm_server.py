"""A process that has imported what is slow to import, and forks for each script that it is told to run.

Each line from a client is a request of `tests.support.warm`. The fork that runs the script returns to the end of
this module, so that it ends as any interpreter does: with its traceback, its threads awaited and its `atexit`. It only leaves
out to take apart the modules that it was forked with, which would copy all their memory and take a second.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

# Number of the filters of warnings that Python has by itself.
OWN_FILTERS = len(warnings.filters)
# Time without a client after which the server ends.
_IDLE_SECONDS = 10.0
# The exit status of the script; None before its end, and where a signal has ended it.
_status: int | None = None


def requested(place: str) -> dict[str, Any]:
    """Return, in a fork, what it shall run. The server itself ends some time after its last client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    # Whoever started it waits for no more than this.
    if os.fork():
        os._exit(0)
    # The end of a fork wakes it by a byte.
    woken, waking = socket.socketpair()
    for end in (woken, waking):
        end.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    ready.register(woken, selectors.EVENT_READ)
    results: dict[int, Path] = {}
    clients = 0
    while events := ready.select(None if clients else _IDLE_SECONDS):
        for key, _ in events:
            if key.fileobj is listener:
                client, _ = listener.accept()
                ready.register(client, selectors.EVENT_READ, client.makefile("rw"))
                clients += 1
                continue
            if key.fileobj is woken:
                woken.recv(1 << 12)
                write_results(results)
                continue
            line = key.data.readline()
            if not line:
                ready.unregister(key.fileobj)
                clients -= 1
                continue
            request = json.loads(line)
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                close(ready)
                waking.close()
                return request  # type: ignore[no-any-return]
            results[child] = Path(request["result"])
            # It may have gone away meanwhile.
            with contextlib.suppress(OSError):
                print(child, file=key.data, flush=True)
    Path(place).unlink()
    Path(f"{place}.lock").unlink(missing_ok=True)
    sys.exit()


def close(ready: selectors.BaseSelector) -> None:
    """Close what only the server itself needs."""
    for key in [*ready.get_map().values()]:
        if key.data is not None:
            key.data.close()
        key.fileobj.close()  # type: ignore[union-attr]
    ready.close()


def write_results(results: dict[int, Path]) -> None:
    """Write down how forks have ended."""
    for child in [*results]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            continue
        result = results.pop(child)
        # Its client may be gone, and the folder with it.
        with contextlib.suppress(OSError):
            result.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
            result.with_suffix(".new").replace(result)


def become(request: dict[str, Any]) -> Any:
    """Return the script, and take on its folder, its environment, its arguments and its output."""
    for number, file in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(file, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    # A process that takes too long is aborted, and tells on standard error where its threads are.
    faulthandler.enable(2)
    # What the server has opened is not closed by its forks.
    for finalizer in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        finalizer.atexit = False
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv[:] = request["arguments"]
    # As `python -c` and as `python FILE` have it.
    script = Path(sys.argv[0])
    sys.path[0] = "" if sys.argv[0] == "-c" else str(script.parent)
    sys.path[1:1] = [path for path in request["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.warnoptions[:] = request["warnings"]
    for action in request["warnings"]:
        # Behind the filters of what was imported, as `-W` has it, and before Python's own.
        warnings.filters.insert(len(warnings.filters) - OWN_FILTERS, (action, None, Warning, None, 0))
    # No result of the filters before is kept.
    warnings.simplefilter("default", append=True)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if sys.argv[0] != "-c":
        main.__file__ = str(script)
    return compile(request["code"], "<string>" if sys.argv[0] == "-c" else str(script), "exec"), main.__dict__


def status_of(code: object) -> int:
    """Return the exit status that `sys.exit(code)` stands for."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def leave() -> None:
    """End the process behind the last of its `atexit`, with the status that the script has ended with."""
    if _status is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(_status)


if __name__ == "__main__":
    # The first to register is the last to run.
    atexit.register(leave)
    gc.disable()
    for name in sys.argv[2:]:
        importlib.import_module(name)
    # No fork looks for garbage in what was imported, which would copy most of its memory.
    gc.collect()
    gc.freeze()
    gc.enable()
    code, names = become(requested(sys.argv[1]))
    try:
        exec(code, names)
        _status = 0
    except SystemExit as ended:
        _status = status_of(ended.code)
        raise
    except Exception:
        _status = 1
        raise
