import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lightning
import pytest
import tokenizers
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lance import Corpus, LanceDataModule, TokenStore, WindowLoader
from lightning_lance.build import plan
from lightning_lance.build.plan import Budget, open_prepared
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.process.build_status import StatusFile
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerFile
from lightning_lance.tokenization.tokenizer import train_bpe
from tests.support.corpora import data_of, prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.training import SMALL, SOURCE, Recorder, make_data, make_trainer
from tests.support.warm import run_ranks


def test_fit_validate_test_and_predict(tmp_path: Path):
    model, data = Recorder(), make_data(tmp_path)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(model, datamodule=data)
    loader = data.train_dataloader()
    assert isinstance(loader, WindowLoader)
    epochs = [model.seen["train"][: len(loader)], model.seen["train"][len(loader) :]]
    assert len(epochs[0]) == len(epochs[1])
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        windows = [tuple(row) for batch in epoch for row in batch]
        assert len(set(windows)) == len(windows)
    # The sanity check takes two; then all of them in each round, the same ones.
    rounds = model.seen["val"][2:]
    half = len(rounds) // 2
    assert rounds[:half] == rounds[half:]
    windows_seen = sum(len(batch) for batch in rounds[:half])
    assert windows_seen == (data.store.num_tokens("val") - 1) // 32
    trainer.test(model, datamodule=data, verbose=False)
    assert model.seen["test"] == rounds[:half]
    assert trainer.predict(model, datamodule=data) == rounds[:half]
    model.seen["val"] = []
    trainer.validate(model, datamodule=data, verbose=False)
    assert model.seen["val"] == rounds[:half]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("counts_steps", [False, True])
@pytest.mark.parametrize("step", [1, 7, "epoch", "epoch + 1"])
def test_a_resumed_run_trains_on_the_batches_that_would_have_come(tmp_path: Path, step: Any, counts_steps: bool):
    whole = Recorder()
    data = make_data(tmp_path, source=SMALL)
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(whole, datamodule=data)
    epoch = len(data.train_dataloader())
    step = step if isinstance(step, int) else epoch + (step != "epoch")

    first = Recorder(counts_steps)
    save = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=step, save_top_k=-1)
    interrupted = {"enable_checkpointing": True, "callbacks": [save], "limit_val_batches": 0}
    make_trainer(tmp_path, max_steps=step, **interrupted).fit(first, datamodule=make_data(tmp_path, source=SMALL))
    checkpoint = tmp_path / "saved" / f"step={step}.ckpt"
    torch.load(checkpoint, weights_only=True)

    resumed = Recorder(counts_steps)
    trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    trainer.fit(resumed, datamodule=make_data(tmp_path, source=SMALL), ckpt_path=checkpoint)
    assert first.seen["train"] + resumed.seen["train"] == whole.seen["train"]


def test_a_state_comes_through_without_lightnings_own(tmp_path: Path):
    """A subclass has another name in the checkpoint: then the loader's state is enough. And the other way round."""
    whole = Recorder()
    make_trainer(tmp_path, max_steps=9, limit_val_batches=0).fit(whole, datamodule=make_data(tmp_path))
    first = make_trainer(tmp_path, max_steps=4, limit_val_batches=0)
    first.fit(Recorder(), datamodule=make_data(tmp_path))
    first.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert (
        saved["LanceDataModule"]["cursor"]
        == saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["cursor"]
        == 32
    )
    for name in ("of the datamodule", "of the loader"):
        changed = torch.load(tmp_path / "x.ckpt", weights_only=True)
        if name == "of the loader":
            del changed["LanceDataModule"]
        else:
            changed["loops"]["fit_loop"]["state_dict"]["combined_loader"] = []
        torch.save(changed, tmp_path / "y.ckpt")
        resumed = Recorder()
        trainer = make_trainer(tmp_path, max_steps=9, limit_val_batches=0)
        trainer.fit(resumed, datamodule=make_data(tmp_path), ckpt_path=tmp_path / "y.ckpt")
        assert resumed.seen["train"] == whole.seen["train"][4:], name


def test_a_second_fit_begins_anew(tmp_path: Path):
    data, models = make_data(tmp_path), [Recorder(), Recorder()]
    for model in models:
        make_trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(model, datamodule=data)
    assert models[0].seen == models[1].seen


