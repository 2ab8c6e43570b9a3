"""Names of a package that are imported when they are first asked for: Lance and pyarrow take long to import, torch longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package.

    Args:
        package: Its name.
        homes: Public name to the module that defines it, below `lightning_lance`.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"lightning_lance.{homes[name]}"), name)

    return get, lambda: sorted(homes)
