"""What a fit says of its data, refuses at its begin, and validates on; and how it adopts what came since its checkpoint."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
from torch import nn

from lightning_lance import LanceDataModule, WindowLoader
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import data_of
from tests.support.stores import ListSource, documents
from tests.support.training import Recorder, make_data, make_trainer
from tests.support.warm import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Total length of"),
]


@pytest.fixture(autouse=True)
def tells_all(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "lightning_lance"):
        yield


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [message for message in caplog.messages if message.startswith("Training on ")]
    caplog.clear()
    return found


def test_a_fit_says_what_it_trains_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_data(tmp_path).prepare_data()
    uri = next(tmp_path.glob("*.lance"))
    data, trainer = make_data(tmp_path), make_trainer(tmp_path, max_steps=46, accumulate_grad_batches=2)
    trainer.fit(Recorder(), datamodule=data)
    windows = f"in {uri} version 1 (2,010 tokens are for validation): 187 windows of 32 + 1 an epoch"
    assert lines(caplog) == [f"Training on 6,030 of 8,040 tokens {windows}; max_steps=46 makes 3.94 epochs."]
    trainer.validate(Recorder(), datamodule=data, verbose=False)
    assert lines(caplog) == []
    # One line in each fit, that of the limit which comes first.
    for options, end in (
        ({"max_epochs": 2, "limit_train_batches": 3}, "max_epochs=2 makes 0.257 epochs"),
        ({"max_epochs": 1, "max_steps": 4}, "max_steps=4 makes 0.171 epochs"),
    ):
        make_trainer(tmp_path, limit_val_batches=0, **options).fit(Recorder(), datamodule=make_data(tmp_path))
        [line] = lines(caplog)
        assert line.endswith(f"; {end}.")


def in_two_languages(count: int) -> ListSource:
    texts = [("".join(random.Random(i).choices("abcd", k=150)), "Go" if i % 3 else "Rust") for i in range(count)]
    return ListSource(
        tuple(documents(text, language=language, repo=f"repo{i}")[0] for i, (text, language) in enumerate(texts))
    )


def test_a_smaller_budget_and_a_selection_are_in_that_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def data(**options: Any) -> LanceDataModule:
        given = {"data_dir": str(tmp_path), "val_fraction": 0.0, **options}
        return data_of(in_two_languages(40), ByteTokenizer(), 32, 4, **given)

    data(max_documents=30).prepare_data()
    data().prepare_data()
    for options, parts in (
        (
            {"max_documents": 30},
            ["4,530 of 6,040 tokens in ", " version 1 (1,510 tokens beyond max_documents=30): "],
        ),
        (
            {"where": {"language": ["Rust"]}},
            ["2,114 of 6,040 tokens in ", " (3,926 tokens not in data.where or data.mix): "],
        ),
        (
            {"mix": {"Go": 1, "Rust": 3}},
            ["6,040 tokens in ", "; max_steps=2 makes 0.0165 of Go, 0.0923 of Rust epochs."],
        ),
    ):
        make_trainer(tmp_path, limit_val_batches=0, max_steps=2).fit(Recorder(), datamodule=data(**options))
        [line] = lines(caplog)
        assert [part for part in parts if part not in line] == [], line


def test_a_run_adopts_at_its_resume_what_was_appended(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Each window of the epoch once, in the run before and the one after; validation and later epochs are of everything."""
    first = Recorder()
    trainer = make_trainer(tmp_path, max_steps=9, limit_val_batches=0)
    trainer.fit(first, datamodule=make_data(tmp_path, max_documents=30))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    whole = make_data(tmp_path)
    whole.prepare_data()
    caplog.clear()
    tokens = {}
    for extend in ("never", "next_epoch", "now"):
        model, data = Recorder(), make_data(tmp_path, extend=extend)
        resumed = make_trainer(tmp_path, max_epochs=2, limit_val_batches=0)
        resumed.fit(model, datamodule=data, ckpt_path=tmp_path / "x.ckpt")
        tokens[extend] = data.store.commit.tokens
        told = [message for message in caplog.messages if "goes on with" in message]
        if extend == "now":
            assert told == []
            assert caplog.text.count("The rest of epoch 0 also has the 1,608 tokens that were appended.") == 1
        else:
            how = "data.extend=now or data.extend=next_epoch" if extend == "never" else "the next epoch"
            assert told == [
                f"The run goes on with the 6,030 tokens of its checkpoint; {data.store.uri} now has 8,040 tokens: "
                f"{how} adopts the others."
            ]
        [line] = lines(caplog)
        assert ("came after the checkpoint" in line) == (extend != "now")
    assert tokens == {"never": 6030, "next_epoch": 6030, "now": 8040}
    served = [tuple(window) for batch in first.seen["train"] + model.seen["train"] for window in batch]
    epoch = 8 * (len(data.train_dataloader()))
    # What the second epoch has, and no more, may come again.
    assert len(set(served[:epoch])) == len(served[:epoch])
    assert epoch <= len(served) <= 2 * epoch


