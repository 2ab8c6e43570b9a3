"""The page and the Parquet file of a report, without a browser."""

import base64
import hashlib
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import lance
import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_lance import TokenStore
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError
from lightning_lance.inspection import describe_store, write_report, write_token_counts
from lightning_lance.inspection.report.counting import count
from lightning_lance.inspection.report.spans import Reading
from tests.support.reported import LANGUAGES, hostile_documents, hostile_store
from tests.support.stores import ListSource, documents

VOID = {"meta", "br"}
SECTIONS = {
    "languages", "license", "repo", "lengths", "tokens", "compression", "documents", "plan", "windows", "settings",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return hostile_store(tmp_path_factory.mktemp("stores"))


def all_tokens(store: TokenStore) -> np.ndarray:
    found = [
        store.read(np.asarray([0]), store.num_tokens(split), split)[0] for split in SPLITS if store.num_tokens(split)
    ]
    return np.concatenate(found)


class Page(HTMLParser):
    """Reads a page: its elements, its tables by caption, and the tokens of its windows."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.windows: list[list[int]] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs)
        self.elements.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "details":
            self.windows.append([])
        elif tag == "i":
            self.windows[-1].append(int(given["data-id"] or -1))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.texts.pop("caption")] = self._rows

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style", "title", "caption"):
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        elif {"td", "th"} & {*self.open}:
            self._rows[-1][-1] += data


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_a_page_tells_what_the_store_holds_and_nothing_in_it_acts(store: TokenStore, tmp_path: Path):
    before = {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()}
    written = write_report(
        store,
        tmp_path / "r.html",
        counts=tmp_path / "c.parquet",
        context_length=64,
        max_steps=10,
        batch_size=4,
        world_size=2,
    )
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert written.bytes == len(text.encode()) < 2_000_000
    assert (written.is_exact, written.tokens, written.tokens_read) == (
        True,
        store.commit.stored_tokens,
        store.commit.stored_tokens,
    )
    assert {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()} == before
    page = Page(text)
    assert page.open == []

    # Nothing of the documents is more than text, and nothing is from elsewhere.
    assert (
        re.findall(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0041]", text
        )
        == []
    )
    tags = Counter(tag for tag, _ in page.elements)
    assert (tags["script"], tags["style"], tags["title"]) == (1, 1, 1)
    assert not {*tags} & {
        "img",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "b",
        "input",
        "use",
        "image",
        "foreignobject",
    }
    for tag, given in page.elements:
        assert not [
            name for name in given if name.startswith("on") or name in ("style", "src", "srcdoc", "xlink:href")
        ], (tag, given)
        assert (given.get("href") or "#").startswith("#")
    allowed = [given["content"] for _, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"]
    hashes = {
        name: base64.b64encode(hashlib.sha256(page.texts[name].encode()).digest()).decode()
        for name in ("script", "style")
    }
    assert allowed == [
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'"
    ]
    assert "49" not in re.findall(r"\{\{ (\d+)", text)

    # All that it has to tell, with a table beside each picture.
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len({*ids}) == len(ids)
    assert {*SECTIONS} <= {*ids}
    assert {given["href"] for tag, given in page.elements if tag == "a"} == {
        f"#{name}" for name in (*SECTIONS, "content")
    }
    assert tags["svg"] == 6
    assert ("html", {"lang": "en"}) in page.elements
    assert (tags["main"], tags["header"], tags["footer"], tags["nav"], tags["h1"]) == (1, 1, 1, 1, 1)
    assert tags["caption"] == tags["table"] == tags["thead"]
    assert all("scope" in given for tag, given in page.elements if tag == "th")

    # The same numbers as the store.
    tokens = all_tokens(store)
    languages = {
        row[0]: [number(cell) for cell in (row[1], row[2], *row[4:])]
        for row in page.tables["Documents and tokens by language, and tokens of each split"][1:]
    }
    info = describe_store(store.uri)
    assert len(languages) == len(LANGUAGES)
    for one in info.languages:
        name = one.language.replace("\u202e", "\\u202e")
        assert languages[name] == [one.documents, one.tokens, *(one.split_tokens[split] for split in SPLITS)]
    for caption in ("Documents and tokens by license", "Documents and tokens by repository"):
        rows = page.tables[caption][1:]
        assert sum(number(row[1]) for row in rows) == 60
        assert sum(number(row[2]) for row in rows) == len(tokens)
    repositories = page.tables["Documents and tokens by repository"]
    assert len(repositories) == 1 + 12 + 1
    assert repositories[-1][0] == "8 others"
    licenses = {row[0]: number(row[1]) for row in page.tables["Documents and tokens by license"][1:]}
    assert licenses == {"mit": 20, "(unknown)": 20, "\"'><script>window.hit = 3</script>": 20}
    lengths = sorted(len(text.encode()) + 1 for text, _, _ in hostile_documents())
    shown = {row[0]: row[1] for row in page.tables["Tokens of a document, its EOS token included"][1:]}
    assert (number(shown["shortest"]), number(shown["longest"])) == (lengths[0], lengths[-1])
    assert number(shown["median"]) == lengths[29]
    assert shown["mean"] == f"{np.mean(lengths):,.1f}"
    frequent = page.tables["The most frequent tokens"][1:]
    expected = np.bincount(tokens, minlength=257)
    assert [number(row[2]) for row in frequent] == sorted(expected.tolist(), reverse=True)[:24]
    assert all(expected[int(row[0])] == number(row[2]) for row in frequent)
    assert f"<strong>{(expected == 0).sum()}</strong> of 257 ids" in text
    # Each byte is a token.
    assert {row[1] for row in page.tables["Bytes of UTF-8 and characters per token"][1:]} <= {"1.00", "1.01"}
    in_windows = page.tables["Windows by the number of documents in them"][1:]
    whole = [(stream.num_tokens - 1) // 64 for stream in store.streams("train")]
    assert sum(number(row[1]) for row in in_windows) == sum(whole)
    repeated = page.tables["Coverage and repetition"][1:]
    windows_of_an_epoch = number(repeated[0][1])
    assert (repeated[0][0], number(repeated[0][2])) == ("all", 10 * 4 * 2)
    assert float(repeated[0][3]) == pytest.approx(80 / windows_of_an_epoch, rel=0.01)

    # Windows of each language, with the ids that are stored.
    assert len(page.windows) == 24
    stored = "".join(map(chr, store.read(np.asarray([0]), store.num_tokens("train"), "train")[0]))
    for ids_of_window in page.windows:
        assert len(ids_of_window) == 64
        assert "".join(map(chr, ids_of_window)) in stored
    names = re.findall(r'<bdi class="name">(.*?)</bdi>', text)
    assert sorted(Counter(names).values()) == [8, 8, 8]

    # As a table, all ids.
    table = pq.read_table(tmp_path / "c.parquet")
    assert table["count"].to_pylist() == expected.tolist()
    assert table["bytes"].to_pylist()[:256] == [bytes([byte]) for byte in range(256)]
    assert table["text"].to_pylist()[250] is None
    about = json.loads(table.schema.metadata[b"lightning_lance.token_counts"])
    assert (about["tokenizer"], about["exact"]) == (store.tokenizer.digest, True)


@pytest.mark.parametrize("at_once", [331, 1000])
def test_counts_are_those_of_all_tokens_wherever_the_reading_is_cut(
    store: TokenStore, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_lance.inspection.report.spans._AT_ONCE", at_once)
    found = count(Reading(store, None))
    assert found.tokens.tolist() == np.bincount(all_tokens(store), minlength=257).tolist()
    assert found.documents is not None
    assert found.documents.lengths == Counter(len(text.encode()) + 1 for text, _, _ in hostile_documents())
    assert sum(tokens for _, tokens in found.documents.groups["repo"].values()) == found.read == found.total


def test_a_sample_is_near_to_all_and_knows_whole_documents(store: TokenStore):
    lengths = Counter(len(text.encode()) + 1 for text, _, _ in hostile_documents())
    shares = np.bincount(all_tokens(store), minlength=257) / store.commit.stored_tokens
    for seed in range(5):
        found = count(Reading(store, store.commit.stored_tokens // 3, seed))
        assert not found.is_exact
        assert found.read == found.tokens.sum()
        assert 0.2 < found.read / found.total < 0.34
        assert np.abs(found.tokens / found.read - shares).max() < 0.03
        assert found.documents is not None
        assert found.documents.lengths <= lengths
        assert sum(tokens for _, tokens in found.documents.groups["license"].values()) == found.read
    again = count(Reading(store, store.commit.stored_tokens // 3, 4))
    assert np.array_equal(again.tokens, found.tokens)


def test_a_file_of_others_stays_and_an_earlier_report_is_replaced(store: TokenStore, tmp_path: Path):
    page = tmp_path / "r.html"
    page.write_text("mine")
    with pytest.raises(ConfigError, match="a file that is no earlier report"):
        write_report(store, page)
    assert page.read_text() == "mine"
    write_report(store.uri, page, overwrite=True, windows=1)
    first = page.read_bytes()
    write_report(store.uri, page, windows=2)
    assert page.read_bytes() != first
    (tmp_path / "link.html").symlink_to(page)
    for name, said in (
        ("link.html", "a link"),
        ("none/r.html", "there is no folder"),
        ("", "a folder"),
        (Path(store.uri) / "r.html", "inside the token store"),
    ):
        with pytest.raises(ConfigError, match=said):
            write_report(store, tmp_path / name)
    with pytest.raises(ConfigError, match="a file that is no earlier report"):
        write_token_counts(store, page)
    write_token_counts(store, tmp_path / "c.parquet", sample=10)
    write_token_counts(store, tmp_path / "c.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "link.html", "r.html"]


def test_a_store_without_tokenizer_metadata_or_windows_has_a_page(tmp_path: Path, byte_store):
    source = ListSource(documents("abc", "de", language=""), metadata=())
    made = byte_store(source=source, uri=tmp_path / "x.lance")
    (tmp_path / "x.tokenizer.json").unlink()
    write_report(made.uri, tmp_path / "r.html", counts=tmp_path / "c.parquet", max_steps=1, batch_size=1)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert "Unknown without the tokenizer" in text
    assert "No language has the 1,024 + 1 tokens of a window" in text
    assert len(page.windows) == 1
    assert page.windows[0] == all_tokens(made).tolist()
    assert pq.read_schema(tmp_path / "c.parquet").names == ["id", "count"]


def test_a_store_that_another_program_has_changed_has_a_page_that_says_so(tmp_path: Path):
    uri = hostile_store(tmp_path).uri
    lance.dataset(uri).delete("language = 'Rust'")
    write_report(uri, tmp_path / "r.html", context_length=64)
    page = Page((tmp_path / "r.html").read_text())
    assert {"class": "problem"} in [given for tag, given in page.elements if tag == "p"]
    assert "The most frequent tokens" in page.tables
    assert page.windows == []


def test_without_a_package_a_sentence_says_what_to_install(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=r"run pip install 'lightning-lance\[report\]'"):
        write_report(store, tmp_path / "r.html")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="The planned run lacks batch_size"):
        write_report(store, tmp_path / "r.html", max_steps=3)
    assert not [*tmp_path.iterdir()]
