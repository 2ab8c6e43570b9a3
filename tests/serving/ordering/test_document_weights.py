"""Weights by documents: each component gives as many documents as its weight says, whatever their length."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.serving.ordering.document_weights import Counts, by_tokens
from lightning_lance.serving.ordering.schedule import Schedule
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

# 12 documents of 60 bytes and EOS, and 24 of 20; the last ones are added later.
SOURCE = ListSource(
    (
        *documents(*(f"{i:06d}" * 10 for i in range(12)), language="Go"),
        *documents(*(f"{i:05d}" * 4 for i in range(24)), language="Rust"),
        *documents(*(f"{i:06d}" * 30 for i in range(12)), language="Go"),
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(
        SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0, max_documents=36
    )


def make(store: Any, batch_size: int = 1, **options: Any) -> WindowLoader:
    return WindowLoader(store, 10, batch_size, **{"mix": {"Go": 1, "Rust": 2}, "mix_by": "documents", **options})


def serve(loader: WindowLoader, steps: int) -> list[list[int]]:
    served: list[list[int]] = []
    while steps > 0:
        for batch in loader:
            served += batch["input_ids"].tolist()
            steps -= 1
            if not steps:
                break
    return served


def test_a_component_of_long_documents_gives_more_tokens(store: TokenStore):
    """A document of Go has 61 tokens, one of Rust 21: for one of Go and two of Rust, 61 windows and 42."""
    loader = make(store, remainder="wrap")
    assert loader.means == "Weights count documents (mix_by): one has 61.0 tokens (Go), 21.0 tokens (Rust) on average."
    serve(loader, 2 * (61 + 42))
    assert {name: part["windows"] for name, part in loader.components().items()} == {"Go": 2 * 61, "Rust": 2 * 42}
    assert make(store, mix_by="tokens").means == ""


counts = st.builds(Counts, st.integers(1, 10**9), st.integers(1, 10**13))


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.integers(1, 9), counts), min_size=2))
def test_any_counts_give_the_documents_of_the_weights(drawn: dict[str, tuple[int, Counts]]):
    weights = {name: float(weight) for name, (weight, _) in drawn.items()}
    shares = by_tokens(weights, {name: count for name, (_, count) in drawn.items()})
    schedule = Schedule(shares)
    served = schedule.counts(schedule.period)
    for part, (name, share) in zip(served.tolist(), shares.items(), strict=True):
        # The documents in a run of T tokens, and so the share of the weights.
        assert share / drawn[name][1].mean == Fraction(weights[name])
        exact = share / sum(shares.values())
        assert abs(Fraction(part, schedule.period) - exact) < Fraction(1, 10**4) or part == 1


@examples(6)
@given(st.integers(0, 40), st.booleans())
def test_a_run_is_resumed_with_the_lengths_of_its_checkpoint(store: TokenStore, steps: int, changes: bool):
    options: dict[str, Any] = {"remainder": "wrap"}
    if changes:
        options |= {
            "mix": None,
            "mix_schedule": [[0, {"Go": 1}], [200, {"Go": 1, "Rust": 1}]],
            "max_epochs": {"Rust": 1},
        }
    whole = serve(make(store, **options), 90)
    before = make(store, 2, **options)
    served = serve(before, steps)
    resumed = make(store, 3, **options)
    resumed.load_state_dict(before.state_dict())
    served += serve(resumed, 3)
    assert served == whole[: len(served)]


def test_other_shares_go_on_where_each_component_was(store: TokenStore):
    loader = make(store)
    serve(loader, 20)
    state = loader.state_dict()
    assert (state["mix_by"], sum(state["consumed"])) == ("documents", 20)
    other = make(store, mix_by="tokens")
    other.load_state_dict(state)
    assert other.components() == loader.components()
    assert not {"mix_by", "consumed"} & {*other.state_dict()}
    # And back, from a state of weights by tokens.
    back = make(store)
    back.load_state_dict(other.state_dict())
    assert back.components() == loader.components()
    with pytest.raises(StoreError, match="state's mix_by is 'words': expected one of documents"):
        back.load_state_dict({**state, "mix_by": "words"})


def test_growth_brings_other_lengths_from_there_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Go has 12 documents of 61 tokens at first, and then 12 more of 181: 121 on average."""
    for extend in ("next_epoch", "now"):
        folder = tmp_path / extend
        small = prepare(SOURCE, ByteTokenizer(), data_dir=folder, val_fraction=0.0, max_documents=36)
        loader = make(small, extend=extend, remainder="wrap")
        serve(loader, 10)
        state = loader.state_dict()
        large = prepare(SOURCE, ByteTokenizer(), data_dir=folder, val_fraction=0.0)
        resumed = make(large, extend=extend, remainder="wrap")
        resumed.load_state_dict(state)
        if extend == "next_epoch":
            assert resumed.means == loader.means
            list(resumed)
            resumed.roll_over()
        before = {name: part["windows"] for name, part in resumed.components().items()}
        serve(resumed, 121 + 42)
        now = {name: part["windows"] for name, part in resumed.components().items()}
        assert {name: now[name] - before[name] for name in now} == {"Go": 121, "Rust": 42}
        sentence = "Weights count documents (mix_by): one has 121.0 tokens (Go), 21.0 tokens (Rust) on average."
        assert sum(sentence in message for message in caplog.messages) == 1
        caplog.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_by": "words"}, "mix_by is 'words': expected one of tokens, documents"),
        ({"mix": None}, "mix_by is 'documents', but there are no weights: give mix or mix_schedule, or leave it out"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(store: TokenStore, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(store, **options)