def test_loaders_that_are_made_anew_during_a_fit_go_on(tmp_path: Path):
    whole, reloaded = Recorder(), Recorder()
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(whole, datamodule=make_data(tmp_path, source=SMALL))
    trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0, reload_dataloaders_every_n_epochs=1)
    trainer.fit(reloaded, datamodule=make_data(tmp_path, source=SMALL))
    assert reloaded.seen["train"] == whole.seen["train"]


def test_epochs_that_are_cut_short_do_not_repeat(tmp_path: Path):
    whole, cut = Recorder(), Recorder()
    make_trainer(tmp_path, max_steps=6, limit_val_batches=0).fit(whole, datamodule=make_data(tmp_path))
    make_trainer(tmp_path, max_epochs=3, limit_train_batches=2, limit_val_batches=0).fit(
        cut, datamodule=make_data(tmp_path)
    )
    assert cut.seen["train"] == whole.seen["train"]


def test_overfitting_sees_the_same_batches(tmp_path: Path):
    model = Recorder()
    trainer = make_trainer(tmp_path, max_epochs=3, overfit_batches=2, limit_val_batches=0)
    trainer.fit(model, datamodule=make_data(tmp_path))
    assert model.seen["train"] == model.seen["train"][:2] * 3


def test_a_transformers_model_trains(tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    class HuggingFace(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = GPT2Config(
                vocab_size=257, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256
            )
            self.model = GPT2LMHeadModel(config)
            self.losses: list[float] = []

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = self.model(**batch).loss
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.model(**batch).loss)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    model, data = HuggingFace(), make_data(tmp_path, batch_format="huggingface")
    trainer = make_trainer(tmp_path, max_steps=30)
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data, verbose=False)
    assert trainer.callback_metrics["val_loss"] < 4
    assert 5 < model.losses[0] < 6
    assert model.losses[-1] < 4


def test_another_context_length_or_batch_size_builds_nothing(tmp_path: Path):
    make_data(tmp_path).prepare_data()
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.lance") if path.is_file())
    data = make_data(tmp_path, context_length=7, batch_size=3, seed=4, order="random")
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (3, 7)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.lance") if path.is_file()) == before


def test_another_context_length_than_that_of_the_checkpoint_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    next(iter(data.train_dataloader()))
    state = data.state_dict()
    for length in (32, 16):
        caplog.clear()
        again = make_data(tmp_path, context_length=length)
        again.setup("fit")
        again.load_state_dict(state)
        told = (
            "The checkpoint's run had context_length=32, and this one has 16: it goes on after as many tokens"
            in caplog.text
        )
        assert told == (length == 16)


def test_setup_refuses_what_is_not_committed_or_not_complete(tmp_path: Path):
    with pytest.raises(
        StoreError, match=r"There is no committed token store at .*: run 'lightning-lance prepare' first"
    ):
        make_data(tmp_path).setup("fit")
    make_data(tmp_path, max_documents=5).prepare_data()
    with pytest.raises(StoreError, match=r"is unfinished .* again to continue it"):
        make_data(tmp_path, max_documents=9).setup("fit")
    with pytest.raises(StoreError, match="is not open yet"):
        _ = make_data(tmp_path).store
    (uri,) = tmp_path.glob("*.lance")
    StatusFile(uri.with_suffix(".building.json"), "f").failed(StoreError("the disk is full"))
    with pytest.raises(StoreError, match=r"is unfinished .*, since its build failed \(the disk is full\): run"):
        make_data(tmp_path, max_documents=9).setup("fit")


def test_a_store_without_its_source(tmp_path: Path):
    built = make_data(tmp_path, uri=str(tmp_path / "x.lance"))
    built.prepare_data()
    built.setup("fit")
    served = LanceDataModule(str(tmp_path / "x.lance"), 32, 8)
    served.prepare_data()
    served.setup("fit")
    assert next(iter(served.train_dataloader()))["input_ids"].equal(next(iter(built.train_dataloader()))["input_ids"])
    assert served.vocab_size == 257
    assert served.tokenizer.digest == built.tokenizer.digest
    with pytest.raises(ConfigError, match="corpus is None: expected a Corpus, the place of a store"):
        LanceDataModule(None, 32, 8)  # type: ignore[arg-type]


