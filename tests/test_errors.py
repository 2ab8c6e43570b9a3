import ast
from pathlib import Path

from lightning_lance.errors import ConfigError, LightningLanceError, SourceError, StoreError


def test_one_base_for_all():
    for kind in (ConfigError, SourceError, StoreError):
        assert issubclass(kind, LightningLanceError)
    assert issubclass(ConfigError, ValueError)


def test_the_package_raises_its_own_errors_and_asserts_nothing():
    """But for what Python itself asks of `__getattr__` and of indexing."""
    raised, asserts = set(), []
    for file in (Path(__file__).parents[1] / "lightning_lance").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                raised.add(node.exc.func.id)
            asserts += [f"{file.name}:{node.lineno}"] if isinstance(node, ast.Assert) else []
    assert raised == {"ConfigError", "SourceError", "StoreError", "AttributeError", "IndexError", "explain"}
    assert asserts == []
