"""A run's metrics: one file, whatever is logged in which order, and however often the run is resumed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.examples.run_folder import MetricsFile, draw_losses, read_metrics, telling_losses

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