def test_no_validation_documents_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = Recorder()
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        make_trainer(tmp_path, max_steps=1).fit(model, datamodule=make_data(tmp_path, val_fraction=0.0))
    assert len(model.seen["train"]) == 1
    assert "The store has too few validation windows of 32 + 1 tokens" in caplog.text


def test_a_checkpoint_tags_its_version_so_that_no_clean_up_removes_it(tmp_path: Path):
    make_data(tmp_path, max_documents=30).prepare_data()
    first = make_trainer(tmp_path, max_steps=3, limit_val_batches=0)
    whole = Recorder()
    make_trainer(tmp_path, max_steps=6, limit_val_batches=0).fit(
        whole, datamodule=make_data(tmp_path, max_documents=30)
    )
    first.fit(Recorder(), datamodule=make_data(tmp_path, max_documents=30))
    first.save_checkpoint(tmp_path / "x.ckpt")
    data = make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    dataset = lance.dataset(data.store.uri)
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["LanceDataModule"]["stores"][0]
    tags = {name: tag["version"] for name, tag in dataset.tags.list().items()}
    assert tags[f"checkpoint-{state['tokens']}"] == state["version"]
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
    assert [entry["version"] for entry in lance.dataset(data.store.uri).versions()] == [1, 2]
    resumed = Recorder()
    make_trainer(tmp_path, max_steps=6, limit_val_batches=0).fit(
        resumed, datamodule=make_data(tmp_path), ckpt_path=tmp_path / "x.ckpt"
    )
    assert resumed.seen["train"] == whole.seen["train"][3:]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_ends_before_its_first_checkpoint_leaves_no_tag(tmp_path: Path):
    def tags() -> list[str]:
        return sorted(lance.dataset(data.store.uri).tags.list())

    class Stops(lightning.Callback):
        def __init__(self, saves: bool) -> None:
            self.saves = saves

        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            if self.saves:
                trainer.save_checkpoint(tmp_path / "y.ckpt")
            raise ValueError("a bug")

    first = make_trainer(tmp_path, max_steps=3, limit_val_batches=0)
    first.fit(Recorder(), datamodule=make_data(tmp_path, max_documents=30))
    first.save_checkpoint(tmp_path / "x.ckpt")
    # On more documents, with another seed, the loader refuses the checkpoint.
    data = make_data(tmp_path, seed=3)
    data.prepare_data()
    data.setup("validate")
    before = tags()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"x.ckpt': The checkpoint continues other data \(seed: 0 -> 3\)"):
            make_trainer(tmp_path, max_steps=6).fit(Recorder(), datamodule=data, ckpt_path=tmp_path / "x.ckpt")
        assert tags() == before
    for saves in (False, True):
        data = make_data(tmp_path)
        with pytest.raises(ValueError, match="a bug"):
            make_trainer(tmp_path, max_steps=6, callbacks=[Stops(saves)]).fit(Recorder(), datamodule=data)
        kept = [f"checkpoint-{data.store.commit.tokens}"] if saves else []
        assert tags() == sorted(before + kept)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resume_tags_what_it_trains_on_and_not_the_newest(tmp_path: Path):
    def tags() -> list[str]:
        return sorted(name for name in lance.dataset(data.store.uri).tags.list() if name.startswith("checkpoint"))

    class Looks(lightning.Callback):
        def on_train_start(self, *_: Any) -> None:
            self.tags = tags()

    first = make_trainer(tmp_path, max_steps=3, limit_val_batches=0)
    data = make_data(tmp_path, max_documents=30)
    first.fit(Recorder(), datamodule=data)
    first.save_checkpoint(tmp_path / "x.ckpt")
    trained_on = [f"checkpoint-{data.store.commit.tokens}"]
    assert tags() == trained_on
    data, looks = make_data(tmp_path), Looks()
    make_trainer(tmp_path, max_steps=5, limit_val_batches=0, callbacks=[looks]).fit(
        Recorder(), datamodule=data, ckpt_path=tmp_path / "x.ckpt"
    )
    assert [name.partition("-run-")[0] for name in looks.tags] == trained_on * 2
    assert tags() == trained_on


