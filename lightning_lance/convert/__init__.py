"""From and to the token formats of other tools: nanoGPT, Megatron, Parquet, MosaicML Streaming (MDS), LitData."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.convert.exports import export_tokens
    from lightning_lance.convert.imports import import_tokens

__all__ = ["export_tokens", "import_tokens"]

_HOME = {
    "export_tokens": "convert.exports",
    "import_tokens": "convert.imports",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
