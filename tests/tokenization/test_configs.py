import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import ByteTokenizer, PretrainedTokenizer, TokenizerFile, TrainedBPE
from lightning_lance.tokenization.tokenizer import Tokenizer, train_bpe
from tests.support.hub import Hub
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.warm import BUILDING, server

SOURCE = ListSource(documents(*[f"def function_{i}(argument): return argument * {i}\n" for i in range(40)]))


def test_a_trained_tokenizer_is_trained_once_and_kept(tmp_path: Path):
    choice = TrainedBPE(vocab_size=300)
    first = choice.load(SOURCE, tmp_path)
    (file,) = tmp_path.glob("list-bpe300-*.json")
    written = file.stat().st_mtime_ns
    assert choice.load(SOURCE, tmp_path).digest == first.digest
    assert file.stat().st_mtime_ns == written
    assert TrainedBPE(vocab_size=290).load(SOURCE, tmp_path).vocab_size == 290
    other = ListSource(documents("other text " * 50))
    assert choice.load(other, tmp_path).digest != first.digest
    assert not list(tmp_path.glob("*.part"))


def test_training_ends_after_so_much_text(tmp_path: Path):
    reads = list(TrainedBPE(train_bytes=100)._texts(SOURCE))
    assert sum(len(text) for batch in reads for text in batch) <= 100


def test_a_trained_tokenizer_needs_a_source(tmp_path: Path):
    with pytest.raises(ConfigError, match="needs a source"):
        TrainedBPE().load(None, tmp_path)


TRAIN = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tests.tokenization.test_configs import SOURCE, TrainedBPE
print(TrainedBPE(vocab_size=300).load(SOURCE, Path(sys.argv[1])).digest)
"""


def test_processes_that_train_at_once_get_one_tokenizer(tmp_path: Path):
    processes = [server(BUILDING).start(TRAIN, tmp_path, ROOT) for _ in range(3)]
    assert [process.wait(100) for process in processes] == [0] * 3
    digests = {process.output()[0] for process in processes}
    assert digests == {TrainedBPE(vocab_size=300).load(SOURCE, tmp_path).digest + "\n"}
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_tokenizer_file_or_folder(tmp_path: Path):
    spec = train_bpe([["some text"] * 9], 270).to_json()
    (tmp_path / "tokenizer.json").write_text(spec)
    assert TokenizerFile(str(tmp_path)).load(None, tmp_path).digest == Tokenizer(spec).digest
    assert TokenizerFile(str(tmp_path / "tokenizer.json")).load(None, tmp_path).eos_token == "<|endoftext|>"
    fields, end = json.loads(spec), Tokenizer(spec).vocab_size
    fields["added_tokens"].append({**fields["added_tokens"][0], "content": "<END>", "id": end})
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<END>"}}))
    assert TokenizerFile(str(tmp_path)).load(None, tmp_path).eos_id == end
    assert TokenizerFile(str(tmp_path), "<|endoftext|>").load(None, tmp_path).eos_id == 0
    with pytest.raises(ConfigError, match=r"There is no tokenizer.json at 'nowhere'"):
        TokenizerFile("nowhere").load(None, tmp_path)


def test_bytes_need_nothing(tmp_path: Path):
    assert ByteTokenizer().load(None, tmp_path).encode_batch(pa.array(["a"], pa.large_string())).ids.tolist() == [97]


LOAD = """
from pathlib import Path
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import PretrainedTokenizer
try:
    tokenizer = PretrainedTokenizer({!r}).load(None, Path("."))
    print(tokenizer.eos_token, tokenizer.vocab_size)
except ConfigError as error:
    print(error)
"""


def test_a_tokenizer_of_the_hub(tmp_path: Path):
    for name in ("own/plain", "own/gated"):
        folder = tmp_path / "hub/models" / name
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text(train_bpe([["some text"] * 9], 270).to_json())
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with Hub(tmp_path / "hub") as hub:
        hub.gated.add("own/gated")
        printed = {
            name: hub.run(LOAD.format(name), tmp_path / "home").stdout.strip()
            for name in ("own/plain", "own/gated", "no/such")
        }
    digest = PretrainedTokenizer(str(tmp_path / "hub/models/own/plain")).load(None, tmp_path).digest
    assert digest == train_bpe([["some text"] * 9], 270).digest
    vocab_size = train_bpe([["some text"] * 9], 270).vocab_size
    assert printed["own/plain"] == f"<|endoftext|> {vocab_size}"
    assert "its repository is gated; accept the terms at https://huggingface.co/own/gated" in printed["own/gated"]
    assert "The tokenizer 'no/such' cannot be loaded" in printed["no/such"]
    assert "\n" not in printed["no/such"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "not UTF-8", "empty"])
def test_what_lies_where_a_trained_tokenizer_is_kept_is_refused_in_one_sentence(tmp_path: Path, kind: str):
    """Opening a pipe would block forever."""
    choice = TrainedBPE(vocab_size=300)
    choice.load(SOURCE, tmp_path)
    (file,) = tmp_path.glob("list-bpe300-*.json")
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "dangling link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.write_bytes(b"" if kind == "empty" else b"\xff")
    done = server(BUILDING).run(TRAIN, tmp_path, ROOT, timeout=100)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lightning_lance.errors.ConfigError: ")
    assert file.name in last
    assert os.path.lexists(file)
    assert not (tmp_path / "nowhere").exists()