def test_a_set_up_that_fails_leaves_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = make_data(tmp_path)
    data.prepare_data()

    def fails(*_: Any) -> None:
        raise StoreError("no version ends there")

    monkeypatch.setattr(TokenStore, "at", fails)
    with pytest.raises(StoreError, match="no version ends there"):
        data.setup("fit")
    assert [name for name in lance.dataset(data.corpus.uri).tags.list() if name.startswith("checkpoint")] == []


def test_training_begins_while_a_build_goes_on_and_adopts_what_it_appends(tmp_path: Path):
    """A build in another process that commits now and then; training waits for its first tokens, and sees it grow."""
    uri = str(tmp_path / "x.lance")

    def data(**changes: Any) -> LanceDataModule:
        return make_data(tmp_path, uri=uri, **changes)

    class Builds(lightning.Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            data(max_documents=20 + 10 * trainer.current_epoch).prepare_data()

    waiting = data(wait_for_tokens=2000, extend="next_epoch")
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(waiting.prepare_data)
        with pytest.raises(FutureTimeoutError):
            waits.result(timeout=1.5)
        data(max_documents=20).prepare_data()
        waits.result(timeout=20)
    model, lengths = Recorder(), []
    trainer = make_trainer(
        tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[Builds()], reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(model, datamodule=waiting)
    seen = model.seen["train"]
    for documents_stored in (20, 20, 30):
        # Loaders are made before the epoch's hook has appended.
        store = open_prepared(waiting.corpora[""].plan, Budget(documents_stored, None))
        lengths.append(len(WindowLoader(store, 32, 8)))
    assert len(seen) == sum(lengths)
    assert lengths[2] > lengths[0]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("reload", [0, 1])
def test_a_run_leaves_no_tag_of_a_version_that_it_has_gone_on_from(tmp_path: Path, reload: int, fails: bool):
    uri = str(tmp_path / "x.lance")
    make_data(tmp_path, uri=uri, max_documents=20).prepare_data()

    def tags() -> list[str]:
        return sorted(name for name in lance.dataset(uri).tags.list() if name.startswith("checkpoint"))

    class Grows(lightning.Callback):
        most = 0

        def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            self.most = max(self.most, len(tags()))
            if fails and trainer.current_epoch == 3:
                raise RuntimeError("that was all")
            make_data(tmp_path, uri=uri, max_documents=25 + 5 * trainer.current_epoch).prepare_data()

    data, grows = LanceDataModule(uri, 32, 8, extend="next_epoch"), Grows()
    trainer = make_trainer(
        tmp_path, max_epochs=4, limit_val_batches=0, callbacks=[grows], reload_dataloaders_every_n_epochs=reload
    )
    with pytest.raises(RuntimeError, match="that was all") if fails else nullcontext():
        trainer.fit(Recorder(), datamodule=data)
    # What it began with, which it validates on, and what it has come to.
    assert grows.most <= 3
    assert data._loader is not None
    trained_on = [f"checkpoint-{store.commit.tokens}" for store in data._loader.stores.values()]
    assert tags() == ([] if fails else trained_on)


def test_what_a_builder_removes_before_it_is_kept_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A build in another process commits, and cleans up, between the opening of a store and the tag that keeps it."""
    uri = str(tmp_path / "x.lance")
    make_data(tmp_path, uri=uri, max_documents=20).prepare_data()
    lance.dataset(uri).tags.delete(next(iter(lance.dataset(uri).tags.list())))
    data, opened, open_stores = make_data(tmp_path, uri=uri, wait_for_tokens=2000), [], LanceDataModule._open

    def opening(self: LanceDataModule) -> dict[str, TokenStore]:
        stores = open_stores(self)
        opened.append(stores[""].version)
        if len(opened) == 1:
            prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.2, max_documents=30)
        return stores

    monkeypatch.setattr(LanceDataModule, "_open", opening)
    data.setup("fit")
    versions = [entry["version"] for entry in lance.dataset(uri).versions()]
    assert versions == [data.store.version] != opened[:1]
    assert data.store.commit.documents == 30
    tags = lance.dataset(uri).tags.list()
    assert {tag["version"] for tag in tags.values()} == {data.store.version}
    build, mine = sorted(tags)
    assert build == f"build-{data.store.commit.tokens}"
    assert mine.startswith(f"checkpoint-{data.store.commit.tokens}-run-")
    data.teardown("fit")
    assert sorted(lance.dataset(uri).tags.list()) == [build, f"checkpoint-{data.store.commit.tokens}"]


def test_a_mixture_is_counted_in_the_log(tmp_path: Path):
    data = make_data(tmp_path, mix={"Python": 1})
    logger = CSVLogger(tmp_path)
    make_trainer(tmp_path, max_steps=4, limit_val_batches=0, logger=logger, log_every_n_steps=2).fit(
        Recorder(), datamodule=data
    )
    logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert logged[0] == "data/Python/epochs,data/Python/windows,step"
    assert [line.split(",")[1:] for line in logged[1:]] == [["16", "1"], ["32", "3"]]


def test_fill_in_the_middle_takes_the_tokens_of_the_tokenizer(tmp_path: Path):
    spelled = {"prefix_token": "<pre>", "middle_token": "<mid>", "suffix_token": "<suf>"}
    trained = tokenizers.Tokenizer.from_str(train_bpe([["abcdefghij"] * 9], 260).to_json())
    trained.add_special_tokens([*spelled.values()])
    trained.save(str(tmp_path / "tokenizer.json"))
    choice = TokenizerFile(str(tmp_path), "<|endoftext|>")
    served = []
    for fim in ({}, {**spelled, "fim_rate": 1.0}):
        data = data_of(SOURCE, choice, 32, 8, data_dir=str(tmp_path / "data"), fim=fim)
        data.prepare_data()
        data.setup("fit")
        served.append(torch.cat([batch["input_ids"] for batch in data.train_dataloader()]))
    plain, rearranged = served
    ids = [trained.token_to_id(token) for token in spelled.values()]
    assert not torch.isin(plain, torch.tensor(ids)).any()
    assert all((rearranged == token).any() for token in ids)


def test_fill_in_the_middle_without_its_tokens_is_refused(tmp_path: Path):
    tokens = {"prefix_token": "<fim>", "middle_token": "<fim>", "suffix_token": "<fim>"}
    data, trainer = make_data(tmp_path, fim=tokens), make_trainer(tmp_path, max_steps=1)
    with pytest.raises(
        ConfigError, match=r"The tokenizer has no token '<fim>': its special tokens are '<\|endoftext\|>'"
    ):
        trainer.fit(Recorder(), datamodule=data)


def test_serving_arguments_that_cannot_be_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^uri is \{.*\}: expected a place"):
        make_data(tmp_path, uri={"a": "x", "b": "y"})


DDP = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1]]
from tests.support.training import Recorder, make_data, make_trainer
folder, steps, checkpoint = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] or None
model, data = Recorder(counts_steps=True), make_data(folder)
trainer = make_trainer(folder, devices=2, strategy="ddp", max_steps=steps, limit_val_batches=2, num_sanity_val_steps=0)
trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
trainer.save_checkpoint(folder / f"{steps}.ckpt")
(folder / f"seen-{steps}-{trainer.global_rank}.json").write_text(json.dumps(model.seen))
"""


def run_ddp(folder: Path, steps: int, checkpoint: Path | str = "") -> list[dict[str, Any]]:
    assert run_ranks(DDP, 2, ROOT, folder, steps, checkpoint, timeout=200) == [0, 0]
    return [json.loads((folder / f"seen-{steps}-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_get_disjoint_windows_and_resume_exactly(tmp_path: Path):
    """A default Trainer with DDP: two real processes, one of which builds the store, and then both again from a checkpoint."""
    alone = Recorder()
    make_trainer(tmp_path, max_steps=6, limit_val_batches=4).fit(
        alone, datamodule=make_data(tmp_path / "alone", batch_size=16)
    )
    first = run_ddp(tmp_path, 2)
    both = [a + b for a, b in zip(first[0]["train"], first[1]["train"], strict=True)]
    assert both == alone.seen["train"][:2]
    windows = [tuple(row) for batch in both for row in batch]
    assert len(set(windows)) == len(windows)
    then = run_ddp(tmp_path, 6, tmp_path / "2.ckpt")
    assert [a + b for a, b in zip(then[0]["train"], then[1]["train"], strict=True)] == alone.seen["train"][2:]


FAILS = """
import os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1]]
from tests.test_datamodule import *
from lightning_lance.errors import SourceError
class Fails(ListSource):
    def read(self, shard, row):
        raise SourceError("the network is gone")
folder = Path(sys.argv[2])
data = data_of(Fails(SOURCE.documents), ByteTokenizer(), 32, 8, data_dir=str(folder))
try:
    make_trainer(folder, devices=2, strategy="ddp", max_steps=1).fit(Recorder(), datamodule=data)
except Exception as error:
    (folder / f"error-{os.environ['LOCAL_RANK']}").write_text(f"{type(error).__name__}: {error}")
    raise
"""


def test_if_the_build_fails_every_rank_names_the_cause(tmp_path: Path):
    """Two real processes, of which Lightning lets one prepare the data while the other stands in a barrier."""
    assert run_ranks(FAILS, 2, ROOT, tmp_path, timeout=200) == [1, 1]
    assert [(tmp_path / f"error-{rank}").read_text() for rank in range(2)] == [
        "SourceError: the network is gone",
        "StoreError: Rank 0 could not prepare the data: the network is gone",
    ]


def test_val_batches_are_the_same_for_every_world_size(byte_store: Callable[..., Any]):
    store = byte_store(source=SOURCE, val_fraction=0.5)
    options: dict[str, Any] = {"split": "val", "order": "fixed", "remainder": "short", "resumable": False}

    def windows(world_size: int) -> set[tuple[int, ...]]:
        loaders = [
            WindowLoader(store, 16, 4, rank=rank, world_size=world_size, **options) for rank in range(world_size)
        ]
        return {tuple(row) for loader in loaders for batch in loader for row in batch["input_ids"].tolist()}

    assert len(windows(1)) - len(windows(3)) <= 2
    assert windows(3) <= windows(1)


def in_three_languages() -> ListSource:
    entries = []
    for letters, language in (("abc", "Go"), ("def", "Python"), ("ghi", "Rust")):
        texts = ["".join(random.Random(i).choices(letters, k=600)) for i in range(20)]
        entries += documents(*texts, language=language)
    return ListSource(tuple(entries))


def validated(folder: Path, batches: int, **options: Any) -> list[Any]:
    data = data_of(in_three_languages(), ByteTokenizer(), 32, 4, data_dir=str(folder), val_fraction=0.3, **options)
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    assert isinstance(loader, WindowLoader)
    assert len(loader) >= batches
    return [next(served)["input_ids"].tolist() for served in [iter(loader)] for _ in range(batches)]


def letters_of(batches: list[Any]) -> set[str]:
    return {chr(token) for batch in batches for window in batch for token in window if token < 256}


def test_the_first_validation_batches_are_a_sample_of_all_that_is_validated(tmp_path: Path):
    first = validated(tmp_path, 8)
    assert letters_of(first) == {*"abcdefghi"}
    # The run's seed and order are of no matter, nor is the size of its batches.
    assert validated(tmp_path, 8, seed=3, order="random") == first
    assert letters_of(validated(tmp_path, 8, where={"language": ["Go", "Rust"]})) == {*"abcghi"}
    mixed = {"mix": {"Go": 1, "Rust": 5}}
    assert letters_of(validated(tmp_path, 8, **mixed)) == {*"abcghi"}
    assert letters_of(validated(tmp_path, 4, where={"language": ["Go", "Python"]}, mix={"Go": 1})) == {*"abc"}


def test_a_mixture_of_stores_validates_those_that_have_a_weight(tmp_path: Path):
    uris = {}
    for name, letters in {"one": "abc", "two": "def", "three": "ghi"}.items():
        texts = ["".join(random.Random(i).choices(letters, k=600)) for i in range(20)]
        made = prepare(
            ListSource(documents(*texts)), ByteTokenizer(), str(tmp_path / f"{name}.lance"), val_fraction=0.3
        )
        uris[name] = made.uri
    for mix, expected in [({}, "abcdefghi"), ({"one": 1, "two": 1}, "abcdef"), ({"three": 1}, "ghi")]:
        data = LanceDataModule(uris, 32, 4, mix=mix)
        data.setup("validate")
        assert letters_of([batch["input_ids"].tolist() for batch in data.val_dataloader()]) == {*expected}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_steps_are_left_out_of_a_resumed_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = Recorder()
    make_trainer(tmp_path, max_steps=8, limit_val_batches=0).fit(whole, datamodule=make_data(tmp_path))
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = Recorder()
    again = make_trainer(tmp_path, max_steps=6, limit_val_batches=0)
    data = make_data(tmp_path, skip_steps=[[3, 5]])
    again.fit(resumed, datamodule=data, ckpt_path=str(tmp_path / "x.ckpt"))
    assert resumed.seen["train"] == [whole.seen["train"][step] for step in (2, 5, 6, 7)]
    assert caplog.messages.count("Steps 3 to 4 are left out (skip_steps).") == 1


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("on_data_change", ["restart", "continue"])
def test_a_resume_on_other_data_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, on_data_change: str):
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = make_trainer(tmp_path, max_steps=4, limit_val_batches=0)
    resumed.fit(
        Recorder(),
        datamodule=make_data(tmp_path, seed=1, on_data_change=on_data_change),
        ckpt_path=str(tmp_path / "x.ckpt"),
    )
    told = [message for message in caplog.messages if "The data differs from the checkpoint's" in message]
    assert told == [f"The data differs from the checkpoint's (seed: 0 -> 1): {on_data_change}."]


class Validations(lightning.Callback):
    """Notes the steps at which a run validates."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_batches_and_contexts_grow_during_a_run_that_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """187 windows: 4 steps of 2 and 22 of 8 make an epoch of 26, and later ones have 23."""
    growing = {"batch_size_schedule": [[0, 2], [4, 8]], "context_length_schedule": [[0, 8], [3, 16], [28, 32]]}
    shapes = [(8, 8)] * 3 + [(4, 16)] + [(16, 16)] * 24 + [(8, 32)] * 21
    whole, validated = Recorder(), Validations()
    options = {
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
        "reload_dataloaders_every_n_epochs": 1,
    }
    trainer = make_trainer(tmp_path, callbacks=[validated], **options)
    trainer.fit(whole, datamodule=make_data(tmp_path, **growing))
    assert [(len(batch), len(batch[0])) for batch in whole.seen["train"]] == shapes
    assert validated.steps == [26, 49]
    assert {len(batch[0]) for batch in whole.seen["val"]} == {32}
    for step, told in ((2, 0), (30, 1)):
        first, resumed = Recorder(), Recorder()
        once = {**options, "reload_dataloaders_every_n_epochs": 0, "max_epochs": -1}
        killed = make_trainer(tmp_path, **once, max_steps=step)
        killed.fit(first, datamodule=make_data(tmp_path, **growing))
        killed.save_checkpoint(tmp_path / "x.ckpt")
        message = "Later epochs have fewer batches than this one (batch_size_schedule)"
        assert sum(message in line for line in caplog.messages) == told
        trainer = make_trainer(tmp_path, **{**options, "max_epochs": -1}, max_steps=49)
        trainer.fit(resumed, datamodule=make_data(tmp_path, **growing), ckpt_path=tmp_path / "x.ckpt")
        assert first.seen["train"] + resumed.seen["train"] == whole.seen["train"]


def test_a_checkpoint_of_a_store_of_an_earlier_version_is_not_refused(tmp_path: Path):
    """Earlier versions hashed the tokenizer otherwise, so their stores have fingerprints of their own."""

    def corpus(**options: Any) -> Corpus:
        return Corpus(SMALL, ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0, **options)

    earlier = corpus()
    recipe = earlier.plan.older_recipes()[-1]
    vars(earlier)["plan"] = replace(earlier.plan, recipe=recipe, fingerprint=plan._fingerprint(recipe))
    store = earlier.prepare()
    assert store.fingerprint != corpus().fingerprint
    state = WindowLoader(store, 8, 1).state_dict()
    data = LanceDataModule(corpus(), 8, 1)
    data.check_state_dict(state)
    data.prepare_data()
    data.setup("fit")
    data.load_state_dict(state)
    with pytest.raises(StoreError, match="built with other settings"):
        LanceDataModule(corpus(), 8, 1, build={"rebuild": True}).check_state_dict(state)
