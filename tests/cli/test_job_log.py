import json
import logging
from pathlib import Path

from lightning_lance.cli.job_log import JsonLines
from tests.support.commands import run


def test_a_job_log_has_an_object_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    arguments = ("prepare", "tokenizer=bytes", "source=files", "source.patterns=['*.txt']", "progress=json")
    code, out, err = run(tmp_path, *arguments, "build.commit_seconds=0", "corpus.val_fraction=0")
    assert (code, err) == (0, "")
    told = [json.loads(line) for line in out.splitlines()]
    assert {"begun", "stored"} <= {line["event"] for line in told}
    assert all({"time", "level", "event", "message"} <= line.keys() for line in told)
    assert (told[-1]["documents"], told[-1]["train_tokens"]) == (1, 5)
    # What is there already is the same object.
    again = json.loads(run(tmp_path, *arguments, "corpus.val_fraction=0")[1])
    assert again | {"time": ""} == told[-1] | {"time": ""}


def test_a_line_of_another_library_stays_one_line():
    record = logging.makeLogRecord({"msg": "two\nlines \x1b[2J of %s", "args": ("others",), "levelname": "WARNING"})
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["message"] == "two\nlines \x1b[2J of others"
    assert json.loads(line)["event"] == "message"
