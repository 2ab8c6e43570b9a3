"""A slice of a huge corpus, tokenized once into Lance, and random windows of it for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Not lazy: as a submodule it has the name of its function, and whichever is bound last stays.
from lightning_lance.prepare import prepare
from lightning_lance.store import TokenStore

if TYPE_CHECKING:
    from lightning_lance.datamodule import LanceDataModule
    from lightning_lance.loader import WindowLoader
    from lightning_lance.token_windows import TokenWindows

__all__ = ["LanceDataModule", "TokenStore", "TokenWindows", "WindowLoader", "prepare"]

_HOME = {"LanceDataModule": "datamodule", "TokenWindows": "token_windows", "WindowLoader": "loader"}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported when first asked for: a build needs neither torch nor Lightning, which take seconds to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
