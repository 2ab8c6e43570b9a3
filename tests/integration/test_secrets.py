"""Nothing that a run leaves or says has a secret in it: stores, configurations on disk, logs, errors and tracebacks."""

import gzip
import logging
import pickle
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightning
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from lightning_lance import Corpus, LanceDataModule, TokenStore
from lightning_lance.cli.hydra_app import command
from lightning_lance.cli.main import main
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.messages import redaction
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import data_of, prepare

SECRETS = re.compile(r"HUSH\w*")
OPTIONS = "{key: HUSHID, secret: HUSHKEY, odd_name: HUSHODD, client_kwargs: {endpoint_url: 'http://u:HUSHPW@h'}}"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redaction, "_known", set())


class Server(ThreadingHTTPServer):
    content = b""
    fails = False
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(self.server.content)

    def answer(self, body: bytes) -> None:
        self.server.asked.append(self.path)
        content, span = self.server.content, re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.server.fails:
            self.send_error(503)
            return
        first, last = (int(span[1]), int(span[2] or len(content) - 1)) if span else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part if body else b"")


@pytest.fixture
def server() -> Iterator[Server]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"document {i}" for i in range(50)]}), sink)
    server = Server(("127.0.0.1", 0), Handler)
    server.content, server.asked = sink.getvalue().to_pybytes(), []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def left_in(folder: Path) -> dict[str, list[str]]:
    """What files of a folder, and their names, have of secrets."""
    found = {}
    for path in folder.rglob("*"):
        text = str(path.relative_to(folder)) + (path.read_bytes().decode("latin-1") if path.is_file() else "")
        if secrets := SECRETS.findall(text):
            found[str(path.relative_to(folder))] = secrets
    return found


