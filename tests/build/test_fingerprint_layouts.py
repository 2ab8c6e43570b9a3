"""The law of the fingerprint for layouts of files: it changes if and only if the stored tokens change."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.plan import make_plan
from lightning_lance.errors import ConfigError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import serving
from tests.support.hub import Hub
from tests.support.laws import examples
from tests.support.paths import ROOT

FILES = ["py/0", "py/1", "rs/0", "rs/deep/2", "c [x]/0", "c x/0", ".h/0", "__s/0", "3"]
LINKS = {"alias": "py", "py/up": "..", "rs/9.parquet": "0.parquet"}
PATTERNS = [
    "{language}/*.parquet", "{language}/**/*.parquet", "./{language}/*.parquet", "*/{language}.parquet",
    "**/{language}/0.parquet", "*/*.parquet", "**/*.parquet", "*/**/*.parquet", "py", "./py/", "alias", "rs",
    "py/*.parquet", "py/1.parquet", "py/0.parquet", "rs/../py/[01].parquet",
    "c [x]/*", "c ?x]/*", ".h/*", "__*/*", "3.parquet", "[!.]*.parquet", "{root}/rs/*.parquet",
    "file://{root}/rs/0.parquet", "rs/deep/*", "{language}/deep/*",
]  # fmt: skip


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        file = (folder / name).with_suffix(".parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = {"text": [f"{name} {i}" for i in range(2)], "lang": ["A", "B"], "path": [f"{name}.py", f"{name}.rs"]}
        pq.write_table(pa.table(rows), file)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layout")
    write(root, FILES)
    for link, target in LINKS.items():
        (root / link).symlink_to(target)
    return root


def stored(source: Any) -> Any:
    """Return the texts that a build would store with their language, path and split, in order."""
    opened = source.open()
    rows = [row for i in range(len(opened.shards)) for batch in opened.read(i, 0) for row in batch.to_pylist()]
    return [(row["text"], row["language"], row.get("path"), row.get("split")) for row in rows]


def fingerprint(source: Any, root: Path) -> str:
    return make_plan(source, ByteTokenizer(), data_dir=root / "data").fingerprint


datasets = st.fixed_dictionaries(
    {
        "data_files": st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2),
        "val_files": st.lists(st.sampled_from([*PATTERNS[:3], "rs/0.parquet", "py/1.parquet"]), max_size=1),
        "shard_seed": st.sampled_from([None, 0]),
    },
    optional={"language_column": st.just("lang"), "languages": st.sampled_from([["py"], ["rs", "py"], ["py", "rs"]])},
)


def of_files(root: Path, options: dict[str, Any]) -> tuple[Any, str] | None:
    """Return the documents of a source of files, and its fingerprint; None if the source is invalid."""
    filled = {
        key: [pattern.replace("{root}", str(root)) for pattern in value] if key.endswith("_files") else value
        for key, value in options.items()
    }
    try:
        source = DatasetSource("parquet", **filled)
        # Different options have different fingerprints, even if they change nothing here.
        said = (options["shard_seed"], source.wanted, source.language_column, source.has_validation)
        rows = stored(source)
        return ((said, rows), fingerprint(source, root)) if rows else None
    except ConfigError:
        return None


@examples(13)
@given(datasets, datasets, st.booleans())
def test_of_local_files_it_changes_if_and_only_if_what_is_stored_would(
    root: Path, one: dict[str, Any], other: dict[str, Any], similar: bool
):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        if similar:
            other = {**one, "data_files": other["data_files"]}
        first, second = of_files(root, one), of_files(root, other)
        if first is not None and second is not None:
            assert (first[0] == second[0]) == (first[1] == second[1])


def test_local_layouts_that_are_spelled_differently(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Every pair of patterns: the property test may draw few of the important pairs."""
    monkeypatch.chdir(root)
    made = [of_files(root, {"data_files": [pattern], "shard_seed": 0}) for pattern in PATTERNS]
    known = [each for each in made if each is not None]
    assert len(known) > 20
    for what, print_ in known:
        assert {other_print for other, other_print in known if other == what} == {print_}
        assert all(other == what for other, other_print in known if other_print == print_)


def test_a_template_is_not_the_same_as_the_files(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    prints = {
        fingerprint(DatasetSource("parquet", data_files=files, val_files=val), root)
        for files in (["*/0.parquet"], ["{language}/0.parquet"])
        for val in ([], ["rs/deep/*"], ["rs/{language}/*"])
    }
    assert len(prints) == 6
    # If the language comes from elsewhere, the template does not matter.
    columns = {"text": "text", "path": "path"}
    for options in (
        {"language_column": "lang"},
        {"columns": columns, "extensions": {"Python": [".py"], "Rust": [".rs"]}},
    ):
        sources = [
            DatasetSource("parquet", data_files=[file], **options) for file in ("*/0.parquet", "{language}/0.parquet")
        ]  # type: ignore[arg-type]
        assert stored(sources[0]) == stored(sources[1])
        assert fingerprint(sources[0], root) == fingerprint(sources[1], root)


def test_names_contents_and_order_of_local_files_are_in_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["a", "b"])
    source = DatasetSource("parquet", data_files=["*.parquet"])
    before = fingerprint(source, root)
    for name, again in (("a", "c"), ("c", "a")):  # now it comes last
        Path(f"{name}.parquet").rename(f"{again}.parquet")
        assert (fingerprint(source, root) == before) == (again == "a")
    write(tmp_path, ["a/x"])
    assert fingerprint(source, root) == before
    content = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(source, root) != before


