"""`DatasetSource.parquet`, `.jsonl` and `.hub` are other spellings of the constructor."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.plan import make_plan
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError
from lightning_lance.sources import DatasetSource, FilesSource
from lightning_lance.sources.dataset_spec import DatasetSpec, FileOptions, HubOptions
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.laws import examples

COLUMNS = {"text": "content", "path": "path"}
SHARED = {
    "revision": st.sampled_from([None, "main", "v1"]),
    "languages": st.just(["Python"]),
    "language_column": st.sampled_from([None, "lang"]),
    "extensions": st.sampled_from([None, {"Python": [".py"]}]),
    "where": st.sampled_from([{}, {"license": ["mit", None]}, {"stars": [3, 1.5]}]),
    "text_filter": st.builds(TextFilter, min_bytes=st.integers(0, 9)),
    "shard_seed": st.none() | st.integers(0, 9),
    "dedup": st.sampled_from(["none", "exact"]),
    "timeout_seconds": st.floats(1, 99),
    "max_retries": st.integers(0, 9),
    "on_bad_shard": st.sampled_from(["error", "skip"]),
    "loss_mask_column": st.sampled_from([None, "spans"]),
    "name": st.sampled_from(["mine", "yours"]),
}
FILES = {"storage_options": st.just({"anon": True}), "follow_links": st.booleans()}
# Training and validation files, local or on the Hub.
PLACES = [
    (["{root}/a.{ending}"], ["{root}/b.{ending}"]),
    (["{root}/[a].{ending}", "{root}/a.*"], ["{root}/b.*"]),
    (["hf://datasets/own/name/*.{ending}"], ["hf://datasets/own/name/val/*"]),
]
HUB = {"val_split": st.sampled_from([None, "validation"])}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for name in ("a", "b"):
        pq.write_table(pa.table({"content": ["x"], "path": ["x.py"], "lang": ["Python"]}), root / f"{name}.parquet")
        (root / f"{name}.jsonl").write_text('{"content": "x", "path": "x.py", "lang": "Python"}\n')
    return root


def outcome(make: Callable[[], DatasetSource]) -> Any:
    """Return a source with its identity and place, or its error message."""
    try:
        source = make()
        plan = make_plan(source, ByteTokenizer(), data_dir="data")
    except ConfigError as error:
        return str(error)
    return type(source), source, source.identity(), plan.fingerprint, plan.uri


@examples(40)
@given(
    kind=st.sampled_from(["parquet", "jsonl"]),
    place=st.sampled_from(PLACES),
    validation=st.booleans(),
    options=st.fixed_dictionaries({}, optional={**SHARED, **FILES}),
)
def test_files(
    root: Path,
    kind: Literal["parquet", "jsonl"],
    place: tuple[list[str], list[str]],
    validation: bool,
    options: dict[str, Any],
):
    files, val_files = ([pattern.format(root=root, ending=kind) for pattern in patterns] for patterns in place)
    if validation:
        options["val_files"] = val_files
    options["columns"] = COLUMNS
    short = outcome(lambda: getattr(DatasetSource, kind)(files, **options))
    path = "json" if kind == "jsonl" else kind
    assert short == outcome(lambda: DatasetSource(path, data_files=files, **options))


@examples(40)
@given(
    place=st.fixed_dictionaries({}, optional={"config": st.sampled_from([None, "sample"]), "split": st.just("test")}),
    options=st.fixed_dictionaries({}, optional={**SHARED, **HUB}),
)
def test_datasets_of_the_hub(place: dict[str, Any], options: dict[str, Any]):
    options["columns"] = COLUMNS
    short = outcome(lambda: DatasetSource.hub("own/name", **place, **options))
    assert short == outcome(lambda: DatasetSource("own/name", **place, **options))


def test_every_option_of_the_constructor_can_be_given_with_its_type():
    types = get_type_hints(DatasetSpec)
    names = {field.name for field in fields(DatasetSpec) if field.init}
    for options, own in ((FileOptions, {"path", "data_files"}), (HubOptions, {"path", "config", "split"})):
        typed = get_type_hints(options)
        assert {name: types[name] for name in typed} == typed
        assert not typed.keys() & own
    assert {*FileOptions.__annotations__, *HubOptions.__annotations__, "path", "data_files", "config", "split"} == names
    # The test above draws each of them.
    drawn = {*SHARED, *FILES, *HUB, "columns", "val_files"}
    assert drawn == {*get_type_hints(FileOptions), *get_type_hints(HubOptions)}


def test_languages_of_folders_and_paths(root: Path):
    made = outcome(lambda: DatasetSource.parquet([root / "{language}.parquet"], columns=COLUMNS, languages=["a"]))
    files = [str(root / "{language}.parquet")]
    assert made == outcome(lambda: DatasetSource("parquet", COLUMNS, data_files=files, languages=["a"]))
    assert made[2]["folder_languages"] == ["a"]


def test_one_string_is_a_list_of_one():
    one = DatasetSource.parquet("x.parquet", val_files=Path("y.parquet"), languages="a", language_column="l")
    many = DatasetSource.parquet(["x.parquet"], val_files=["y.parquet"], languages=["a"], language_column="l")
    assert one == many
    assert FilesSource("src", languages="Rust") == FilesSource(("src",), languages=["Rust"])


def test_values_are_checked_as_ever():
    with pytest.raises(ConfigError, match=r"source\.dedup is 'fuzzy'"):
        DatasetSource.jsonl(["x.jsonl"], dedup="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"source\.path is None: expected text"):
        DatasetSource.hub(None)  # type: ignore[arg-type]


def test_an_unknown_option_is_named_with_what_was_called():
    with pytest.raises(
        ConfigError, match=r"^DatasetSource.jsonl has no option column: did you mean columns\? expected some of"
    ):
        DatasetSource.jsonl("a.jsonl", column="x")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"^DatasetSource.hub has no option val_files: "):
        DatasetSource.hub("a/b", val_files="x")  # type: ignore[call-arg]
