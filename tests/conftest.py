"""What every test has: no deadline for examples, the examples to import, and stores of a few bytes."""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from lightning_lance import TokenStore
from lightning_lance.cli.main import main
from lightning_lance.format import durability
from lightning_lance.tokenization import ByteTokenizer
from tests.support import composed as composed
from tests.support import spared as spared
from tests.support.commands import Run
from tests.support.corpora import prepare
from tests.support.laws import FACTOR
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents

sys.path.insert(0, str(ROOT / "examples"))

# Until all tests are imported: none of that is garbage.
gc.disable()

# On a loaded machine any example may be slow.
settings.register_profile("project", deadline=None, max_examples=50 * FACTOR)
settings.load_profile("project")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import a part of the tests first, if all are to run: each worker rewrites another part, for all of them to find."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    for file in files[int(worker.removeprefix("gw")) :: count]:
        # Whatever is wrong with it is told when it is collected.
        with suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Set aside what was imported: in every fit, Lightning looks for garbage in all that is there."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_forcing() -> Iterator[None]:
    """Forces nothing onto the disk: thousands of small commits would wait for it, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durability, "_force", lambda path: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def installed_once() -> Iterator[None]:
    """Lists the entry points of all installed packages once; Lightning does so for every trainer."""
    with pytest.MonkeyPatch.context() as patch:
        if registry := sys.modules.get("lightning.fabric.utilities.registry"):
            patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Takes back how a command has set up the logging of this process: its streams end with the test."""
    loggers = [logging.getLogger(), logging.getLogger("lightning_lance")]
    before = [(each.level, each.propagate, [*each.handlers]) for each in loggers]
    yield
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate = propagate
        for handler in [*each.handlers]:
            # Those of pytest come and go with each phase of a test.
            if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
                each.removeHandler(handler)


@pytest.fixture
def byte_store(tmp_path: Path) -> Callable[..., TokenStore]:
    """Makes a store of texts in bytes, all of them for training unless told otherwise."""

    def make(*texts: str, **options: Any) -> TokenStore:
        source = options.pop("source", None) or ListSource(documents(*texts))
        options = {"data_dir": tmp_path / "data", "val_fraction": 0.0, **options}
        return prepare(source, ByteTokenizer(), **options)

    return make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lightning-lance", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        # Python itself prints a sentence that is given as an exit code.
        return (1, out, f"{err}{code}\n") if isinstance(code, str) else (code or 0, out, err)

    return command
