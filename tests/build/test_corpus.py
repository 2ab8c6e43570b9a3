"""`Corpus`: built, found, named, and mixed with others."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.sources import DatasetSource, FilesSource
from lightning_lance.tokenization import ByteTokenizer, TokenizerFile, TrainedBPE
from lightning_lance.tokenization.tokenizer import train_bpe
from tests.support.stores import ListSource, documents
from tests.support.training import Recorder, make_trainer

CODE = ListSource(documents(*["abc" * 90] * 20))
TEXT = ListSource(documents(*["xyz" * 90] * 20))


def letters_of(model: Recorder) -> list[set[str]]:
    """Return the letters of each training window."""
    windows = [window for batch in model.seen["train"] for window in batch]
    return [{chr(token) for token in window if token < 256} for window in windows]


def test_a_corpus_is_built_once_and_found_again(tmp_path: Path):
    corpus = Corpus(CODE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    with pytest.raises(StoreError, match="There is no committed token store"):
        corpus.open()
    store = corpus.prepare()
    assert (store.uri, store.fingerprint, store.commit.vocab_size) == (
        corpus.uri,
        corpus.fingerprint,
        corpus.vocab_size,
    )
    again = Corpus(CODE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert again.open().version == store.version
    assert corpus.tokenizer.digest == again.tokenizer.digest


@pytest.mark.parametrize("change", [{"source": TEXT}, {"val_fraction": 0.5}, {"tokenizer": TrainedBPE(258)}])
def test_another_store_at_its_place_is_told_before_a_tokenizer_is_trained(
    change: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    given = {"source": CODE, "tokenizer": TrainedBPE(300), "uri": tmp_path / "x.lance", "data_dir": tmp_path / "a"}
    if "tokenizer" in change:
        # As many as it makes of two letters: the merges of "abc" * 90.
        given["source"] = ListSource(documents(*["the quick brown fox jumps over it"] * 9))
    Corpus(**given).prepare()
    caplog.clear()
    with pytest.raises(StoreError, match=r"x.lance' was built with other settings \("):
        Corpus(**{**given, **change, "data_dir": tmp_path / "b"}).prepare()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/text").touch()
    with pytest.raises(ConfigError, match="exists already and is not a token store"):
        Corpus(**{**given, "uri": tmp_path / "mine", "data_dir": tmp_path / "b"}).prepare()
    assert caplog.messages == []
    assert not (tmp_path / "b").exists()


def test_the_budget_is_no_part_of_the_fingerprint_and_a_larger_one_continues(tmp_path: Path):
    small, large = (Corpus(CODE, ByteTokenizer(), data_dir=tmp_path, max_documents=number) for number in (5, 9))
    assert small.fingerprint == large.fingerprint
    assert small.prepare().commit.documents == 5
    with pytest.raises(StoreError, match="is unfinished"):
        large.open()
    assert large.prepare().commit.documents == 9


def test_several_corpora_are_built_and_mixed_by_name(tmp_path: Path):
    text = Corpus(TEXT, ByteTokenizer(), tmp_path / "text.lance", val_fraction=0.0)
    text.prepare()
    code = Corpus(CODE, ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0)
    data = LanceDataModule({"code": code, "text": tmp_path / "text.lance"}, 16, 8, mix={"code": 3, "text": 1})
    model = Recorder()
    make_trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(model, datamodule=data)
    found = letters_of(model)
    assert len(found) == 32
    assert sum(letters <= {*"abc"} for letters in found) == 24
    assert sum(letters <= {*"xyz"} for letters in found) == 8
    assert Path(code.uri).exists()


def test_several_corpora_without_weights_are_served_alike(tmp_path: Path):
    corpora = {
        name: Corpus(source, ByteTokenizer(), data_dir=tmp_path / name, val_fraction=0.0)
        for name, source in {"code": CODE, "text": TEXT}.items()
    }
    model = Recorder()
    make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=LanceDataModule(corpora, 16, 4))
    assert {frozenset(letters) for letters in letters_of(model)} == {frozenset("abc"), frozenset("xyz")}


def test_a_run_of_several_corpora_is_resumed(tmp_path: Path):
    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Recorder, lightning.Trainer]:
        corpora = {
            name: Corpus(source, ByteTokenizer(), data_dir=tmp_path / name, val_fraction=0.0)
            for name, source in {"code": CODE, "text": TEXT}.items()
        }
        data = LanceDataModule(corpora, 16, 4, mix={"code": 1, "text": 2}, seed=5)
        model, trainer = Recorder(), make_trainer(tmp_path, max_steps=steps, limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
        return model, trainer

    whole, _ = fit(6)
    first, trainer = fit(3)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    second, _ = fit(6, tmp_path / "x.ckpt")
    assert first.seen["train"] + second.seen["train"] == whole.seen["train"]


def tokenizer_of(folder: Path, text: str) -> TokenizerFile:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(train_bpe([[text] * 9], 260).to_json())
    return TokenizerFile(str(folder), "<|endoftext|>")


@pytest.mark.parametrize("ready", [False, True])
def test_different_tokenizers_are_refused_before_anything_is_built(tmp_path: Path, ready: bool):
    code = Corpus(CODE, tokenizer_of(tmp_path / "a", "abc"), data_dir=tmp_path / "code")
    text = Corpus(TEXT, tokenizer_of(tmp_path / "b", "xyz"), data_dir=tmp_path / "text")
    other: Any = text.prepare().uri if ready else text
    with pytest.raises(ConfigError, match="The corpora 'code' and 'text' have different tokenizers"):
        LanceDataModule({"code": code, "text": other}, 16, 8).prepare_data()
    assert not (tmp_path / "code").exists()


def test_tokenizers_that_would_be_trained_on_each_source_are_refused_at_once(tmp_path: Path):
    code, text = (Corpus(source, TrainedBPE(300), data_dir=tmp_path) for source in (CODE, TEXT))
    with pytest.raises(
        ConfigError, match=r"'code' is trained on its own source.*TokenizerFile of the x\.tokenizer\.json"
    ):
        LanceDataModule({"code": code, "text": text}, 16, 8)
    code.prepare()
    kept = TokenizerFile(code.uri.replace(".lance", ".tokenizer.json"))
    corpora = {"code": code, "text": Corpus(TEXT, kept, data_dir=tmp_path)}
    LanceDataModule({**corpora, "code": Corpus(CODE, kept, data_dir=tmp_path)}, 16, 8).prepare_data()


@pytest.mark.parametrize(
    ("corpus", "sentence"),
    [
        ({}, "corpus is an empty mapping"),
        ({1: "x.lance"}, "corpus has the name 1: expected a word"),
        ({"a": None, "b": "x.lance"}, "corpus.a is None: expected a Corpus"),
        (["a.lance", "b.lance"], "give several by name, as in {'code': corpus, 'prose': 'prose.lance'}"),
        (CODE, "make a corpus of it, as in Corpus(source, tokenizer)"),
        ("", "corpus is '': expected a Corpus, the place of a store"),
    ],
)
def test_what_is_no_corpus_is_named(corpus: Any, sentence: str):
    with pytest.raises(ConfigError) as refused:
        LanceDataModule(corpus, 16, 8)
    assert sentence in str(refused.value)


def test_names_in_mix_are_those_of_the_corpora():
    with pytest.raises(ConfigError, match=r"mix has 'cod': did you mean 'code'\? expected names of the stores, code"):
        LanceDataModule({"code": "a.lance", "text": "b.lance"}, 16, 8, mix={"cod": 1})


def test_options_of_a_bucket_belong_to_the_corpus_that_is_built():
    with pytest.raises(ConfigError, match=r"are for stores that are given by their place.*corpus\.storage_options"):
        LanceDataModule(Corpus(CODE, ByteTokenizer()), 16, 8, storage_options={"aws_region": "eu"})
    shown = repr(LanceDataModule("s3://b/x.lance", 16, 8, storage_options={"aws_secret_access_key": "hunter2"}))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source": CODE, "tokenizer": ByteTokenizer()}, "LanceDataModule has no source: give it a corpus"),
        ({"uri": "x.lance"}, "LanceDataModule has no uri: give it the place of a store as the corpus"),
        ({"max_tokens": 5}, r"LanceDataModule has no max_tokens: it belongs to the corpus, .*max_tokens=\.\.\."),
        ({"min_tokens": 5}, r"LanceDataModule has no min_tokens: it is about the build, build=\{'wait_for_tokens'"),
    ],
)
def test_arguments_of_earlier_versions_are_told_with_their_new_place(arguments: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        LanceDataModule(context_length=16, batch_size=8, **arguments)
    with pytest.raises(ConfigError, match="LanceDataModule has no source"):
        LanceDataModule(CODE, ByteTokenizer(), 16, 8)  # type: ignore[misc]
    with pytest.raises(ImportError, match=r"Corpus\(source, tokenizer, \.\.\.\)\.prepare\(\)"):
        from lightning_lance import prepare  # noqa: F401


@pytest.mark.parametrize("name", ["uri", "a=b", " a", "a\n", "", "\x1b[31m"])
def test_names_that_no_command_could_take_are_refused(name: str):
    with pytest.raises(ConfigError, match="corpus has the name"):
        LanceDataModule({name: "x.lance", "y": "y.lance"}, 16, 8)


def test_two_corpora_of_one_place_are_refused_before_anything_is_built(tmp_path: Path):
    place = tmp_path / "x.lance"
    corpora: dict[str, Any] = {"a": Corpus(CODE, ByteTokenizer(), place), "b": Corpus(TEXT, ByteTokenizer(), place)}
    for second in (corpora["b"], str(place), Corpus(CODE, ByteTokenizer(), place, max_documents=5)):
        with pytest.raises(ConfigError, match="The corpora 'a' and 'b' are one store"):
            LanceDataModule({**corpora, "b": second}, 16, 8, build={"rebuild": True}).prepare_data()
    assert not place.exists()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: Corpus(CODE, ByteTokenizer(), rebuild=True),  # type: ignore[call-arg]
            r"Corpus has no rebuild: it is about the build, corpus\.prepare\(rebuild=\.\.\.\), or BuildOptions\(rebuild=",
        ),
        (
            lambda: Corpus(CODE, ByteTokenizer(), min_tokens=3),  # type: ignore[call-arg]
            r"Corpus has no min_tokens: .* BuildOptions\(wait_for_tokens=",
        ),
        (
            lambda: Corpus(CODE, ByteTokenizer(), context_length=3),  # type: ignore[call-arg]
            r"Corpus has no context_length: it is about what is served, LanceDataModule\(corpus, .*context_length=",
        ),
        (
            lambda: Corpus(CODE, ByteTokenizer()).prepare(min_tokens=3),  # type: ignore[call-arg]
            "prepare has no min_tokens: it is wait_for_tokens.",
        ),
        (
            lambda: Corpus(CODE, ByteTokenizer()).prepare(max_tokens=3),  # type: ignore[call-arg]
            r"prepare has no max_tokens: it belongs to the corpus, Corpus\(source, tokenizer, max_tokens=",
        ),
        (
            lambda: Corpus(CODE, tokeniser=ByteTokenizer()),  # type: ignore[call-arg]
            r"^Corpus has no tokeniser: did you mean tokenizer\?$",
        ),
        (
            lambda: Corpus(CODE, ByteTokenizer()).prepare(comit_seconds=3),  # type: ignore[call-arg]
            r"^Corpus\.prepare has no comit_seconds: did you mean commit_seconds\?$",
        ),
        (
            lambda: LanceDataModule("x.lance", context_len=16, batch_size=8),  # type: ignore[call-arg]
            r"^LanceDataModule has no context_len: did you mean context_length\?$",
        ),
    ],
)
def test_an_argument_at_the_wrong_place_is_told_the_right_one(call: Callable[[], Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        call()


def test_an_argument_that_is_like_none_is_pythons_to_refuse():
    with pytest.raises(TypeError, match="unexpected keyword argument 'xyz'"):
        Corpus(CODE, ByteTokenizer(), xyz=1)  # type: ignore[call-arg]


def test_a_store_in_the_folder_of_another_is_refused_before_a_tokenizer_is_trained(tmp_path: Path):
    outer = Corpus(CODE, ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0).prepare()
    before = sorted(tmp_path.rglob("*"))
    for place in ({"uri": tmp_path / "x.lance/sub/y.lance"}, {"data_dir": tmp_path / "x.lance/sub"}):
        with pytest.raises(
            ConfigError, match=r"is '.*/x.lance/sub.*', in the folder of the store '.*/x.lance': give a place"
        ):
            Corpus(CODE, TrainedBPE(300), **place).prepare()  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before
    assert outer.num_tokens() > 0


def test_another_working_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths mean what they meant when the source and the tokenizer were made."""
    for folder in ("here", "there"):
        (tmp_path / folder / "texts").mkdir(parents=True)
        (tmp_path / folder / "texts/a.txt").write_text(folder)
        (tmp_path / folder / "lines.jsonl").write_text(f'{{"text": "{folder}"}}\n')
        (tmp_path / folder / "tokenizer.json").write_text(train_bpe([[folder * 9]], 260).to_json())
    monkeypatch.chdir(tmp_path / "here")
    made = [
        Corpus(source, TokenizerFile("tokenizer.json"), val_fraction=0.0)
        for source in (
            FilesSource(["texts/*.txt"]),
            FilesSource(["*.txt"], root="texts"),
            DatasetSource.jsonl(["*.jsonl"]),
            DatasetSource.jsonl(["lines.jsonl"], val_files=["no.jsonl"]).part(val=False),
        )
    ]
    fingerprints = [Corpus(corpus.source, corpus.tokenizer_config, val_fraction=0.0).fingerprint for corpus in made]
    monkeypatch.chdir(tmp_path / "there")
    for corpus, fingerprint in zip(made, fingerprints, strict=True):
        assert corpus.fingerprint == fingerprint
        store = corpus.prepare()
        assert store.uri.startswith(str(tmp_path / "here"))
        assert store.tokenizer.decode(store.read([0], store.num_tokens())[0].tolist()).startswith("here")
    assert pickle.loads(pickle.dumps(made[0])).fingerprint == fingerprints[0]


