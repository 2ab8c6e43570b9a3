"""A store is pushed to a Hub, and opened from there. The Hub is on 127.0.0.1; its clients are the real ones."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_lance import TokenStore
from lightning_lance.build.corpus import HubStore, ReadyStore, corpora_of
from lightning_lance.build.options import BuildOptions
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.inspection.publish import push_store
from lightning_lance.location import given_place
from lightning_lance.maintenance import forget
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.maintenance.deletion import remove
from lightning_lance.store.hub import hub_place
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.hub import Hub
from tests.support.stores import ListSource, documents

SOURCE = ListSource(documents(*(f"text {number} of the store" * 40 for number in range(30))))
TOKEN = "hf_" + "HuShHuSh" * 4

PRELUDE = """
import contextlib, json, os, sys
from pathlib import Path
from lightning_lance import TokenStore
from lightning_lance.cli.main import main
from lightning_lance.inspection import describe_store, push_store

def command(*words):
    sys.argv = ["lightning-lance", *words]
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0

def refused(function, *given, **named):
    try:
        function(*given, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    folder.mkdir()
    with Hub(folder) as hub:
        hub.token = TOKEN
        yield hub


def built(folder: Path, number: int) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), folder / "mine.lance", max_documents=number, val_fraction=0.3)


def ran(hub: Hub, home: Path, script: str, token: str = TOKEN) -> Any:
    """Run a script as a user of the Hub, and return what it prints last, read as JSON. Its output never has the token."""
    done = hub.run(f"import os\nos.environ['HF_TOKEN'] = {token!r}\n{PRELUDE}{script}", home)
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def uploads(hub: Hub) -> int:
    return sum(request.method == "PUT" for request in hub.requests)