@pytest.mark.parametrize("count", [256, 257, 300])
def test_a_vocabulary_that_is_too_small_is_refused_before_the_first_step(tmp_path: Path, count: int):
    class Sized(Recorder):
        def configure_model(self) -> None:
            self.embedding = nn.Embedding(count, 300)

    model = Sized()
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    if count > 256:
        trainer.fit(model, datamodule=make_data(tmp_path))
        return
    refused = (
        "The model's vocabulary is too small for the data: its embedding 'embedding' has 256 rows, but the tokenizer has ids "
        "up to 256: make it with vocab_size=257"
    )
    for what in ("fit", "validate", "predict"):
        with pytest.raises(ConfigError, match=refused):
            getattr(make_trainer(tmp_path, max_steps=1), what)(model, datamodule=make_data(tmp_path))
    assert model.seen == {"train": [], "val": [], "test": []}


class ByName(Recorder):
    """A model that logs its validation loss by language, too."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        name = self.trainer.datamodule.val_names[dataloader_idx]  # type: ignore[attr-defined]
        self.log(f"val_loss/{name}" if name else "val_loss", self.step("val", batch), add_dataloader_idx=False)


def test_a_validation_loss_of_each_language(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def data(**options: Any) -> LanceDataModule:
        return data_of(
            in_two_languages(40), ByteTokenizer(), 32, 4, data_dir=str(tmp_path), val_fraction=0.3, **options
        )

    model, trainer = ByName(), make_trainer(tmp_path, max_steps=2, limit_val_batches=2, val_check_interval=1)
    trainer.fit(model, datamodule=data(val_by="language"))
    assert {"val_loss", "val_loss/Go", "val_loss/Rust"} <= {*trainer.callback_metrics}
    one = data()
    one.setup("validate")
    [whole] = [one.val_dataloader()]
    assert isinstance(whole, WindowLoader)
    assert one.val_names == [""]
    by = data(val_by="language")
    by.setup("validate")
    loaders = by.val_dataloader()
    assert isinstance(loaders, list)
    windows = [[tuple(window) for batch in loader for window in batch["input_ids"].tolist()] for loader in loaders]
    # The first loader is that without the option, and the others are parts of it.
    assert windows[0] == [tuple(window) for batch in whole for window in batch["input_ids"].tolist()]
    assert sorted(windows[0]) == sorted(windows[1] + windows[2])
    assert isinstance(by.predict_dataloader(), WindowLoader)
    assert data(val_by="language", where={"language": ["Go"]}).serving.val_by == "language"
    only_go = data(val_by="language", mix={"Go": 1})
    only_go.setup("validate")
    assert only_go.val_names == ["", "Go"]
    with pytest.raises(ConfigError, match="val_by is 'languages': expected one of none, language, store"):
        data(val_by="languages")


def test_stores_without_validation_text_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    uris = {}
    for name, share in {"one": 0.3, "two": 0.0, "three": 0.3}.items():
        corpus = data_of(
            in_two_languages(30), ByteTokenizer(), 32, 4, uri=str(tmp_path / f"{name}.lance"), val_fraction=share
        )
        corpus.prepare_data()
        uris[name] = str(tmp_path / f"{name}.lance")
    data = LanceDataModule(uris, 32, 4, val_by="store")
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=1)
    for _ in range(2):
        trainer.fit(ByName(), datamodule=data)
        trainer.fit_loop.epoch_loop.max_steps += 2
    assert data.val_names == ["", "one", "three"]
    told = [message for message in caplog.messages if "has no text" in message]
    assert told == [
        "Split 'val' has no text of the corpus two: store more documents, or raise val_fraction (which builds another store)."
    ]
    nothing = LanceDataModule(uris["two"], 32, 4)
    for _ in range(2):
        make_trainer(tmp_path, max_steps=1).fit(Recorder(), datamodule=nothing)
    assert caplog.text.count("too few validation windows") == 1


def test_a_checkpoint_in_the_middle_of_a_validation_goes_on_with_the_next_step(tmp_path: Path):
    """The round that was interrupted is not taken up again; the next one is whole, and training misses nothing."""

    class Saves(lightning.Callback):
        def on_validation_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
            if not trainer.sanity_checking and arguments[3] == 2 and trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    whole, resumed = Recorder(), Recorder()
    options: dict[str, Any] = {"max_steps": 8, "val_check_interval": 4}
    make_trainer(tmp_path, callbacks=[Saves()], **options).fit(whole, datamodule=make_data(tmp_path))
    make_trainer(tmp_path, **options).fit(resumed, datamodule=make_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
    assert resumed.seen["train"] == whole.seen["train"][4:]
    rounds = whole.seen["val"][2:]
    assert resumed.seen["val"] == rounds[: len(rounds) // 2] == rounds[len(rounds) // 2 :]


def test_the_vocabulary_and_the_tokenizer_are_known_before_anything_is_prepared(tmp_path: Path):
    data = make_data(tmp_path)
    assert (data.vocab_size, data.tokenizer.decode([104, 105])) == (257, "hi")
    assert not [*tmp_path.glob("*.lance")]
    data.prepare_data()
    data.setup("fit")
    assert (data.vocab_size, data.store.tokenizer.digest) == (257, data.tokenizer.digest)


RANKS = """
import logging, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import lightning
from tests.support.training import Recorder, make_data, make_trainer

