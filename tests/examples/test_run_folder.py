"""A run's metrics: one file, whatever is logged in which order, and however often the run is resumed."""

from pathlib import Path

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.examples.run_folder import LossCurve, MetricsFile, draw_losses, read_metrics, telling_losses
from tests.support.training import make_trainer

NAMES = st.sampled_from(["train_loss", "val_loss", "data/a b/windows", 'odd "name", with a comma'])


@given(
    lengths=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4),
    metrics=st.lists(st.dictionaries(NAMES, st.integers(-5, 5), min_size=1), min_size=1, max_size=6),
)
def test_a_run_that_is_resumed_has_the_rows_of_one_that_went_through(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, int]], metrics: list[dict[str, int]]
):
    folder = tmp_path_factory.mktemp("run")
    expected: dict[int, dict[str, int]] = {}
    logged = 0
    for first, number in lengths:
        # A checkpoint is of a step that was reached.
        begin = min(first, len(expected))
        logger = MetricsFile(str(folder))
        logger.begin(begin)
        expected = {step: row for step, row in expected.items() if step < begin}
        for step in range(begin, begin + number):
            expected[step] = {}
            for _ in range(2):  # such as those of training and of validation
                row = metrics[logged % len(metrics)]
                logged += 1
                logger.log_metrics(row, step)
                expected[step].update(row)
                # Complete at any time.
                assert as_numbers(read_metrics(folder / "metrics.csv")) == expected
    assert as_numbers(read_metrics(folder / "metrics.csv")) == expected
    assert not list(folder.glob("*.part"))


def as_numbers(rows: list[dict[str, str]]) -> dict[int, dict[str, int]]:
    found = {
        int(row["step"]): {name: int(text) for name, text in row.items() if text and name != "step"} for row in rows
    }
    assert len(found) == len(rows)
    return found


