"""A model is trained on a token store of the Hub, from the command line, and goes on. The Hub is on 127.0.0.1."""

import csv
import shutil
from pathlib import Path

from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.hub import ANEW, Hub
from tests.support.stores import ListSource, documents
from tests.support.warm import TRAINING, server

SOURCE = ListSource(documents(*(f"text {number} of the store" * 9 for number in range(40))))
SCRIPT = """
import sys
from lightning_lance.cli.main import main

SMALL = [
    "data.corpus=hf://datasets/me/tokens", "context_length=16", "data.batch_size=2", "model.n_layer=1", "model.n_head=2",
    "model.n_embd=16", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1",
]
for words in (
    ["train", *SMALL, "trainer.max_steps=2"],
    ["train", *SMALL, "trainer.max_steps=4", "ckpt_path=last"],
    ["show", "outputs"],
    ["verify-resume", "outputs"],
):
    sys.argv = ["lightning-lance", *words]
    main()
"""


def test_a_model_is_trained_from_the_hub_and_goes_on(tmp_path: Path):
    store = prepare(SOURCE, ByteTokenizer(), tmp_path / "mine.lance", val_fraction=0.3)
    repository = tmp_path / "hub/datasets/me/tokens"
    shutil.copytree(store.uri, repository / "store.lance")
    shutil.copy(tmp_path / "mine.tokenizer.json", repository / "store.tokenizer.json")
    home = tmp_path / "home"
    home.mkdir()
    with Hub(tmp_path / "hub") as hub:
        done = server(TRAINING).run(ANEW + SCRIPT, folder=home, environment=hub.environment(home), timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        files = [request.file for request in hub.requests if request.sent]
    # Downloaded once, for all four commands.
    assert len(files) == len({*files})
    assert any(file.startswith("store.lance/data/") for file in files)
    assert done.stdout.count("Downloading hf://datasets/me/tokens at commit ") == 1
    assert "step 4: train_loss " in done.stdout
    assert "step 4 of outputs, rank 0 of 1 (to come): 2 windows of 16 + 1 tokens" in done.stdout
    assert "digest OK: 8 windows recomputed" in done.stdout
    with (home / "outputs/metrics.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["0", "1", "2", "3"]
    assert [file.name for file in (home / "outputs/checkpoints").glob("last*")] == ["last.ckpt"]
