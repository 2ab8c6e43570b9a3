"""Stores in Google's and Microsoft's object stores: they live as on a disk, and no key is left anywhere.

Google's is a server of this process. Microsoft's is Azurite, where the environment says that it is running:
`LIGHTNING_LANCE_AZURITE=http://127.0.0.1:10000/devstoreaccount1`.
"""

import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.maintenance import forget, verify_store
from lightning_lance.tokenization import ByteTokenizer
from tests.support.clouds import Cloud, google, microsoft
from tests.support.corpora import prepare
from tests.support.lives import SOURCE, life, whole
from tests.support.warm import BUILDING, server

_AZURITE = os.environ.get("LIGHTNING_LANCE_AZURITE")


@pytest.fixture(params=["gs", "az"], scope="module")
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    if request.param == "gs":
        with google() as made:
            yield made
        return
    if not _AZURITE:
        pytest.skip("LIGHTNING_LANCE_AZURITE names no running Azurite")
    yield microsoft(_AZURITE)


def test_a_store_in_a_cloud_lives_as_on_a_disk_and_holds_no_key(
    cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = list(life(f"{cloud.root}/stores/x.lance", tmp_path / "there", cloud.options))
    here = list(life(str(tmp_path / "stores" / "x.lance"), tmp_path / "here", None))
    for of_cloud, of_disk in zip(there, here, strict=True):
        assert of_cloud == of_disk
    assert cloud.secret not in caplog.text
    found = cloud.objects()
    assert [name for name in found if name.startswith("stores/x.lance/data/")]
    for content in found.values():
        assert cloud.secret.encode() not in content
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in left if cloud.secret.encode() in content]


def test_a_store_in_a_cloud_is_staged_and_removed(cloud: Cloud, tmp_path: Path) -> None:
    uri = f"{cloud.root}/staged/x.lance"
    arguments = {"storage_options": cloud.options, "data_dir": tmp_path}
    store = prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.2, **arguments)
    tokens = whole(store)
    store.stage(tmp_path / "stage")
    assert whole(store) == tokens
    end = time.monotonic() + 60
    while store.reader != "mapped" and time.monotonic() < end:
        time.sleep(0.01)
    assert store.reader == "mapped"
    assert whole(store) == tokens
    again = prepare(SOURCE, ByteTokenizer(), uri, rebuild=True, max_documents=10, val_fraction=0.5, **arguments)
    assert (again.commit.documents, verify_store(uri, cloud.options)) == (10, [])


# The words of the first command have the keys, the environment of the others has them.
COMMANDS = """
import json, os, sys
from lightning_lance.cli.main import main
commands, environment = map(json.loads, sys.argv[1:])
for words in commands:
    sys.argv[1:] = words
    main()
    os.environ.update(environment)
"""


def test_keys_of_a_cloud_may_be_in_the_environment(cloud: Cloud, tmp_path: Path) -> None:
    uri = f"{cloud.root}/environment/x.lance"
    made = prepare(SOURCE, ByteTokenizer(), uri, storage_options=cloud.options, max_documents=5)
    given = [f"{name}={value}" for name, value in cloud.options.items()]
    commands = [["forget", uri, "repo=repo3", *given], ["list", f"{cloud.root}/environment"]]
    commands += [[word, uri] for word in ("info", "verify", "clean")]
    environment = {name.upper(): value for name, value in cloud.options.items()}
    words = map(json.dumps, (commands, environment))
    done = server(BUILDING).run(COMMANDS, *words, folder=tmp_path, timeout=100)
    assert (done.returncode, cloud.secret in done.stdout + done.stderr) == (0, False), done.stderr
    assert TokenStore.open(uri, storage_options=cloud.options).num_tokens() < made.num_tokens()


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        (
            "gs://b/x.lance",
            {"google_service_account_key": '{"private_key": "HUSH"'},
            "by GOOGLE_APPLICATION_CREDENTIALS in",
        ),
        ("gs://b/x.lance", {"google_service_account": "/HUSH.json"}, "by google_service_account in storage_options"),
        ("az://b/x.lance", {"azure_storage_account_key": "HUSH"}, "set AZURE_STORAGE_ACCOUNT_NAME and"),
        (
            "az://b/x.lance",
            {"account_name": "a", "account_key": "HUSH-no-base64"},
            "AZURE_STORAGE_ACCOUNT_KEY in the env",
        ),
        ("gcs://b/x.lance", {"secret": "HUSH"}, "a URL that begins with s3://, gs:// or az://"),
        (
            "abfss://c@mine.dfs.core.windows.net/a/x.lance",
            {"account_key": "HUSH"},
            "'mine': give az://c/a/x.lance, and az",
        ),
    ],
)
def test_keys_of_a_cloud_that_are_wrong_are_told_and_not_shown(uri: str, options: dict[str, str], told: str) -> None:
    for ask in (
        lambda: prepare(SOURCE, ByteTokenizer(), uri, storage_options=options),
        lambda: TokenStore.open(uri, storage_options=options),
        lambda: forget(uri, {"repo": "x"}, options),
        lambda: verify_store(uri, options),
    ):
        with pytest.raises((ConfigError, StoreError)) as refused:
            ask()  # type: ignore[no-untyped-call]
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "HUSH" not in "".join(traceback.format_exception(refused.value))
