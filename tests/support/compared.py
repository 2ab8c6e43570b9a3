"""What the two engines do alike on bytes, found out once and in a fork: each process of a warm server would find out again."""

from __future__ import annotations

from lightning_lance.tokenization import engine_comparison
from lightning_lance.tokenization.tokenizer import byte_tokenizer
from tests.support.forks import in_a_fork

_compare = engine_comparison._of_pipeline


def _known() -> str:
    """Return what is compared of a tokenizer of bytes, if all that differs is known beforehand."""
    asked: list[str] = []
    engine_comparison._of_pipeline = lambda pipeline: asked.append(pipeline) or _compare(pipeline)  # type: ignore
    return asked[0] if byte_tokenizer()._differing is engine_comparison.KNOWN and asked else ""


_found = in_a_fork(_known)
engine_comparison._of_pipeline = lambda pipeline: (  # type: ignore
    engine_comparison.KNOWN if pipeline == _found else _compare(pipeline)
)
