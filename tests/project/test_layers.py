"""The rules of the house: the order of the modules, and who may know which library."""

import ast

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "lightning_lance"

# The way of the data. A module imports only from those before it.
ORDER = [
    "escaping", "redaction", "errors", "places", "arguments", "checked",
    "figures", "memory", "languages", "columns", "row_filter", "documents", "dedup", "request_logs", "patience",
    "local_paths", "local_files", "parquet", "json_rows", "json_lines",
    "sources",
    "own_split", "local_shards", "access", "shards", "streaming",
    "unfinished", "locking", "newer", "fast_engine", "tokenizer_json", "compare_engines", "special_tokens", "losses",
    "tokenizer_checks", "tokenization", "pretrained", "tokenizer_choice", "long_texts",
    "inspection", "splits", "packing", "segments", "schema", "layout", "own_files", "fragments", "others", "sums", "commit",
    "row_writer", "refs", "versions", "tags", "repacking", "merging",
    "integrity",
    "provenance", "forgetting", "forked", "mapping", "store",
    "progress", "read_ahead", "encoding", "status", "cleaning", "plan", "preflight", "turns", "build", "prepare",
    "windows", "mixture", "serving", "states", "fim", "options", "batches", "token_windows",
    "agreement", "continuing", "cursor", "loader", "datamodule", "termination", "verify",
    "signals", "composed", "command", "cli", "__init__",
]  # fmt: skip

ONLY = {
    "lightning": {"datamodule", "termination"},
    "lance": {
        "own_files",
        "fragments",
        "sums",
        "commit",
        "versions",
        "tags",
        "repacking",
        "merging",
        "integrity",
        "provenance",
        "mapping",
    },
    "hydra": {"command", "composed"},
    "omegaconf": {"command", "composed", "cli"},
    "torch": {"batches", "token_windows", "agreement", "loader", "verify"},
}
# Seconds to import: inside functions only, so that a command that does not need them is fast.
HEAVY = {"datasets", "transformers", "tokenizers", "gigatoken", "awkward", "huggingface_hub", "fsspec"}


def imports(tree: ast.AST, top_level: bool) -> set[str]:
    nodes = ast.walk(tree) if not top_level else iter(tree.body)  # type: ignore[attr-defined]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", [name for name in ORDER if name != "__init__"])
def test_a_module_imports_only_what_is_before_it(module: str):
    before = {f"lightning_lance.{name}" for name in ORDER[: ORDER.index(module)]}
    own = {name for name in imports(tree_of(module), top_level=False) if name.startswith("lightning_lance")}
    # For type checkers only: a description and those who work on it name each other.
    assert (
        own
        - before
        - ({"lightning_lance.sources.datasets"} if module in ("local_shards", "access", "shards") else set())
        == set()
    )


@pytest.mark.parametrize("module", ORDER)
def test_libraries_are_known_where_they_belong(module: str):
    tree = tree_of(module)
    roots = {name.split(".")[0] for name in imports(tree, top_level=False)}
    assert {library for library, places in ONLY.items() if library in roots and module not in places} == set()
    assert HEAVY & {name.split(".")[0] for name in imports(tree, top_level=True)} == set()
