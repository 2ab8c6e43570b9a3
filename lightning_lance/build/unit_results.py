"""The results of units as files beside the data files, so that they outlive the driver of a cluster.

A result is one Arrow file of a single row. It is written after the data file that it describes, in one step, under the name of
its attempt (see `UnitName`); so a unit is done as soon as one of its attempts has a result.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_lance.build.unit import UnitResult
from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import Root
from lightning_lance.format.layout import DataFileInfo, files_of, properties_of
from lightning_lance.json_checks import json_of, object_of
from lightning_lance.lance_names import UNITS, UnitName, unit_of
from lightning_lance.location import StoreLocation

_KEY = b"lightning_lance_unit"


@dataclass(frozen=True)
class Written:
    """What an attempt at a unit has written.

    Attributes:
        key: What it was made from: another unit, or the same one for another store, has another key.
        result: Its result.
        fragment: Its fragment as Lance's JSON; None if it has no rows.
        files: The description of its data file, by name.
        incidents: Failures of the source that were retried, by kind.
        remarks: Warnings about the source that its reader has logged.
        whole: Whether it was read to its end, rather than to the end of the budget.
    """

    key: str
    result: UnitResult
    fragment: str | None = None
    files: Mapping[str, DataFileInfo] = field(default_factory=dict)
    incidents: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    whole: bool = True


def write_result(location: StoreLocation, name: UnitName, written: Written) -> None:
    """Write a result under its own name, which no other attempt has. OSError if it cannot be written."""
    result = written.result
    described = {
        "key": written.key,
        "shard": result.shard,
        "next_row": result.next_row,
        "ends_shard": result.ends_shard,
        "bad_shard": result.bad_shard,
        "fragment": written.fragment,
        "files": properties_of(written.files),
        "incidents": dict(written.incidents),
        "remarks": list(written.remarks),
        "whole": written.whole,
    }
    columns: dict[str, pa.Array] = {
        "rows": pa.array(result.rows),
        "num_tokens": pa.array(result.num_tokens),
        "text_bytes": pa.array(result.text_bytes),
        "documents": as_single_chunk(result.documents.to_struct_array()),
    }
    for remark, mask in result.noted.items():
        columns[f"noted:{remark}"] = pa.array(mask)
    for reason, rows in result.skipped.items():
        columns[f"skipped:{reason}"] = pa.array(rows)
    if result.hashes is not None:
        columns["hashes"] = pa.array(result.hashes)
    row = {column: _in_one_row(values) for column, values in columns.items()}
    table = pa.table(row).replace_schema_metadata({_KEY: json.dumps(described)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    _put(location, name.result_path, sink.getvalue())


def _in_one_row(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _put(location: StoreLocation, path: str, content: pa.Buffer) -> None:
    if location.is_local:
        file = Path(location.uri, path)
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f"{file.name}.{file.stem[-16:]}.part")
        part.write_bytes(content)
        part.replace(file)
        return
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(content)
        copy.flush()
        Root(location).upload(copy.name, path)


def read_result(location: StoreLocation, name: UnitName) -> Written:
    """Read a result.

    Raises:
        StoreError: If it is damaged.
        OSError: If it cannot be read.
    """
    content = Root(location).content(name.result_path)
    try:
        table = pa.ipc.open_file(content).read_all()
        table.validate(full=True)
        described = object_of(json_of((table.schema.metadata or {})[_KEY].decode(), "it"), "it")
        columns: dict[str, pa.Array] = {}
        for column in table.column_names:
            columns[column] = table.column(column).combine_chunks().flatten()
        fragment = described["fragment"]
        return Written(
            str(described["key"]),
            _result_of(described, columns),
            None if fragment is None else str(fragment),
            files_of(described["files"]),
            described["incidents"],
            list(map(str, described.get("remarks", []))),
            bool(described["whole"]),
        )
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"The result {name.result_path!r} of the token store {location.uri!r} is damaged ({error}): remove it, and run "
            "again to have that part built anew."
        ) from error


def _result_of(described: Mapping[str, Any], columns: Mapping[str, pa.Array]) -> UnitResult:
    arrays: dict[str, np.ndarray] = {}
    for column, values in columns.items():
        if column != "documents":
            arrays[column] = np.asarray(values)
    return UnitResult(
        int(described["shard"]),
        rows=arrays["rows"],
        num_tokens=arrays["num_tokens"],
        text_bytes=arrays["text_bytes"],
        documents=pa.Table.from_struct_array(columns["documents"]),
        noted=_named("noted:", arrays),
        skipped=_named("skipped:", arrays),
        next_row=described["next_row"],
        ends_shard=bool(described["ends_shard"]),
        bad_shard=described["bad_shard"],
        hashes=arrays.get("hashes"),
    )


def _named(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {column.removeprefix(prefix): values for column, values in arrays.items() if column.startswith(prefix)}


def results_at(location: StoreLocation) -> Iterator[UnitName]:
    """Yield the names of all results of a store, in the order of their units."""
    names: list[UnitName] = []
    for path in Root(location).list(UNITS):
        name = unit_of(path)
        if name is not None:
            names.append(name)
    yield from sorted(names)


def without_hashes(result: UnitResult) -> UnitResult:
    """Return a result whose documents have no hashes, which their store has."""
    names = [name for name in result.documents.column_names if name not in ("hash", "split")]
    return replace(result, documents=result.documents.select(names), hashes=None)