def test_what_an_earlier_run_measured_is_kept_beside(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    for losses in ([1.0, 2.0, 3.0], [4.0]):
        logger = MetricsFile(str(tmp_path))
        logger.begin(0)
        for step, loss in enumerate(losses):
            logger.log_metrics({"train_loss": loss}, step)
    resumed = MetricsFile(str(tmp_path))
    resumed.begin(1)
    resumed.log_metrics({"val_loss": 5.0}, 1)
    assert file.read_text().split() == ["step,train_loss,val_loss", "0,4.0,", "1,,5.0"]
    assert [row["train_loss"] for row in read_metrics(tmp_path / "metrics-1.csv")] == ["1.0", "2.0", "3.0"]
    assert not (tmp_path / "metrics-2.csv").exists()


def log(folder: Path, run: int, begin: int, end: int, last: dict[str, str] | None = None) -> dict[str, str] | None:
    """Log some steps of a run, and return what its checkpoint after them has."""
    logger = MetricsFile(str(folder))
    logger.begin(begin, last)
    for step in range(begin, end):
        logger.log_metrics({"train_loss": float(100 * run + step)}, step)
    return logger.last_row(end)


def losses_in(file: Path) -> list[float]:
    return [float(row["train_loss"]) for row in read_metrics(file)]


def test_each_of_two_runs_in_a_folder_goes_on_with_its_own_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "metrics.csv"
    beside = tmp_path / "metrics-1.csv"
    first = log(tmp_path, 1, 0, 4)
    second = log(tmp_path, 2, 0, 3)
    assert losses_in(file) == [200, 201, 202]
    caplog.set_level("INFO")
    later = log(tmp_path, 1, 4, 6, first)
    assert losses_in(file) == [100, 101, 102, 103, 104, 105]
    assert losses_in(tmp_path / "metrics-2.csv") == [200, 201, 202]
    assert [message.removeprefix(f"{file} ") for message in caplog.messages[-2:]] == [
        "has 3 rows of another run: they are in metrics-2.csv now.",
        "goes on with the rows of this run in metrics-1.csv.",
    ]
    # And back: nothing piles up.
    log(tmp_path, 2, 3, 5, second)
    assert losses_in(file) == [200, 201, 202, 203, 204]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics-1.csv", "metrics.csv"]
    # What the run had after its checkpoint stays beside.
    file.unlink()
    log(tmp_path, 1, 4, 5, first)
    assert losses_in(file) == [100, 101, 102, 103, 104]
    assert losses_in(beside) == [104, 105]
    # Where no file has them, it begins at its step.
    beside.unlink()
    file.write_text("step,train_loss\n5,7.0\n")
    log(tmp_path, 1, 6, 7, later)
    assert losses_in(file) == [106]
    assert losses_in(beside) == [7]


class Losses(lightning.LightningModule):
    """Logs a loss, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("train_loss", float(self.global_step))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, steps: int, checkpoint: Path | None = None) -> Path:
    """Train up to a step, and return the checkpoint of that step."""
    metrics = MetricsFile(str(folder))
    options = {"logger": metrics, "log_every_n_steps": 1, "callbacks": [LossCurve(metrics)], "limit_val_batches": 0}
    trainer = make_trainer(folder, max_steps=steps, **options)
    rows = torch.utils.data.DataLoader(torch.zeros(99, 1))  # type: ignore[arg-type]
    trainer.fit(Losses(), rows, ckpt_path=checkpoint, weights_only=True)
    saved = folder / f"{steps}.ckpt"
    trainer.save_checkpoint(saved)
    return saved


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_checkpoint_knows_the_rows_of_its_run(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    saved = fit(tmp_path, 3)
    assert losses_in(file) == [0, 1, 2]
    # A row may have got more columns since.
    file.write_text("step,train_loss,epoch,more\n2,2.0,0,8\n")
    fit(tmp_path, 4, saved)
    assert [row["more"] for row in read_metrics(file)] == ["8", ""]
    file.write_text("step,train_loss\n2,2.5\n")
    fit(tmp_path, 4, saved)
    assert losses_in(file) == [3]
    # Nothing else is new in it; one of an earlier version goes on with the rows that are there.
    assert torch.load(saved, weights_only=True)["metrics_row"] == {"step": "2", "train_loss": "2.0", "epoch": "0"}


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,train_loss\n0,1.5\nx")
    logger = MetricsFile(str(tmp_path))
    logger.begin(2)
    logger.log_metrics({"train_loss": 0.5}, 2)
    assert file.read_text().split() == ["step,train_loss", "0,1.5", "2,0.5"]


OLD = """step,epoch,train_loss,val_loss
0,0,5.0,
0,0,,5.5
2,0,3.0,
1,0,4.0,
2,0,2.9,
3,0,2.0,
"""


def test_an_older_file_becomes_one_without_doubled_steps_and_nothing_is_lost(tmp_path: Path):
    """Other columns, two rows of one step, steps that were trained twice, and steps beyond the checkpoint."""
    file = tmp_path / "metrics.csv"
    file.write_text("\ufeff" + OLD, encoding="utf-8")
    logger = MetricsFile(str(tmp_path))
    logger.begin(3)
    logger.log_metrics({"train_loss": 1.5, "lr": 0.1}, 3)
    assert file.read_text().split() == [
        "step,epoch,train_loss,val_loss,lr",
        "0,0,5.0,5.5,",
        "1,0,4.0,,",
        "2,0,2.9,,",
        "3,,1.5,,0.1",
    ]
    beside = (tmp_path / "metrics-1.csv").read_text().split()
    assert beside == ["step,epoch,train_loss,val_loss", "2,0,3.0,", "3,0,2.0,"]


@pytest.mark.parametrize("text", ["time,loss\n1,2\n", "step,loss\n0,1\n# a note\n", "a note"])
def test_a_file_that_is_no_metrics_is_kept_whole(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture):
    (tmp_path / "metrics.csv").write_text(text)
    MetricsFile(str(tmp_path)).begin(2)
    assert (tmp_path / "metrics-1.csv").read_text() == text
    assert "lines that are no metrics of steps: it is kept as metrics-1.csv." in caplog.text
    assert not (tmp_path / "metrics-2.csv").exists()


@pytest.mark.parametrize(
    "rows", [[], [{"step": "4", "epoch": "0"}], [{"step": "4", "train_loss": "nan", "val_loss": ""}]]
)
def test_a_picture_of_little_is_drawn_too(tmp_path: Path, rows: list[dict[str, str]]):
    draw_losses(rows, tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    ("names", "telling"),
    [
        (["val_loss/Other", "val_loss", "train_loss"], ["train_loss", "val_loss"]),
        (["val_loss", "val_loss/C", "val_loss/Rust"], ["val_loss", "val_loss/C", "val_loss/Rust"]),
        (["val_loss", "val_loss/C", "val_loss/license/mit"], ["val_loss"]),
        (
            ["val_loss", "val_loss/repo/a/b", "val_loss/repo/a/c"],
            ["val_loss", "val_loss/repo/a/b", "val_loss/repo/a/c"],
        ),
        (["val_loss/C"], ["val_loss/C"]),
    ],
)
def test_a_slice_that_is_all_of_its_data_is_not_shown(names: list[str], telling: list[str]):
    assert telling_losses(names) == telling
