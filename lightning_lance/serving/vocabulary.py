"""Whether a model has a row for every token: found out by the sizes of its embeddings, whatever holds their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

# Names of embeddings that take no tokens: positions, segments, distances, times.
_OF_OTHERS = re.compile(r"pos|wpe|segment|type|relative|distance|time|bias|^layer|expert|class|lang|speaker")
# Names of embeddings that do.
_OF_TOKENS = re.compile(r"^(wte|tok|vocab|word|emb|input|text|char|byte)")


def vocabulary_of(model: torch.nn.Module, context_length: int) -> tuple[str, int] | None:
    """Return the name and the rows of the embedding that takes the tokens.

    Only sizes and names are looked at, so that a model may be sharded or without memory yet.

    Args:
        model: The model.
        context_length: Tokens that it sees; an embedding of as many rows is one of positions, if there are others.

    Returns:
        None where no embedding is known to take tokens: models that do without, or that make their own kind.
    """
    declared = [*_declared(model)]
    if declared:
        return max(declared, key=lambda found: found[1])
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and not _OF_OTHERS.search(_own_name(name)):
            found[name] = _rows(module)
    if len(found) > 1:
        of_positions = (context_length, context_length + 1)
        others: dict[str, int] = {}
        for name, rows in found.items():
            if rows not in of_positions:
                others[name] = rows
        found = others or found
    if not found:
        return None
    name, rows = max(found.items(), key=lambda item: item[1])
    if _OF_TOKENS.search(_own_name(name)) or _predicts(model, rows):
        return name, rows
    return None


def _declared(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the input embeddings that models of transformers name themselves."""
    for name, module in model.named_modules():
        getter = getattr(module, "get_input_embeddings", None)
        if not callable(getter):
            continue
        try:
            embedding = getter()
        # Some models have several inputs, or none of tokens.
        except (AttributeError, NotImplementedError, TypeError):
            continue
        if isinstance(embedding, torch.nn.Embedding):
            yield f"{name}.get_input_embeddings()".lstrip("."), _rows(embedding)


def _rows(embedding: torch.nn.Embedding) -> int:
    """Return the rows of an embedding. Its weight may be a shard, or have been replaced by a larger one."""
    weight = getattr(embedding, "weight", None)
    rows = weight.shape[0] if isinstance(weight, torch.Tensor) and weight.ndim == 2 else 0
    return max(int(embedding.num_embeddings), int(rows))


def _own_name(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _predicts(model: torch.nn.Module, rows: int) -> bool:
    """Return whether a layer of the model has as many outputs as an embedding has rows, so that it predicts tokens."""
    for module in model.modules():
        is_linear = isinstance(module, torch.nn.Linear)
        if is_linear and module.out_features == rows:
            return True
    return False