folder, extend = Path(sys.argv[2]), sys.argv[3]
logging.basicConfig(level=logging.INFO)
model = Recorder()
trainer = make_trainer(folder, max_epochs=2, devices=2, strategy="ddp", limit_val_batches=0)
trainer.fit(model, datamodule=make_data(folder, batch_size=4, extend=extend), ckpt_path=folder / "x.ckpt")
(folder / f"windows-{trainer.global_rank}").write_text(repr(model.seen["train"]))
"""


def test_two_ranks_adopt_what_was_appended_to_the_run_of_one(tmp_path: Path):
    first = Recorder()
    trainer = make_trainer(tmp_path, max_steps=5, limit_val_batches=0)
    trainer.fit(first, datamodule=make_data(tmp_path, max_documents=30))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    make_data(tmp_path).prepare_data()
    assert run_ranks(RANKS, 2, Path(__file__).parents[2], tmp_path, "now", timeout=200) == [0, 0]
    served = first.seen["train"]
    for rank in range(2):
        served += eval((tmp_path / f"windows-{rank}").read_text())
    windows = [tuple(window) for batch in served for window in batch]
    assert len(set(windows)) == len(windows)
    data = make_data(tmp_path)
    data.setup("fit")
    # All but the last, which fill no batch.
    assert 0 <= data.train_dataloader().num_windows - len(windows) <= 8 + 1
