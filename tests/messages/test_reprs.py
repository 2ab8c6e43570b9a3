"""What a person sees of a corpus, a datamodule and a store: a line, with what was given."""

from pathlib import Path

import numpy as np

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.sources import DatasetSource, TextFilter, python_stdlib
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


def test_defaults_are_not_shown():
    source = python_stdlib(text_filter=TextFilter(max_bytes=9))
    assert repr(source).startswith("FilesSource(patterns=('**/*.py',), root='")
    assert repr(source).endswith(", text_filter=TextFilter(max_bytes=9), name='python_stdlib', follow_links=True)")
    corpus = Corpus(DatasetSource.hub("owner/name"), ByteTokenizer(), "s3://b/x.lance", max_tokens=9)
    shown = "Corpus(DatasetSource(path='owner/name'), ByteTokenizer(), 'max_tokens=9', uri='s3://b/x.lance')"
    assert repr(corpus) == str(corpus) == shown
    data = LanceDataModule({"a": corpus, "b": "s3://b/y.lance", "c": "hf://datasets/o/n"}, 16, 8)
    stores = f"{{'a': {shown}, 'b': ReadyStore('s3://b/y.lance'), 'c': HubStore('hf://datasets/o/n')}}"
    assert repr(data) == str(data) == f"LanceDataModule({stores}, context_length=16, batch_size=8)"


def test_long_values_are_cut_and_secrets_are_not_half_of_them():
    signature = "s3cret" * 30
    urls = [f"https://host/{number}.parquet?X-Amz-Signature={signature}" for number in range(1000)]
    shown = repr(DatasetSource.parquet(urls))
    assert len(shown) < 700
    assert "https://host/3.parquet" in shown
    assert "s3cret" not in shown
    assert "s3cret" not in repr(DatasetSource.parquet([np.str_(urls[0])]))


def test_a_store_of_many_languages_is_a_line(tmp_path: Path):
    made = [document for number in range(30) for document in documents("text", language=f"l{number:02}")]
    store = prepare(ListSource(made), ByteTokenizer(), data_dir=str(tmp_path), val_fraction=0.0)
    assert repr(store).endswith("streams=[train/l00, train/l01, train/l02, train/l03, train/l04, train/l05, train/l06, "
                                "train/l07 and 22 more])")  # fmt: skip
