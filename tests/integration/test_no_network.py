"""A machine without a network is told so at once, in one line that names what the user asked for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.small_tokenizers import tokenizer_json, write_repository
from tests.support.warm import BUILDING, server

NAMELESS = "http://no-such-host.invalid"
CLOSED = "http://127.0.0.1:9"
DATASET = (
    "check the network, set HF_ENDPOINT to a mirror of the Hub, or download the files and read them by source=parquet"
)
TOKENIZER = (
    "check the network, set HF_ENDPOINT to a mirror of the Hub, or use a downloaded tokenizer.json by tokenizer=file"
)
# Endpoint, arguments, what cannot be reached, and the cure.
CASES = [
    (NAMELESS, ["source=github_code", "tokenizer=bytes"], "dataset 'codeparrot/github-code'", DATASET),
    (CLOSED, ["source=fineweb", "tokenizer=bytes"], "dataset 'HuggingFaceFW/fineweb'", DATASET),
    # The tokenizer comes first.
    (NAMELESS, ["source=github_code", "tokenizer=gpt2"], "tokenizer 'openai-community/gpt2'", TOKENIZER),
    (CLOSED, ["source=python_stdlib", "tokenizer=gpt_neox"], "tokenizer 'EleutherAI/gpt-neox-20b'", TOKENIZER),
]
EACH = """
import json, sys
from lightning_lance.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
        print(0, file=sys.stderr)
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("endpoint", [NAMELESS, CLOSED])
def test_a_hub_that_cannot_be_reached_is_one_line(endpoint: str, tmp_path: Path):
    """With the agents that the Hub's client asks for, which a test Hub turns off."""
    cases = [case for case in CASES if case[0] == endpoint]
    commands = json.dumps([["prepare", *arguments] for _, arguments, _, _ in cases])
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    done = server(BUILDING).run(EACH, commands, folder=tmp_path, environment=environment, timeout=100)
    assert (done.returncode, done.stdout) == (0, "")
    why = "its name does not resolve" if endpoint == NAMELESS else "connection refused"
    for (_, _, what, cure), told in zip(cases, done.stderr.splitlines(), strict=True):
        assert told.startswith(f"error: The {what} cannot be reached ({endpoint}: {why}): {cure}")
    assert not list(tmp_path.glob("data/*.lance"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_repository(tmp_path / "hub/models/own/small", {"tokenizer.json": tokenizer_json(["<|endoftext|>"])})
    folder = tmp_path / "hub/datasets/own/texts/data"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(20))
    (folder / "a.jsonl").write_text(lines)
    with Hub(tmp_path / "hub") as hub:
        yield hub


def test_offline_what_is_cached_is_used_and_what_is_not_is_named(hub: Hub, tmp_path: Path):
    def each(*commands: list[str], **environment: str) -> list[str]:
        variables = {**hub.environment(tmp_path / "home"), **environment}
        done = server(BUILDING).run(EACH, json.dumps(commands), folder=tmp_path, environment=variables, timeout=100)
        return done.stderr.splitlines()

    files = "source.data_files=['hf://datasets/own/texts/data/*.jsonl']"
    build = ["prepare", "source=jsonl", files, "tokenizer=gpt2", "tokenizer.model=own/small", "hydra/job_logging=none"]
    # A mirror without some of the Hub's requests will do.
    hub.lacks.add("auth-check")
    told = each(build)
    assert told[-1] == "0"
    asked = len(hub.requests)
    ready, source, tokenizer = each(
        build, [*build, "corpus.val_fraction=0.5"], [*build, "tokenizer.model=own/other"], HF_HUB_OFFLINE="1"
    )
    assert ready == "0"
    assert source.startswith(
        "error: The dataset 'own/texts' cannot be read in offline mode: unset HF_HUB_OFFLINE, or download"
    )
    assert tokenizer.startswith(
        "error: The tokenizer 'own/other' cannot be loaded, since offline mode is on and the cache of"
    )
    # A tokenizer in the cache of the Hub's client is used even if the Hub is not there.
    plain = ["prepare", "tokenizer=gpt2", "tokenizer.model=own/small", "max_documents=3", "data_dir=other"]
    assert each(plain, HF_ENDPOINT=CLOSED)[-1] == "0"
    assert len(hub.requests) == asked
