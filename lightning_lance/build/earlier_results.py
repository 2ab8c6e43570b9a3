"""What an earlier driver of the same build has had done, so that it is not done again."""

from __future__ import annotations

from lightning_lance.build.unit import Unit
from lightning_lance.build.unit_results import Written, read_result, results_at
from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import data_session
from lightning_lance.lance_names import UnitName, data_file_at
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.removal import remove_unit_files
from lightning_lance.messages.escaping import logger

_log = logger(__name__)


class EarlierResults:
    """Results of units that are not committed, one for each unit.

    Args:
        location: The store.
    """

    def __init__(self, location: StoreLocation) -> None:
        self._location = location
        self._names: dict[tuple[str, int, int], UnitName] = {}

    def find(self, shard: int, row: int) -> None:
        """Find the results of units from a place in the source on."""
        session = data_session(self._location)
        for name in results_at(self._location):
            place = (name.shard, name.row)
            whole = name.what == "scan" or session.contains(name.data_name) or not self._has_rows(name)
            if place >= (shard, row) and whole:
                self._names.setdefault((name.what, *place), name)

    @property
    def names(self) -> set[UnitName]:
        """The names of the attempts that made them."""
        return {*self._names.values()}

    def take(self, what: str, unit: Unit, key: str) -> tuple[UnitName, Written] | None:
        """Return the result of a unit, once; None if there is none with this key. One with another key is removed."""
        name = self._names.pop((what, unit.shard, unit.row), None)
        if name is None:
            return None
        try:
            written = read_result(self._location, name)
        except (StoreError, OSError) as error:
            _log.warning("%s", error)
            written = None
        if written is not None and written.key == key:
            return name, written
        remove_attempt(self._location, name)
        return None

    def _has_rows(self, name: UnitName) -> bool:
        try:
            return read_result(self._location, name).fragment is not None
        except StoreError:
            return True


def remove_attempt(location: StoreLocation, name: UnitName) -> None:
    """Remove the result of an attempt at a unit, and its data file."""
    remove_unit_files(location, {name.result_path, data_file_at(name.data_name)})
