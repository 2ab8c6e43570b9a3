"""Make corpora of one's own files: Parquet and JSON Lines, on this disk or on the Hub."""

from lightning_lance import Corpus
from lightning_lance.sources import DatasetSource
from lightning_lance.tokenization import ByteTokenizer

parquet = DatasetSource.parquet(["corpus/*.parquet"], columns={"text": "content"}, language_column="lang")
jsonl = DatasetSource.jsonl(["corpus/*.jsonl"])
hub = DatasetSource.hub("HuggingFaceFW/fineweb", config="sample-10BT")

if __name__ == "__main__":
    for source in (parquet, jsonl):
        store = Corpus(source, ByteTokenizer(), val_fraction=0.1).prepare()
        print(store)
        print(store.decode(store.read([0], 40)[0]))
    print(Corpus(hub, ByteTokenizer(), max_tokens=1_000_000_000))  # reads nothing until it is prepared
