"""The data card of a store: its facts are those of the documents, and no name of others becomes markup."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import yaml
from markdown_it import MarkdownIt

from lightning_lance.documents.batch import document_batch
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError
from lightning_lance.inspection import write_card
from lightning_lance.inspection.facts import _public, facts_of
from lightning_lance.inspection.licenses import hub_ids, license_name, spdx_url
from lightning_lance.maintenance import forget
from lightning_lance.messages.escaping import shown
from lightning_lance.tokenization import ByteTokenizer
from tests.support.commands import Run
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

HOSTILE = (
    "---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1)) ![y](http://evil/z.png)",
    "``` ` a | b \\| c",
    "* **bold** _it_ # https://evil.example",
    '"}], "@context": "http://evil',
    "\x1b[31m\u202e{{ jinja }}",
    " ",
)


class Licensed(ListSource):
    """Documents whose third value is their license; none for an empty one."""

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for first in range(shard * self.per_shard + row, min((shard + 1) * self.per_shard, len(self.documents))):
            text, language, given = self.documents[first]
            columns = {
                "text": pa.array([text], pa.large_string()),
                "license": pa.array([given or None], pa.string()),
                "path": pa.array([f"{first}.txt"], pa.string()),
            }
            yield document_batch(
                columns, pa.array([language]), first - shard * self.per_shard, self.wanted, TextFilter()
            )


def licensed(*documents: tuple[str, str, str]) -> Licensed:
    return Licensed(documents, metadata=("license", "path"))


# rdflib, within mlcroissant.
@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
def test_the_counts_are_those_of_the_documents_and_croissant_reads_them(tmp_path: Path):
    random = Random(0)
    languages, licenses = ["Python", "C", ""], ["mit", "MIT", "apache-2.0", "", "My own", "['mit', 'GPL-3.0-only']"]
    made = [
        (
            "x" * random.choice([1, 30, 2047, 2048, 5000]) + str(number),
            random.choice(languages),
            random.choice(licenses),
        )
        for number in range(120)
    ]
    store = prepare(licensed(*made), ByteTokenizer(), tmp_path / "s.lance", val_fraction=0.3, commit_tokens=20_000)
    facts = facts_of(store.uri)
    assert facts.licenses is not None
    found = {one.name: (one.documents, one.tokens) for one in facts.licenses}
    documents_, tokens = Counter[str](), Counter[str]()
    for text, _, given in made:
        documents_[license_name(given)] += 1
        tokens[license_name(given)] += len(text) + 1
    assert found == {name: (documents_[name], tokens[name]) for name in documents_}
    assert {*found} == {"MIT", "Apache-2.0", "not given", "My own", "GPL-3.0-only, MIT"}
    assert list(facts.license_ids) == ["apache-2.0", "gpl-3.0", "mit", "other", "unknown"]
    for split in ("train", "val"):
        assert sum(one.splits[split].tokens for one in facts.licenses if split in one.splits) == store.num_tokens(split)
    card, croissant = write_card(store.uri, tmp_path / "card.md")
    # Imported here: it takes seconds.
    import mlcroissant

    read = mlcroissant.Dataset(jsonld=str(croissant))
    assert read.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    assert not read.metadata.ctx.issues.errors
    streams = list(read.records("streams"))
    assert sum(row["streams/tokens"] for row in streams) == store.commit.stored_tokens
    assert sum(row["streams/documents"] for row in streams) == 120
    read_licenses: Counter[str] = Counter()
    for row in read.records("licenses"):
        read_licenses[row["licenses/license"]] += row["licenses/tokens"]
    assert read_licenses == tokens
    described = json.loads(croissant.read_text())
    assert "https://spdx.org/licenses/MIT.html" in described["license"]
    assert described["identifier"] == store.fingerprint
    text = card.read_text()
    assert f"| `MIT` | {documents_['MIT']} | {tokens['MIT']:,} |" in text
    assert f"120 documents, {store.commit.stored_tokens:,} tokens" in text


def test_names_of_others_are_no_markup(tmp_path: Path):
    made = [(f"text {number}", value, value) for number, value in enumerate(HOSTILE)]
    uri = tmp_path / "x: [y] #`z` <b>.lance"
    prepare(licensed(*made), ByteTokenizer(), uri, val_fraction=0.0)
    card, croissant = write_card(uri, tmp_path / "README.md")
    text = card.read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["pretty_name"] == uri.name
    assert data["license"] == ["other", "unknown"]
    assert data["size_categories"] == "n<1K"
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    flat = [*tokens, *(child for token in tokens for child in token.children or [])]
    assert [token.content for token in flat if token.type.startswith("html")] == [
        "<!-- Written by lightning-lance card. -->\n"
    ]
    assert not [token for token in flat if token.type in ("link_open", "image", "strong_open", "em_open")]
    spans = {token.content for token in flat if token.type == "code_inline"}
    assert {shown(value) for value in HOSTILE if value.strip()} <= spans
    assert uri.name in spans
    described = json.loads(croissant.read_text())
    assert described["name"] == uri.name
    assert {row["streams/language"] for row in described["recordSet"][1]["data"]} == {*HOSTILE}


def test_a_rule_of_removed_documents_is_told_without_its_value(tmp_path: Path):
    source = ListSource(documents("a", "b", repo="alice/diary") + documents("c", "d", repo="bob/x"))
    store = prepare(source, ByteTokenizer(), tmp_path / "s.lance", val_fraction=0.0)
    forget(store.uri, {"repo": "alice/diary"})
    texts = [file.read_text() for file in write_card(store.uri, tmp_path / "README.md")]
    assert "- 2 documents (4 tokens) removed afterwards by 1 rule on `repo`" in texts[0]
    assert "alice" not in "".join(texts)
    assert "diary" not in "".join(texts)


def test_places_on_disks_and_secrets_are_left_out():
    assert _public(["/home/alice/x/*.parquet", "~/t.json", "file:///a/b.jsonl", "C:\\u\\c.txt", "corpus/*.txt"]) == [
        "*.parquet",
        "t.json",
        "b.jsonl",
        "c.txt",
        "corpus/*.txt",
    ]
    assert _public("https://me:hunter22@host/x?sig=abcdef123") == "https://host/x"
    assert _public({"license": ["mit"], "n": 3}) == {"license": ["mit"], "n": 3}


@pytest.mark.parametrize(
    ("text", "name", "ids", "page"),
    [
        ("apache-2.0", "Apache-2.0", ["apache-2.0"], True),
        ("cc0-1.0", "CC0-1.0", ["cc0-1.0"], True),
        ("gpl-3.0-or-later", "GPL-3.0-or-later", ["gpl-3.0"], True),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0", ["other"], False),
        ("my license", "my license", ["other"], False),
        ("['isc', 'mit', 'isc']", "ISC, MIT", ["isc", "mit"], False),
        ("[1, 2", "[1, 2", ["other"], False),
        ("[[[", "[[[", ["other"], False),
        ("[1]", "[1]", ["other"], False),
        ("x" * 300, f"{'x' * 200}...", ["other"], False),
        ("[]", "not given", [], False),
        (None, "not given", [], False),
    ],
)
def test_licenses_by_their_spdx_ids(text: str | None, name: str, ids: list[str], page: bool):
    assert license_name(text) == name
    assert hub_ids([text]) == ids
    assert (spdx_url(name) is not None) == page


def test_only_a_card_is_overwritten(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    prepare(ListSource(documents("a", "b")), ByteTokenizer(), tmp_path / "s.lance")
    monkeypatch.chdir(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    code, _, err = run("card", "s.lance")
    assert code == 1
    assert "README.md' that no card has written: move it elsewhere, or give another place" in err
    assert not (tmp_path / "croissant.json").exists()
    readme.unlink()
    assert run("card", "s.lance") == (0, f"{readme}: written.\n{tmp_path}/croissant.json: written.\n", "")
    code, out, _ = run("card", "s.lance", "repo=me/tokens", "format=json")
    assert json.loads(out)["files"] == [str(readme), f"{tmp_path}/croissant.json"]
    assert '"hf://datasets/me/tokens"' in readme.read_text()
    assert "expected owner/name" in run("card", "s.lance", "repo=tokens")[2]
    assert "cannot be written" in run("card", "s.lance", "out=no/README.md")[2]
    assert "There is no committed token store" in run("card", "gone.lance", "out=b.md")[2]
    with pytest.raises(ConfigError, match="expected a file on a disk"):
        write_card("s.lance", "s3://b/README.md")
