"""A store with all that a report tells, and documents that would act if a page let them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from lightning_lance import TokenStore
from lightning_lance.documents.batch import document_batch
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import Document, ListSource

SCRIPT = "</script></style><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
TRICKS = f"{SCRIPT} \u202eabc\u2066 \x00\x1b[31m \ufeff\u200b & &amp; {{{{ 7 * 7 }}}} \ud7ff\U000e0041 \"'><b>"
LANGUAGES = ("Python", "Rust", f"<i>{SCRIPT}\u202e")
LICENSES = ("mit", None, "\"'><script>window.hit = 3</script>")


@dataclasses.dataclass(frozen=True)
class LicensedSource(ListSource):
    """Documents with a path and a license, both as hostile as their texts."""

    metadata: Sequence[str] = ("repo", "path", "license")

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for first, (text, language, repo) in enumerate(self.documents[shard * self.per_shard :][: self.per_shard]):
            if first >= row:
                number = shard * self.per_shard + first
                columns = {
                    "text": pa.array([text], pa.large_string()),
                    "repo": pa.array([repo], pa.string()),
                    "path": pa.array([f"a/{number}\x00\u2067<b>.py"], pa.string()),
                    "license": pa.array([LICENSES[number % 3]], pa.string()),
                }
                yield document_batch(columns, pa.array([language], pa.string()), first, self.wanted, TextFilter())


def hostile_documents() -> tuple[Document, ...]:
    """Return sixty documents of some lengths, three languages and many repositories."""
    found = []
    for i in range(60):
        text = f"{TRICKS} {i}\n" * (1 + i % 7 * (5 if i % 20 == 0 else 1))
        found.append((text, LANGUAGES[i % 3], f"owner/{i % 20}{SCRIPT if i % 20 == 7 else ''}"))
    return tuple(found)


def hostile_store(folder: Path) -> TokenStore:
    """Build the store."""
    return prepare(LicensedSource(hostile_documents()), ByteTokenizer(), folder / "hostile.lance", val_fraction=0.2)