def test_what_the_fingerprint_is_of_cannot_be_changed():
    corpus = Corpus(CODE, ByteTokenizer())
    for name in ("source", "tokenizer_config", "budget", "data_dir", "storage_options", "uri"):
        with pytest.raises(AttributeError):
            setattr(corpus, name, TEXT)


def test_a_single_corpus_may_have_a_name_and_a_weight(tmp_path: Path):
    corpus = Corpus(CODE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    data = LanceDataModule({"code": corpus}, 16, 8, mix={"code": 2})
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader()) > 0


def test_a_run_that_waits_rebuilds_nothing():
    with pytest.raises(ConfigError, match="a run that waits builds nothing"):
        LanceDataModule(Corpus(CODE, ByteTokenizer()), 16, 8, build={"rebuild": True, "wait_for_tokens": 5})
    with pytest.raises(ConfigError, match=r"build has the key 'min_tokens': did you mean 'wait_for_tokens'\?"):
        LanceDataModule("x.lance", 16, 8, build={"min_tokens": 5})


def test_a_module_that_was_fitted_can_be_pickled(tmp_path: Path):
    data = LanceDataModule(Corpus(CODE, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0), 16, 8)
    make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(Recorder(), datamodule=data)
    data.trainer = None
    again = pickle.loads(pickle.dumps(data))
    assert again.store.uri == data.store.uri


def test_an_old_call_with_keywords_is_told_its_new_place_too():
    for call in (
        lambda: LanceDataModule(CODE, ByteTokenizer(), 64, batch_size=8),  # type: ignore[misc,arg-type]
        lambda: LanceDataModule(CODE, ByteTokenizer(), context_length=64, batch_size=8),  # type: ignore[misc,arg-type]
    ):
        with pytest.raises(ConfigError, match="LanceDataModule has no source: give it a corpus"):
            call()
