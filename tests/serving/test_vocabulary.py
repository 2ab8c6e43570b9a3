"""Which embedding of a model takes the tokens, by sizes and names alone."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_lance.serving.vocabulary import vocabulary_of


def model(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict(parts)


def gpt2(rows: int, **options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=rows, n_positions=512, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0, **options
    )
    return GPT2LMHeadModel(config)


class Tied(nn.Module):
    """A model without a head of its own, as the sample GPT."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 4)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner


@pytest.mark.parametrize(
    ("made", "rows"),
    [
        (lambda: model(e=nn.Embedding(100, 8), o=nn.Linear(8, 100)), 100),
        (lambda: Tied(100), 100),
        (lambda: Wrapped(Wrapped(Tied(100))), 100),
        (lambda: nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 100)), 100),
        (lambda: model(embedding_layer=nn.Embedding(100, 8)), 100),
        (lambda: model(wte=nn.Embedding(100, 8), wpe=nn.Embedding(1024, 8), head=nn.Linear(8, 100)), 100),
        (lambda: model(tok=nn.Embedding(100, 8), places=nn.Embedding(64, 8), head=nn.Linear(8, 100)), 100),
        (lambda: model(tokens=nn.Embedding(64, 8), positions=nn.Embedding(64, 8)), 64),
        (lambda: Wrapped(gpt2(100)), 100),
        (lambda: torch.compile(Tied(100), backend="eager"), 100),
    ],
)
def test_the_embedding_of_tokens_is_found(made: Any, rows: int):
    with torch.device("meta"):
        made_of_nothing = made()
    for found in (made(), made_of_nothing):
        name, size = vocabulary_of(found, 64) or ("", 0)
        assert size == rows
        assert name


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.Linear(100, 8),  # of one-hot tokens
        lambda: model(inside=nn.Linear(257, 8), positions=nn.Embedding(64, 8), out=nn.Linear(8, 64)),
        lambda: model(inside=nn.Linear(257, 8), relative_attention_bias=nn.Embedding(32, 8)),
        lambda: model(inside=nn.Linear(257, 8), speakers=nn.Embedding(12, 8)),
        lambda: model(embeddings=model(inside=nn.Linear(257, 8), task_embedding=nn.Embedding(12, 8))),
        lambda: model(bag=nn.EmbeddingBag(100, 8), out=nn.Linear(8, 257)),
        lambda: model(),
    ],
)
def test_a_model_without_an_embedding_of_tokens_has_no_vocabulary_to_check(made: Any):
    assert vocabulary_of(made(), 64) is None


def test_a_weight_that_was_replaced_by_a_larger_one_counts():
    resized = Tied(100)
    resized.embedding.weight = nn.Parameter(torch.zeros(300, 4))
    assert vocabulary_of(resized, 64) == ("embedding", 300)
