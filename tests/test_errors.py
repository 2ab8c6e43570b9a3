import ast

from lightning_lance.errors import (
    BuildInterrupted,
    CommitConflict,
    ConfigError,
    FormatError,
    LightningLanceError,
    NotForcedError,
    SourceError,
    StoreError,
)
from tests.support.paths import ROOT

OWN = (ConfigError, SourceError, StoreError, FormatError, CommitConflict, NotForcedError, BuildInterrupted)
# Functions that make one of these.
MAKERS = {
    "_not_opened",
    "continues_other_data",
    "no_store_at",
    "silence_error",
    "explain",
    "conflict",
    "not_written",
    "failure_of",
    "gone",
    "no_language",
    "not_kept",
    "replaced",
    "undecodable",
    "_contradicts",
    "_impossible",
    "_no_match",
    "_damaged",
    "_explained",
    "_no_cluster",
    "_nothing_committed",
    "_other_store",
    "_found_twice",
    "_of_wrong_kind",
    "_unwritable",
    "not_a_corpus",
    "not_a_place",
    "not_a_store",
    "not_opened",
    "folder_of_stores",
    "nothing_at",
    "denied",
}
# Asked for by Python itself (`__getattr__`, `import`, indexing); caught again in their own module or by `RetryPolicy`.
WITHIN = {
    "_Wrong",
    "_NotRead",
    "OSError",
    "PermissionError",
    "UnfitShard",
    "FileExistsError",
    "AttributeError",
    "ImportError",
    "IndexError",
    "ValueError",
    "ConnectionError",
    "EOFError",
}


def test_one_base_for_all():
    for kind in OWN:
        # An interruption is no error: it must pass all who catch errors.
        assert issubclass(kind, KeyboardInterrupt if kind is BuildInterrupted else LightningLanceError)
    assert issubclass(ConfigError, ValueError)


def test_the_package_raises_its_own_errors_and_asserts_nothing():
    raised, asserts = set(), []
    for file in (ROOT / "lightning_lance").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                raised.add(node.exc.func.id)
            asserts += [f"{file.name}:{node.lineno}"] if isinstance(node, ast.Assert) else []
    assert raised - MAKERS - WITHIN == {kind.__name__ for kind in OWN}
    assert asserts == []