def test_a_store_is_pushed_and_opened_from_there(tmp_path: Path, hub: Hub):
    store, home = built(tmp_path, 20), tmp_path / "home"
    store.keep("checkpoint-mine")
    repository = hub.folder / "datasets/me/tokens"
    # An interrupted push: all is uploaded, and the commit fails.
    hub.lacks.add("commit")
    failed = ran(hub, home, f"print(json.dumps(refused(push_store, {store.uri!r}, 'me/tokens', private=True)))")
    assert failed.startswith("StoreError: The Hub answers HTTP 500 for the dataset 'me/tokens'")
    assert hub.private == {"me/tokens"}
    assert uploads(hub) >= 2
    hub.lacks.clear()
    hub.requests.clear()
    first = ran(hub, home, f"print(json.dumps(push_store({store.uri!r}, 'me/tokens', private=True)._asdict()))")
    assert uploads(hub) == 0
    assert first["kept"] == []
    names = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert {"README.md", "croissant.json", "store.tokenizer.json", "store.lance/lightning_lance.sums.json"} < names
    assert not [name for name in names if "_refs" in name or "lock" in name]
    assert len([name for name in names if name.endswith(".manifest")]) == 1
    # A larger store takes its place, with a card that somebody has edited.
    hub.keep("datasets/me/tokens")
    (repository / "README.md").write_text("by hand")
    larger = built(tmp_path, 30)
    second = ran(
        hub,
        home,
        f"""
said = command("push", {store.uri!r}, "me/tokens", "private=true", "format=json")
assert said == 0
""",
    )
    assert second["kept"] == ["README.md"]
    assert (repository / "README.md").read_text() == "by hand"
    assert len([*(repository / "store.lance/_versions").glob("*.manifest")]) == 1
    hub.requests.clear()
    found = ran(
        hub,
        home,
        f"""
old, new = TokenStore.open({first["place"]!r}), TokenStore.open("hf://datasets/me/tokens")
again = TokenStore.open("hf://datasets/me/tokens")
info = describe_store("hf://datasets/me/tokens")
from lightning_lance.maintenance import verify_store
from lightning_lance.build.corpus import corpora_of, HubStore
from lightning_lance.build.options import BuildOptions
corpus = corpora_of("hf://datasets/me/tokens", None)[""]
corpus.run(BuildOptions())
print(json.dumps(dict(
    old=old.uri, new=new.uri, same=again.uri == new.uri == corpus.open().uri == corpus.on_disk().uri,
    tokens=[old.commit.stored_tokens, new.commit.stored_tokens, info.summary.tokens],
    read=new.read([0], 50, "train").tolist(), encoded=new.tokenizer.digest, vocab=corpus.vocab_size,
    problems=[*map(str, verify_store(new.uri))],
)))
""",
    )
    assert found["tokens"] == [store.commit.stored_tokens, larger.commit.stored_tokens, larger.commit.stored_tokens]
    assert found["read"] == larger.read([0], 50, "train").tolist()
    assert found["encoded"] == larger.tokenizer.digest
    assert found["vocab"] == larger.commit.vocab_size
    assert found["problems"] == []
    assert found["same"]
    for place in (found["old"], found["new"]):
        assert Path(place).is_relative_to(home / "lightning-lance/me--tokens")
        assert not [path for path in Path(place).parent.rglob("*") if path.is_symlink()]
    # Each file was downloaded once.
    fetched = [(request.file, request.path) for request in hub.requests if request.method == "GET" and request.sent]
    fetched = [one for one in fetched if "/resolve/main/" not in one[1]]
    assert len(fetched) == len({*fetched})
    # With the commit behind it, and once it is there, the Hub is not asked.
    hub.requests.clear()
    ran(hub, home, f"TokenStore.open({first['place']!r})\nprint(json.dumps(0))")
    assert hub.requests == []
    # Nothing that was written anywhere has the token.
    for path in [*home.rglob("*"), *hub.folder.rglob("*"), *tmp_path.glob("*.*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_what_cannot_be_pushed_or_opened_says_why(tmp_path: Path, hub: Hub):
    store, home = built(tmp_path, 6), tmp_path / "home"
    (hub.folder / "datasets/me/public").mkdir(parents=True)
    (hub.folder / "datasets/me/ignoring").mkdir()
    (hub.folder / "datasets/me/ignoring/.gitignore").write_text("*.txn")
    (hub.folder / "datasets/me/ignoring/README.md").write_text("mine")
    said = ran(
        hub,
        home,
        f"""
uri = {store.uri!r}
print(json.dumps([
    refused(push_store, uri, "me/public", private=True),
    refused(push_store, uri, "me/ignoring"),
    refused(TokenStore.open, "hf://datasets/me/public"),
    refused(TokenStore.open, "hf://datasets/me/none"),
    refused(TokenStore.open, "hf://datasets/me/public@v9"),
]))
""",
    )
    assert "'me/public' exists already, and is public" in said[0]
    assert "lacks store.lance/_transactions/" in said[1]
    assert "check its .gitignore" in said[1]
    assert (hub.folder / "datasets/me/ignoring/README.md").read_text() == "mine"
    assert "'me/public' has no token store at commit" in said[2]
    assert "There is no dataset 'me/none' on the Hub, or it is private" in said[3]
    assert "has no revision 'v9'" in said[4]
    wrong = ran(
        hub,
        home,
        f"""
place = "hf://datasets/me/new"
os.environ["HF_HUB_OFFLINE"] = "0"
print(json.dumps([refused(push_store, {store.uri!r}, "me/new"), command("push", {store.uri!r}, "me/new")]))
""",
        token="hf_" + "WrOnGwRoNg" * 3,
    )
    assert "Access to the dataset 'me/new' is denied" in wrong[0]
    assert wrong[1].startswith("error: Access to")
    assert not (hub.folder / "datasets/me/new").exists()


def test_a_store_is_published_only_as_it_is_meant_to_be(tmp_path: Path):
    store = built(tmp_path, 6)
    with pytest.raises(ConfigError, match="expected owner/name"):
        push_store(store.uri, "name")
    with pytest.raises(ConfigError, match="is not on a disk"):
        push_store("s3://bucket/x.lance", "me/x")
    link = Path(store.uri, "data/secret.lance")
    link.symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match=r"contains the link 'data/secret\.lance'"):
        push_store(store.uri, "me/x")
    link.unlink()
    forget(store.uri, {"repo": "repo3"})
    with pytest.raises(StoreError, match="has 1 rule of removed documents with their values of repo"):
        push_store(store.uri, "me/x")


def test_places_on_the_hub(tmp_path: Path):
    assert hub_place("hf://datasets/me/x@v1/") == ("me/x", "v1")
    assert str(hub_place("hf://datasets/me/x")) == "hf://datasets/me/x"
    # Lance reads it there, without a download.
    assert hub_place("hf://datasets/me/x/store.lance") is None
    assert given_place("hf://datasets/me/x@v1/") == "hf://datasets/me/x@v1/store.lance"
    assert hub_place(os.fspath(tmp_path)) is None
    assert isinstance(corpora_of("hf://datasets/me/x", None)[""], HubStore)
    assert not isinstance(corpora_of("hf://datasets/me/x/store.lance", None)[""], HubStore)
    assert isinstance(corpora_of("hf://datasets/me/x/store.lance", None)[""], ReadyStore)
    with pytest.raises(ConfigError, match="is a copy that stays as it is"):
        corpora_of("hf://datasets/me/x", None)[""].run(BuildOptions(wait_for_tokens=1))
    for wrong in ("hf://me/x", "hf://models/me/x", "hf://datasets/x", "HF://datasets/me/x"):
        with pytest.raises(ConfigError, match="expected hf://datasets/owner/name"):
            TokenStore.open(wrong)
    place = "hf://datasets/me/x"
    for change in (
        lambda: clean(place),
        lambda: remove(place),
        lambda: forget(place, {"repo": "a"}),
        lambda: prepare(SOURCE, ByteTokenizer(), place),
    ):
        with pytest.raises(ConfigError, match="is on the Hub: do it to a store on a disk"):
            change()
