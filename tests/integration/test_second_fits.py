"""More than one fit of a datamodule, and the trials of tuners: each trains on the windows that it should."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lightning_lance import LanceDataModule
from tests.support.training import Recorder, make_data, make_trainer

AGAIN = "begins at the first window again"

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Tuned(Recorder):
    """A model whose learning rate and batch size may be looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.01

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    @property
    def windows(self) -> list[tuple[int, ...]]:
        return [tuple(window) for batch in self.seen["train"] for window in batch]


def trainer_of(folder: Path, **options: Any) -> lightning.Trainer:
    return make_trainer(folder, limit_val_batches=0, **options)


def windows_of_one_run(folder: Path, **options: Any) -> list[tuple[int, ...]]:
    model = Tuned()
    trainer_of(folder, **options).fit(model, datamodule=make_data(folder))
    return model.windows


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path: Path):
    model, data, trainer = Tuned(), make_data(tmp_path), trainer_of(tmp_path, max_steps=3)
    trainer.fit(model, datamodule=data)
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(model, datamodule=data)
    assert model.windows == windows_of_one_run(tmp_path, max_steps=6)


def test_a_second_fit_after_a_whole_epoch_trains_on_the_next_epoch(tmp_path: Path):
    model, data, trainer = Tuned(), make_data(tmp_path), trainer_of(tmp_path, max_epochs=1)
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, datamodule=data)
    assert model.windows == windows_of_one_run(tmp_path, max_epochs=2)


def test_a_second_fit_goes_on_with_the_tokens_of_the_first(tmp_path: Path):
    model, data, trainer = Tuned(), make_data(tmp_path, max_documents=30), trainer_of(tmp_path, max_steps=3)
    trainer.fit(model, datamodule=data)
    first_tokens = data.store.commit.tokens
    grown = make_data(tmp_path)
    grown.prepare_data()
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(model, datamodule=data)
    assert data.store.commit.tokens == first_tokens
    other = Tuned()
    trainer_of(tmp_path, max_steps=6).fit(other, datamodule=make_data(tmp_path, max_documents=30))
    assert model.windows == other.windows


def test_another_trainer_begins_again_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data, models = make_data(tmp_path), [Tuned(), Tuned()]
    first = trainer_of(tmp_path, max_steps=3)
    first.fit(models[0], datamodule=data)
    first.save_checkpoint(tmp_path / "x.ckpt")
    assert AGAIN not in caplog.text
    trainer_of(tmp_path, max_steps=3).fit(models[1], datamodule=data)
    assert models[0].windows == models[1].windows
    assert caplog.text.count(AGAIN) == 1
    resumed = Tuned()
    trainer_of(tmp_path, max_steps=6).fit(resumed, datamodule=data, ckpt_path=tmp_path / "x.ckpt")
    assert models[0].windows + resumed.windows == windows_of_one_run(tmp_path, max_steps=6)
    assert caplog.text.count(AGAIN) == 1


@pytest.mark.parametrize("rehearsal", [{"fast_dev_run": True}, {"limit_train_batches": 0, "max_epochs": 1}])
def test_a_rehearsal_takes_nothing_from_the_run(tmp_path: Path, rehearsal: dict[str, Any]):
    model, data = Tuned(), make_data(tmp_path)
    make_trainer(tmp_path, **{"limit_val_batches": 0, **rehearsal}).fit(Tuned(), datamodule=data)
    trainer_of(tmp_path, max_steps=4).fit(model, datamodule=data)
    assert model.windows == windows_of_one_run(tmp_path, max_steps=4)


def test_a_fit_after_a_validation_begins_at_the_first_window(tmp_path: Path):
    model, data, trainer = Tuned(), make_data(tmp_path), make_trainer(tmp_path, max_steps=4, limit_val_batches=1)
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data)
    assert model.windows == windows_of_one_run(tmp_path, max_steps=4)


def finders() -> list[lightning.Callback]:
    return [
        BatchSizeFinder(mode="power", max_trials=2, steps_per_trial=2),
        LearningRateFinder(num_training_steps=4, update_attr=False),
    ]


@pytest.mark.filterwarnings("ignore:.*You have set progress_bar_refresh_rate.*")
@pytest.mark.parametrize("which", [0, 1])
def test_trials_of_a_callback_take_nothing_from_the_run(tmp_path: Path, which: int):
    data, model = make_data(tmp_path, batch_size=4), Tuned()
    trainer_of(tmp_path, max_epochs=1, callbacks=[finders()[which]]).fit(model, datamodule=data)
    expected = windows_of_one_run(tmp_path, max_epochs=1)
    loader = data.train_dataloader()
    trained = len(loader) * loader.batch_size
    shared = min(trained, len(expected))
    assert model.windows[-trained:][:shared] == expected[:shared]


@pytest.mark.parametrize("what", ["scale_batch_size", "lr_find"])
def test_trials_of_a_tuner_take_nothing_from_the_run(tmp_path: Path, what: str):
    data, model, trainer = make_data(tmp_path, batch_size=4), Tuned(), trainer_of(tmp_path, max_steps=4)
    tuner = Tuner(trainer)
    if what == "scale_batch_size":
        tuner.scale_batch_size(model, datamodule=data, max_trials=2, steps_per_trial=2, init_val=4)
    else:
        tuner.lr_find(model, datamodule=data, num_training=4, update_attr=False)
    model.seen["train"] = []
    trainer.fit(model, datamodule=data)
    expected = windows_of_one_run(tmp_path, max_epochs=1)
    assert len(model.windows) == 4 * data.batch_size
    assert model.windows == expected[: len(model.windows)]


def test_trials_of_a_resumed_run_take_nothing_from_it(tmp_path: Path):
    first = trainer_of(tmp_path, max_steps=3)
    first.fit(Tuned(), datamodule=make_data(tmp_path))
    first.save_checkpoint(tmp_path / "x.ckpt")
    model = Tuned()
    trainer = trainer_of(tmp_path, max_steps=6, callbacks=[finders()[1]])
    trainer.fit(model, datamodule=make_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
    # Lightning itself begins to count steps anew after such trials.
    trained = model.windows[4 * 8 :]
    assert trained == windows_of_one_run(tmp_path, max_epochs=1)[24:][: len(trained)]
    assert len(trained) == 6 * 8


def test_an_empty_state_is_the_first_window(tmp_path: Path):
    data = make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    first = next(iter(loader))["input_ids"]
    data.load_state_dict({})
    assert torch.equal(next(iter(loader))["input_ids"], first)
    assert torch.equal(next(iter(data.train_dataloader()))["input_ids"], next(iter(loader))["input_ids"])


def test_the_vocabulary_is_known_before_setup(tmp_path: Path):
    data = make_data(tmp_path)
    assert data.vocab_size == 257
    data.prepare_data()
    uri = next(iter(tmp_path.glob("*.lance")))
    served = LanceDataModule(str(uri), 32, 8)
    assert served.vocab_size == 257
    assert served.tokenizer.eos_id == 256