sources = st.fixed_dictionaries(
    {
        "patterns": st.lists(
            st.sampled_from(
                [
                    "**/*",
                    "*/*.py",
                    "./**/*.py",
                    "b",
                    "b/**",
                    "l",
                    "*.py",
                    "a.py",
                    "b/../a.py",
                    ".h",
                    "{root}/b/*",
                    "[b]/*",
                ]
            ),
            min_size=1,
            max_size=2,
        ),
        "root": st.sampled_from([".", "{root}", "./b/.."]),
        "shard_seed": st.sampled_from([None, 0]),
        "follow_links": st.booleans(),
    },
    optional={"languages": st.just(["Python"]), "exclude": st.sampled_from([["c"], []])},
)


@examples(13)
@given(sources, sources, st.booleans())
def test_of_files_it_changes_if_and_only_if_what_is_stored_would(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], other: dict[str, Any], similar: bool
):
    root = tmp_path_factory.getbasetemp() / "some files"
    if not root.exists():
        for name in ("a.py", "b/a.py", "b/c/d.py", "b/e.rs", ".h/f.py", "g.txt"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        (root / "l").symlink_to("b")
        (root / "out").symlink_to("../outside")
        (root.parent / "outside").mkdir()
        (root.parent / "outside/z.py").write_text("z")

    def made(options: dict[str, Any]) -> tuple[Any, str] | None:
        patterns = [pattern.replace("{root}", str(root)) for pattern in options["patterns"]]
        try:
            source = FilesSource(
                **{**options, "patterns": patterns, "root": options["root"].replace("{root}", str(root))}
            )
            return (source.shard_seed, source.wanted, stored(source)), fingerprint(source, root)
        except ConfigError:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        first, second = made(one), made({**one, "patterns": other["patterns"]} if similar else other)
    if first is not None and second is not None:
        assert (first[0] == second[0]) == (first[1] == second[1])


# The fingerprint of files on the Hub or in a bucket knows only names and the metadata of the bucket: two with one fingerprint
# are stored alike; other spellings may differ.
REMOTE = [
    ["d/*/*.parquet"], ["d/{language}/*.parquet"], ["d/py/*.parquet", "d/rs/*.parquet"], ["d/rs/*.parquet", "d/py/*.parquet"],
    ["d/{language}/**/*.parquet"], ["**/{language}/0.parquet"],
]  # fmt: skip
REMOTE_FILES = ["d/py/0", "d/py/1", "d/rs/0", "d/rs/deep/2"]


def check_remote(made: list[tuple[Any, str]]) -> None:
    assert len(made) == len(REMOTE)
    for what, print_ in made:
        assert all(other == what for other, other_print in made if other_print == print_)


HUB = """
import json, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from tests.build.test_fingerprint_layouts import REMOTE, DatasetSource, fingerprint, stored
for patterns in REMOTE:
    source = DatasetSource("parquet", data_files=["hf://datasets/own/data/" + p for p in patterns])
    print(json.dumps([stored(source), fingerprint(source, Path("x"))]))
"""


def test_on_the_hub_what_has_one_fingerprint_is_stored_alike(tmp_path: Path):
    write(tmp_path / "hub/datasets/own/data", REMOTE_FILES)
    with Hub(tmp_path / "hub") as hub:
        done = hub.run(HUB.format(tests=str(ROOT)), tmp_path / "home", timeout=120)
    assert done.returncode == 0, done.stderr
    made = [(what, print_) for what, print_ in map(json.loads, done.stdout.splitlines())]
    check_remote(made)
    languages = [sorted({language for _, language, _, _ in what}) for what, _ in made]
    assert languages == [[""], ["py", "rs"], [""], [""], ["py", "rs"], ["py", "rs"]]


def test_in_a_bucket_it_is_so_too(tmp_path: Path):
    write(tmp_path, REMOTE_FILES)
    with serving() as bucket:
        for name in REMOTE_FILES:
            bucket.client.upload_file(str(tmp_path / f"{name}.parquet"), "bucket", f"{name}.parquet")
        options = {"endpoint_url": bucket.endpoint, "key": "k", "secret": "s"}
        made = []
        for patterns in REMOTE:
            files = [f"s3://bucket/{pattern}" for pattern in patterns]
            source = DatasetSource("parquet", data_files=files, storage_options=options)
            made.append((stored(source), fingerprint(source, tmp_path)))
    check_remote(made)
    # Here the files are listed, so that their spelling does not matter.
    plain, template = made[0], made[1]
    assert plain[1] != template[1]
    assert made[2][1] == plain[1] != made[3][1]
