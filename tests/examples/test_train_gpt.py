"""The sample's training: the command, and the script, as a user runs them; and what they refuse, in this process."""

import csv
import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_lance import LanceDataModule
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.examples.gpt import GPTModule
from lightning_lance.tokenization import ByteTokenizer
from tests.support.commands import COMMAND
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.warm import TRAINING, server

SCRIPT = ROOT / "examples/train_gpt.py"
# Forty files of a few words, which a model of a few weights learns in some steps.
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
SMALL = [
    "experiment=smoke", "source=files", "source.patterns=['*.py']", "source.root=texts", "corpus.val_fraction=0.2",
    "tokenizer.vocab_size=300", "context_length=16", "data.batch_size=4",
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.learning_rate=0.05",
    "trainer.max_steps=12", "trainer.log_every_n_steps=1", "trainer.callbacks.0.every_n_train_steps=5",
]  # fmt: skip


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    for number in range(40):
        names = [WORDS[(number * step) % 10] for step in range(1, 30)]
        (folder / f"texts/{number}.py").write_text("\n".join(f"def {name}(x):\n    return x" for name in names))


def run(script: Path, folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = server(TRAINING).run(script, *arguments, folder=folder, timeout=200)
    return done.returncode, done.stdout, done.stderr


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `lightning-lance train` leaves and prints, from a folder with nothing but texts."""
    folder = tmp_path_factory.mktemp("train")
    write_texts(folder)
    code, out, err = run(Path(COMMAND[0]), folder, "train", *SMALL, "data.mix={Python: 1}")
    # Neither tips nor tables of Lightning, nor warnings of libraries.
    assert (code, err) == (0, "")
    shutil.copy(folder / "outputs/checkpoints/last.ckpt", folder / "step12.ckpt")
    return folder, out


def test_a_store_is_built_and_a_model_trained_and_a_sample_written(trained: tuple[Path, str]):
    folder, printed = trained
    lines = printed.splitlines()
    assert "Training a tokenizer with 300 ids" in printed
    assert sum(".lance: 40 documents, " in line for line in lines) == 1
    # Where there is no terminal, a line after the first step, and then now and then; no bar, and nothing before the words.
    assert [line for line in lines if line.startswith("step 1 of 12, loss ")]
    assert "steps/s" not in printed
    assert "[INFO]" not in printed
    assert "💡" not in printed
    begin, end = lines.index("--- a prompt: the beginning of a document ---"), lines.index("---")
    assert lines[begin + 1].startswith("def ")
    assert "--- the model goes on ---" in lines[begin:end]
    assert end - begin < 15
    assert lines[end + 1].startswith("trained on data/files-")
    assert " to train on, " in lines[end + 1]
    assert lines[end + 2].startswith("step 12: train_loss ")
    assert ", val_loss " in lines[end + 2]
    assert lines[end + 3] == (
        "metrics in outputs/metrics.csv, their curve in outputs/loss.png, checkpoint in outputs/checkpoints/last.ckpt"
    )
    assert lines[end + 4].startswith(
        "to go on: lightning-lance train experiment=smoke source=files \"source.patterns=['*.py']\" "
    )
    assert lines[end + 4].endswith(" ckpt_path=outputs/checkpoints/last.ckpt trainer.max_steps=24")
    assert len(lines) == end + 5
    assert (folder / "outputs/loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_metrics_of_a_step_are_one_row(trained: tuple[Path, str]):
    metrics = rows(trained[0] / "outputs/metrics.csv")
    assert [int(row["step"]) for row in metrics] == list(range(12))
    losses = [float(row["train_loss"]) for row in metrics]
    assert 5.2 < losses[0] < 6.2  # ln(300) is 5.7
    assert losses[-1] < losses[0] - 0.5
    # In the first tenth of the run.
    assert all(row["val_loss"] for row in metrics)
    assert [int(row["data/Python/windows"]) for row in metrics] == [4 * step for step in range(1, 13)]


def test_the_last_checkpoint_is_of_the_last_step(trained: tuple[Path, str]):
    saved = torch.load(trained[0] / "step12.ckpt", weights_only=True)
    assert saved["global_step"] == 12
    # Within the epoch, so that the next run goes on in it.
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0


def test_a_second_run_builds_nothing_and_goes_on_from_the_checkpoint(trained: tuple[Path, str]):
    """Its losses are those of the run that went through: the same batches, in the same order."""
    folder, _ = trained
    file = folder / "outputs/metrics.csv"
    whole = rows(file)
    (five,) = (folder / "outputs/checkpoints").glob("*step=10.ckpt")
    mixed = ["data.mix={Python: 1}", f"ckpt_path='{five}'"]
    code, out, err = run(SCRIPT, folder, *SMALL, *mixed)
    assert (code, err) == (0, "")
    assert "Training a tokenizer" not in out
    assert "40 documents" not in out
    assert "outputs/metrics.csv has 2 rows of an earlier run: they are in metrics-1.csv now." in out
    assert out.splitlines()[-1].startswith(f"to go on: python {shlex.quote(str(SCRIPT))} experiment=smoke ")
    assert rows(file.with_name("metrics-1.csv")) == whole[10:]
    again = rows(file)
    assert again[:10] == whole[:10]
    assert [int(row["step"]) for row in again] == list(range(12))
    for name in ("train_loss", "val_loss"):
        assert [float(row[name]) for row in again] == pytest.approx([float(row[name]) for row in whole], abs=2e-3)


@pytest.mark.parametrize(
    ("override", "differs"), [("seed=7", "seed: 0 -> 7"), ("corpus.val_fraction=0.3", "stores: '")]
)
def test_a_checkpoint_of_other_data_is_refused_before_anything_is_built_or_written(
    trained: tuple[Path, str], override: str, differs: str
):
    folder, _ = trained
    stores = sorted((folder / "data").iterdir())
    record = folder / "outputs/.hydra"
    before = {file.name: file.read_text() for file in record.iterdir()}
    assert {*before} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "- experiment=smoke\n" in before["overrides.yaml"]
    assert "output_subdir: .hydra\n" in before["hydra.yaml"]
    checkpoint = f"ckpt_path={folder}/step12.ckpt"
    code, out, err = run(
        Path(COMMAND[0]), folder, "train", *SMALL, "data.mix={Python: 1}", checkpoint, override, "trainer.max_steps=24"
    )
    assert (code, out) == (1, "")
    assert f"step12.ckpt': The checkpoint continues other data ({differs}" in err
    assert err.count("\n") == 1
    assert {file.name: file.read_text() for file in record.iterdir()} == before
    assert sorted((folder / "data").iterdir()) == stores


def test_each_of_two_runs_in_a_folder_says_how_it_goes_on(trained: tuple[Path, str]):
    folder, _ = trained
    (folder / "two runs/checkpoints").mkdir(parents=True)
    shutil.copy(folder / "step12.ckpt", folder / "two runs/checkpoints/last.ckpt")
    given = [*SMALL, "output_dir='two runs'", "data.mix={Python: 1}"]
    code, out, err = run(SCRIPT, folder, *given, "corpus.val_fraction=0.3", "trainer.max_steps=1")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(""" "ckpt_path='two runs/checkpoints/last-v1.ckpt'" trainer.max_steps=2""")
    code, out, err = run(SCRIPT, folder, *given, "ckpt_path=outputs", "trainer.max_steps=12")
    assert ".ckpt' has 12 steps, and trainer.max_steps is 12" in out
    code, out, err = run(SCRIPT, folder, *given, "ckpt_path=last", "trainer.max_steps=24")
    assert code == 1
    assert "two runs/checkpoints: going on with the newest, last-v1.ckpt, and not with last.ckpt." in out
    assert "last-v1.ckpt': The checkpoint continues other data (stores: '" in err


def run_in(folder: Path, *overrides: str) -> None:
    """Run it in this process, for what it says before it trains."""
    from lightning_lance.examples import train_gpt

    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=[*SMALL, f"output_dir={folder}/none", f"data_dir={folder}/no", *overrides])
    train_gpt.main.__wrapped__(config)


def test_a_store_without_its_tokenizer_costs_the_sample_alone(tmp_path: Path):
    from lightning_lance.examples import train_gpt

    store = prepare(ListSource(documents("some text")), ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    (tmp_path / "x.tokenizer.json").unlink()
    model = GPTModule(n_layer=1, n_head=1, n_embd=8, context_length=8)
    written = train_gpt.sample(model, LanceDataModule(store.uri, 8, 1))
    assert written.startswith(
        f"The model writes no sample: There is no tokenizer.json at '{tmp_path}/x.tokenizer.json'"
    )


def test_a_run_that_is_done_says_so_and_how_to_train_on(trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    folder, _ = trained
    run_in(folder, f"ckpt_path={folder}/step12.ckpt", "trainer.max_steps=12")
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"Nothing is left to do: '{folder}/step12.ckpt' has 12 steps, and trainer.max_steps is 12. "
    )
    assert "To train on, ask for more, as in trainer.max_steps=24 (" in printed
    assert printed.count("\n") == 1


def test_a_checkpoint_of_another_tokenizer_is_refused_before_the_store_is_built(
    trained: tuple[Path, str], tmp_path: Path
):
    folder, _ = trained
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".hydra").mkdir()
    checkpoint = shutil.copy(folder / "step12.ckpt", tmp_path / "checkpoints/last.ckpt")
    given = "- 'data.mix={Python: 1}'\n- seed=0\n- trainer.max_steps=12\n- 'source.storage_options={key: abc}'\n"
    (tmp_path / ".hydra/overrides.yaml").write_text(given)
    texts = [
        f"source.root={folder}/texts",
        f"data_dir={tmp_path}/data",
        "tokenizer.vocab_size=290",
        "model.vocab_size=300",
    ]
    with pytest.raises(StoreError) as refused:
        run_in(folder, *texts, f"ckpt_path={checkpoint}", "trainer.max_steps=24", "+data.mix.Python=1")
    sentence = str(refused.value)
    assert "last.ckpt': The checkpoint continues other data (stores: '" in sentence
    assert "; that run was given 'data.mix={Python: 1}' seed=0 " in sentence
    assert sentence.endswith(", which a run that goes on repeats.")
    assert "abc" not in sentence
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["tokenizers"]


@pytest.mark.parametrize(
    ("override", "differs"),
    [("model.n_layer=3", "n_layer: 1 -> 3"), ("model.vocab_size=2048", "vocab_size: 300 -> 2048")],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_built(
    trained: tuple[Path, str], override: str, differs: str
):
    folder, _ = trained
    with pytest.raises(ConfigError) as refused:
        run_in(folder, f"ckpt_path={folder}/step12.ckpt", override)
    assert (
        f"step12.ckpt', but the checkpoint is of another model ({differs}): choose the model and the tokenizer"
        in str(refused.value)
    )
    assert not (folder / "no").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "x.ckpt").write_text("text")
    with pytest.raises(ConfigError, match="is not a checkpoint that loads with weights_only=True"):
        run_in(tmp_path, f"ckpt_path={tmp_path}/x.ckpt")


@pytest.mark.parametrize(
    ("interval", "steps", "expected"), [(30, 300, 30), (30, 100, 10), (30, 5, 1), (30, -1, 30), (0.5, 100, 0.5)]
)
def test_a_short_run_validates_ten_times(interval: float, steps: int, expected: float):
    from lightning_lance.examples import train_gpt

    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=[f"trainer.val_check_interval={interval}", f"trainer.max_steps={steps}"])
    assert train_gpt.ten_times_a_run(config, "val_check_interval") == expected


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (name, "tensorboardX", f"{name}.compat"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigError, match=f"^logger={name} needs a package that is not installed .*: pip install {name}, or"
    ):
        run_in(tmp_path, f"logger={name}")


def test_a_logger_that_cannot_begin_says_so_before_anything_is_built():
    from lightning_lance.examples import train_gpt

    class WandbLogger:
        @property
        def experiment(self) -> Any:
            raise RuntimeError("No API key configured.")

    trainer: Any = SimpleNamespace(loggers=[WandbLogger()])
    with pytest.raises(
        ConfigError, match=r"RuntimeError: No API key configured\): .* or give logger.wandb.offline=true"
    ):
        train_gpt.check_loggers(trainer)


def test_without_a_logger_there_are_no_metrics(tmp_path: Path):
    from lightning_lance.examples import train_gpt

    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=["logger=none", f"output_dir={tmp_path}"])
    assert train_gpt.make_trainer(config).loggers == []


def test_lines_of_progress_are_seldom(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    from lightning_lance.examples import on_screen

    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        max_steps=3000,
        global_step=1200,
        callback_metrics={"tokens_per_second": torch.tensor(12345.6)},
    )
    now = [100.0]
    monkeypatch.setattr(on_screen.time, "monotonic", lambda: now[0])
    lines = on_screen.ProgressLines()
    with caplog.at_level("INFO"):
        for seconds in (0, 10, 29, 30, 59, 61):
            now[0] = 100.0 + seconds
            lines.on_train_batch_end(trainer)
    assert caplog.messages == ["step 1,200 of 3,000, 12,346 tokens/s"] * 3
    lines = on_screen.ProgressLines()
    trainer.is_global_zero = False
    lines.on_train_batch_end(trainer)
    assert len(caplog.messages) == 3


def test_two_processes_by_way_of_hydra(tmp_path: Path):
    """Lightning starts the second process itself, with Hydra's overrides: one output folder, one store."""
    write_texts(tmp_path)
    code, out, err = run(
        Path(COMMAND[0]), tmp_path, "train", *SMALL, "trainer.devices=2", "+trainer.strategy=ddp", "trainer.max_steps=2"
    )
    assert code == 0, err
    assert out.count(".lance: 40 documents, ") == 1
    assert out.count("--- the model goes on ---") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outputs", "texts"]
    assert [row["step"] for row in rows(tmp_path / "outputs/metrics.csv")] == ["0", "1"]


def test_what_cannot_be_is_told_in_one_sentence(tmp_path: Path):
    code, out, err = run(SCRIPT, tmp_path, "max_documents=0")
    assert (code, out) == (1, "")
    assert err == "error: max_documents is 0: expected a positive whole number, or null for no bound.\n"


def test_a_log_for_programs_is_json(trained: tuple[Path, str]):
    folder, _ = trained
    overrides = ["output_dir=json", "trainer.max_steps=1", "progress=json", "logger=none"]
    code, out, err = run(Path(COMMAND[0]), folder, "train", *SMALL, *overrides)
    assert (code, err) == (0, "")
    logged = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    (step,) = [line for line in logged if line["event"] == "trained"]
    assert step["message"].startswith("step 1 of 1, loss ")
    assert (step["level"], step["step"]) == ("info", 1)
    assert 5 < step["train_loss"] < 6.5


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.batch_format=huggingface"], "data.batch_format is 'huggingface', but the sample GPT takes `targets`"),
        (
            ["model.n_head=3"],
            "The model cannot be made: n_embd=128 with n_head=3 makes heads of unequal size, expected",
        ),
        (["trainer=gpu"], "trainer.accelerator is 'gpu', but torch finds no GPU here: give trainer=cpu, or install"),
        (
            ["model.learning_rate=x"],
            "The model cannot be made: got learning_rate='x', expected a number above 0, such as",
        ),
        (["model.n_layer=0"], "The model cannot be made: got n_layer=0, expected a whole number from 1 on."),
        (["model.n_embd=0"], "The model cannot be made: got n_embd=0, expected a whole number from 1 on."),
        (
            ["model.context_length=16"],
            "model.context_length is 16, and windows have context_length=256 tokens: leave model.context_length out, or",
        ),
        (["watch=losses", "watch.losses.factor=0.5"], "factor is 0.5: expected a number above 1, such as 1.5."),
        (["watch=monitor", "watch.monitor.port=0"], "port is 0: expected a port, 1 to 65535."),
        (
            ["watch=all", "watch.slices.by=license"],
            "by is 'license', and the documents of the source have no such field: expected one of path; name their column",
        ),
        (["ckpt_path=last"], "There is no checkpoint in '"),
        (["ckpt_path=."], "There is no checkpoint in the folder '.': expected a file, or the folder of a run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(
    overrides: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lightning_lance.examples import train_gpt

    if "trainer=gpu" in overrides and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("there is one here")
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=overrides)
    with pytest.raises(ConfigError) as refused:
        train_gpt.main.__wrapped__(config)
    assert str(refused.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_is_told_before_anything_is_built(tmp_path: Path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/.hydra").touch()
    code, out, err = run(Path(COMMAND[0]), tmp_path, "train", *SMALL)
    assert (code, out) == (1, "")
    assert err.startswith("error: The record of the run cannot be written to '")
    assert "/.hydra' (it is a file): give another output_dir" in err
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