def test_a_url_that_is_signed_anew_is_the_same_source(server: Server, tmp_path: Path):
    plain = f"http://127.0.0.1:{server.server_port}/c.parquet"
    place = plain.removeprefix("http://")
    urls = [plain, f"{plain}?X-Amz-Signature=HUSH1", f"{plain}?sig=HUSH2&se=1", f"http://user:HUSH3@{place}"]
    sources = [DatasetSource("parquet", data_files=[url]) for url in urls]
    stores = [
        prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, max_documents=20) for source in sources
    ]
    assert len({store.uri for store in stores}) == 1
    assert stores[0].commit.files == {plain: 20}
    # That of a URL without secrets is what it always was.
    digest = xxhash.xxh3_128(f"{plain}\0{len(server.content)}\0\0".encode())
    assert sources[0].identity()["files"] == digest.hexdigest()
    # Its growth goes on with another signature.
    again = DatasetSource("parquet", data_files=[f"{plain}?X-Amz-Signature=HUSH4"])
    grown = prepare(again, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert (grown.uri, grown.commit.documents, grown.commit.files) == (stores[0].uri, 50, {plain: 50})
    assert any("HUSH4" in path for path in server.asked)
    assert left_in(tmp_path) == {}
    assert not SECRETS.search(repr(sources))
    assert pickle.loads(pickle.dumps(sources[3])) == sources[3]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_signed_json_lines_are_read_line_by_line(server: Server, tmp_path: Path, packed: str):
    lines = b'{"text": "one"}\nno JSON\n{"text": "two"}\n'
    server.content = gzip.compress(lines) if packed else lines
    url = f"http://127.0.0.1:{server.server_port}/c.jsonl{packed}?X-Amz-Signature=HUSH1"
    store = prepare(DatasetSource("json", data_files=[url]), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert (store.commit.documents, store.commit.skipped) == (2, {"not_json": 1})
    assert left_in(tmp_path) == {}


def test_a_server_that_fails_is_told_without_the_signature(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url = f"http://user:HUSHPW@127.0.0.1:{server.server_port}/c.parquet?token=HUSHSIG"
    server.fails = True
    source = DatasetSource("parquet", data_files=[url], max_retries=1)
    with pytest.raises(SourceError, match="gave up on listing the files after 2 tries") as failed:
        prepare(source, ByteTokenizer(), data_dir=tmp_path)
    assert "try 1 of 1" in caplog.text
    assert not SECRETS.search(caplog.text + "".join(traceback.format_exception(failed.value)))


def test_a_shard_that_is_no_good_is_named_without_the_signature(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = tmp_path / "good.parquet"
    good.write_bytes(server.content)
    server.content = server.content[:-20] + b"x" * 20
    url = f"http://127.0.0.1:{server.server_port}/c.parquet?token=HUSHSIG"
    source = DatasetSource("parquet", data_files=[str(good), url], on_bad_shard="skip")
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0)
    (bad,) = store.commit.bad_shards
    assert bad["shard"] == url.partition("?")[0]
    assert left_in(tmp_path) == {}
    assert not SECRETS.search(caplog.text)
    strict = DatasetSource("parquet", data_files=[url])
    with pytest.raises(SourceError) as failed:
        prepare(strict, ByteTokenizer(), data_dir=tmp_path / "strict")
    assert not SECRETS.search("".join(traceback.format_exception(failed.value)))
    # The status file stays after a failure.
    assert list((tmp_path / "strict").glob("*.building.json"))
    assert left_in(tmp_path) == {}


@pytest.mark.parametrize("uri", ["s3://HUSHID:HUSHKEY@bucket/x.lance", "az://c/x.lance?sv=1&sig=HUSHSIG"])
def test_the_place_of_a_store_holds_no_secret(uri: str):
    source = DatasetSource("parquet", data_files=["x.parquet"])
    for refuse in (
        lambda: Corpus(source, ByteTokenizer(), uri),
        lambda: LanceDataModule({"a": uri, "b": "data/x.lance"}, 16, 2),
        lambda: TokenStore.open(uri),
        lambda: forget(uri, {"path": "x"}),
        lambda: verify_store(uri),
    ):
        with pytest.raises(ConfigError, match="give it by environment variables") as refused:
            refuse()  # type: ignore[no-untyped-call]
        assert not SECRETS.search(str(refused.value))


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch["input_ids"][:1, :1].float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_and_logs_of_a_run(server: Server, tmp_path: Path):
    url = f"http://u:HUSHPW@127.0.0.1:{server.server_port}/c.parquet"
    source = DatasetSource(
        "parquet", data_files=[url], storage_options={"client_kwargs": {"headers": {"X-Key": "HUSHKEY"}}}
    )
    options = {
        "aws_secret_access_key": "HUSHKEY",
        "azure_storage_account_key": "HUSHAZ",
        "google_service_account_key": '{"private_key": "HUSHGS"}',
    }
    data = data_of(
        source, ByteTokenizer(), 16, 2, data_dir=str(tmp_path / "data"), val_fraction=0.0, storage_options=options
    )
    logger = CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=logger, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(Model(), datamodule=data)
    assert list(tmp_path.rglob("*.ckpt"))
    assert left_in(tmp_path) == {}
    assert not SECRETS.search(f"{data} {data!r} {data.corpora!r} {data.store!r} {data.hparams}")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[Any, str]]]:
    """Runs a task as a command in this process: gives how it ended, and all that was printed."""
    handlers, level = [*logging.getLogger().handlers], logging.getLogger().level
    monkeypatch.chdir(tmp_path)

    def run(task: Callable[[DictConfig], None], *arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "output_dir=out"])
        code: Any = 0
        try:
            command(task)()
        except SystemExit as ended:
            code = ended.code
        for handler in logging.getLogger().handlers:
            if handler not in handlers:
                handler.close()
        logging.getLogger().handlers[:] = handlers
        captured = capfd.readouterr()
        return code, f"{captured.out}{captured.err}{code}"

    yield run
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


GIVEN = [
    "source=parquet",
    "source.data_files=['https://u:HUSHPW@host/x.parquet?sig=HUSHSIG', c.parquet]",
    f"source.storage_options={OPTIONS}",
    "corpus.storage_options={aws_secret_access_key: HUSHKEY, aws_region: eu, aws_session_token: '${oc.env:HOME}', "
    'azure_storage_account_key: HUSHAZ, google_service_account_key: \'{"private_key": "HUSHGS"}\'}',
    "+logger.csv.api_key=HUSHAPI",
    "+hydra.job.env_set.MY_PASSWORD=HUSHENV",
]


def test_the_task_gets_what_the_configuration_on_disk_has_not(run: Callable[..., tuple[Any, str]], tmp_path: Path):
    got: list[DictConfig] = []
    code, printed = run(got.append, *GIVEN)
    assert code == 0
    (config,) = got
    assert config.source.storage_options.secret == "HUSHKEY"
    assert config.source.storage_options.client_kwargs.endpoint_url == "http://u:HUSHPW@h"
    assert config.source.data_files == ["https://u:HUSHPW@host/x.parquet?sig=HUSHSIG", "c.parquet"]
    assert config.data.corpus.source.storage_options.key == "HUSHID"
    assert config.logger.csv.api_key == "HUSHAPI"
    assert left_in(tmp_path) == {}
    assert not SECRETS.search(printed)
    written = OmegaConf.load(tmp_path / "out/.hydra/config.yaml")
    assert written.corpus.storage_options.aws_region == "eu"
    # A variable of the environment is named, and not looked up.
    assert "${oc.env:HOME}" in (tmp_path / "out/.hydra/config.yaml").read_text()

    # Run again from there, it says what is missing.
    again, _ = run(got.append, "-cp", str(tmp_path / "out/.hydra"), "-cn", "config")
    assert re.match(r"error: The key source.data_files has no value: secrets are not saved with the config", again)
    more = ["source.data_files=[c.parquet]", "logger.csv.api_key=x", "source.storage_options={anon: true}"]
    again, _ = run(got.append, "-cp", str(tmp_path / "out/.hydra"), "-cn", "config", *more)
    assert re.match(r"error: The key source.storage_options.key has no value", again)


