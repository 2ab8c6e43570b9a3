from typing import Any

from lightning_lance.format.layout import StoreContent
from lightning_lance.serving.description import (
    described_changes,
    entries_by_name,
    extent_in,
    known_differences,
    selected_by,
)

ENTRY = {"name": "code", "uri": "/a", "fingerprint": "f1", "tokens": 10, "forgotten": ["x"], "version": 1}
OTHER = {"name": "prose", "uri": "/b", "fingerprint": "f2", "tokens": 20, "forgotten": [], "version": 2}
SELECTED = {
    "split": "train",
    "context_length": 8,
    "order": "shuffle",
    "seed": 0,
    "shuffle_block": None,
    "where": {},
    "mix": {"code": 1.0, "prose": 2.0},
}
STATE: dict[str, Any] = {"cursor": 3, **SELECTED, "stores": [ENTRY, OTHER]}
FINGERPRINTS: dict[str, str | None] = {"code": "f1", "prose": "f2"}


def differences(fingerprints: dict[str, str | None], **changes: Any) -> dict[str, tuple[Any, Any]]:
    return known_differences(STATE, {**SELECTED, **changes}, fingerprints)


def test_what_selects_is_taken_from_a_state():
    assert selected_by(STATE) == SELECTED
    assert selected_by({**STATE, "windows": "packed"}) == {**SELECTED, "windows": "packed"}


def test_stores_are_found_by_name():
    assert entries_by_name(STATE) == {"code": ENTRY, "prose": OTHER}
    assert extent_in(ENTRY) == StoreContent(10, ("x",))


def test_what_may_change_during_a_run_is_no_difference():
    assert differences(FINGERPRINTS) == {}
    assert differences(FINGERPRINTS, context_length=16, mix={"prose": 1.0, "code": 5.0}) == {}


def test_what_changes_the_sequence_is_a_difference():
    changed = differences(FINGERPRINTS, seed=1, windows="packed", mix={"code": 1.0})
    assert changed == {"seed": (0, 1), "mix": (["code", "prose"], ["code"]), "windows": ("stream", "packed")}
    assert differences({"code": "f1", "prose": "f3"}) == {"stores.fingerprint": (["f1", "f2"], ["f1", "f3"])}


def test_a_fingerprint_that_is_not_known_yet_is_no_difference():
    assert differences({"code": "f1", "prose": None}) == {}
    # Nothing says which of the stores it would be.
    assert differences({"code": "f1", "text": None}) == {"stores.name": (["code", "prose"], ["code", "text"])}


def test_differences_are_told_one_after_the_other():
    changed = {"seed": (0, 1), "stores.fingerprint": (["f1", "f2"], ["f1", "f3"])}
    said = described_changes(changed, STATE, ["/a", "/c"])
    assert said == "seed: 0 -> 1; stores: '/a, /b' -> '/a, /c', built with other settings"
    rebuilt = described_changes({"stores.fingerprint": (["f1"], ["f3"])}, STATE, ["/a", "/b"])
    assert rebuilt == "stores: built with other settings"
