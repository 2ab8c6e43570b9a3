"""Heavy libraries are imported in functions only, so that a command that does not need them is fast."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Seconds to import.
HEAVY = {"datasets", "transformers", "tokenizers", "gigatoken", "awkward", "huggingface_hub", "fsspec"}
PACKAGE = ROOT / "lightning_lance"


def imported_at_once(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_imports_a_heavy_library_at_once(file: Path):
    assert imported_at_once(file) & HEAVY == set()