def test_a_sweep_leaves_no_secret_either(run: Callable[..., tuple[Any, str]], tmp_path: Path):
    got: list[DictConfig] = []
    code, printed = run(got.append, "-m", *GIVEN, "seed=1,2")
    assert (code, [config.seed for config in got]) == (0, [1, 2])
    assert {config.source.storage_options.secret for config in got} == {"HUSHKEY"}
    assert left_in(tmp_path) == {}
    assert not SECRETS.search(printed)


def test_a_file_with_secrets_is_not_copied(run: Callable[..., tuple[Any, str]], tmp_path: Path):
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndata:\n  storage_options: {aws_secret_access_key: HUSHKEY}\n"
    (folder / "mine.yaml").write_text(text)
    got: list[DictConfig] = []
    for mode in ([], ["-m"]):
        run(got.append, *mode, "--config-dir", str(tmp_path / "mine"), "experiment=mine")
        assert got[-1].data.storage_options.aws_secret_access_key == "HUSHKEY"
    assert left_in(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "asked", [["--cfg", "job"], ["--cfg", "all"], ["--cfg", "job", "--resolve"], ["--help"], ["--info"]]
)
def test_what_is_asked_of_the_configuration(
    run: Callable[..., tuple[Any, str]], asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINE", "HUSHOFENV")
    more = ["+source.storage_options.token=${oc.env:MINE}"] if "--resolve" in asked else []
    _, printed = run(lambda config: None, *asked, *GIVEN, *more)
    assert "storage_options" in printed or asked[0] in ("--help", "--info")
    assert not SECRETS.search(printed)


def fails(config: DictConfig) -> None:
    raise RuntimeError(f"of a library: {config.source.storage_options.secret} https://u:HUSHPW@h/?sig=HUSHX")


@pytest.mark.parametrize("full", ["0", "1"])
def test_tracebacks_of_bugs(run: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, full: str):
    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    code, printed = run(fails, *GIVEN)
    assert code == 1
    assert "Traceback" in printed
    assert "RuntimeError: of a library: *** https://h/" in printed
    assert not SECRETS.search(printed)


@pytest.mark.parametrize("full", ["0", "1"])
@pytest.mark.parametrize(
    "wrong",
    [
        f"source.storage_options={OPTIONS[:-1]}",
        "source.storage_options=HUSHKEY",
        "source.storage_options={secret: HUSHKEY}}",
        "source.storage_options.secrt=HUSHKEY",
        "source={storage_options: {secret: HUSHKEY}",
        "corpus.uri=s3://k:HUSHKEY@b/x.lance,",
        "~source.storage_options.secret=HUSHKEY",
    ],
)
def test_what_is_mistyped_is_not_repeated(
    run: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, wrong: str, full: str, tmp_path: Path
):
    from lightning_lance.cli.hydra_app import make

    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    code, printed = run(lambda config: make(config, "data"), "source=parquet", "source.data_files=[c.parquet]", wrong)
    assert code != 0
    assert not SECRETS.search(printed), printed
    assert left_in(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "--help", *GIVEN[:4]],
        ["prepare", "--help", "source.storage_options={secret: HUSHKEY"],
        ["verify", "data/x.lance", "aws_secret_access_key=HUSHKEY"],
        ["verify", "az://b/x.lance", "azure_storage_account_key=HUSHKEY"],
        ["clean", "gs://b/x.lance", 'google_service_account_key={"private_key": "HUSHKEY"}'],
        ["verify", "s3://b/x.lance", "aws_secret_access_key=HUSHKEY", "aws_secret_access_key=HUSHKEY2"],
        ["forget", "s3://k:HUSHKEY@b/x.lance", "path=x"],
        ["forget", "s3://b/x.lance", "aws_secret_access_key=HUSHKEY"],
    ],
)
def test_commands_do_not_repeat_secrets(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-lance", *arguments])
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    captured = capfd.readouterr()
    assert not SECRETS.search(f"{captured.out} {captured.err} {code}")
    assert "Traceback" not in captured.err
