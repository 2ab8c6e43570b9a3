"""A build is killed at every call that changes a file, and built again: all is as if it had never been killed.

Where nothing was left to build, `clean` removes what is left; a build does so by itself.

A sample of the points, the same in every run; `CRASH_POINTS=all` runs them all, in some minutes: see
`tests/support/crashes.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.crashes import KINDS, Server

# Points of each kind of build, where not all are asked for.
SAMPLE = 5
# Of the clock: a slow build reports its progress more often.
BY_THE_CLOCK = "x.building.json"

Point = tuple[str, int]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("crashes"))
    yield server
    server.close()


def points(seen: dict[str, int]) -> list[Point]:
    """All points of a build: the n-th of each kind, in an order in which any beginning is a fair sample."""
    found = [
        # The first and the last of a kind come before those between them.
        (min(number - 1, count - number), kind, number)
        for kind, count in sorted(seen.items())
        if BY_THE_CLOCK not in kind
        for number in range(1, count + 1)
    ]
    return [(kind, number) for _, kind, number in sorted(found)]


def sample(all_points: list[Point]) -> list[Point]:
    if os.environ.get("CRASH_POINTS") == "all":
        return all_points
    step = max(1, len(all_points) // SAMPLE)
    return all_points[::step]


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_that_was_killed_at_any_call_ends_as_if_it_had_not_been(server: Server, kind: str):
    """A new store, one that grows, and one that replaces another: with some commits, a merge, and the last commit."""
    clean = server.ask(kind, None)
    assert "error" not in clean["found"], clean["found"]
    seen = clean["seen"]
    # A merge is a commit that no batch of documents made.
    assert seen["before commit"] > 4
    assert seen["os.remove x.lance/data/*.lance"] > 2
    wrong: dict[str, Any] = {}
    for point in sample(points(seen)):
        done = server.ask(kind, point)
        assert done["killed"], f"{point} was not reached"
        if done["found"] != clean["found"]:
            expected = clean["found"]
            wrong[str(point)] = {key: found for key, found in done["found"].items() if found != expected.get(key)}
    assert wrong == {}


def test_the_points_are_those_of_every_call_that_writes(server: Server):
    """So that a call which this test does not know of is noticed: each file of a store is made by one that it knows."""
    seen = server.ask("replaced", None)["seen"]
    kinds = {kind.partition(" x.")[0] for kind in seen}
    assert {"open", "opened", "os.rename", "os.remove", "shutil.rmtree"} <= kinds
    assert {"before write_fragments", "rows of write_fragments", "before commit", "before create"} <= kinds
    assert {
        f"commit has {what}" for what in ("written the transaction", "written the manifest", "named the manifest")
    } <= kinds
    taken = len(points(seen))
    assert taken == len({*points(seen)})
    assert taken > 100


def test_the_points_are_in_a_fixed_order():
    assert points({"b": 3, "a": 1, f"open {BY_THE_CLOCK}": 9}) == [("a", 1), ("b", 1), ("b", 3), ("b", 2)]
