"""The versions that the tests run with, and the ranges of pyproject.toml."""

import sys
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along
    import tomli as tomllib

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for line in [*project()["dependencies"], *(line for extra in extras for line in extra)]]


def pins(name: str, python: str) -> dict[str, str]:
    """Each package and its version in a file of constraints, as a Python reads it."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    read = [Requirement(line) for line in lines]
    there = [pin for pin in read if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    found = [(canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")) for pin in there]
    assert len(dict(found)) == len(found), "a package has two versions"
    return dict(found)


def test_the_lowest_versions_are_the_lower_bounds():
    bounds = {
        (canonicalize_name(one.name), part.version)
        for one in ranges()
        for part in one.specifier
        if part.operator == ">="
    }
    of_the_project = {name for name, _ in bounds}
    lowest = pins("constraints-lowest.txt", "3.10")
    assert {(name, version) for name, version in lowest.items() if name in of_the_project} == bounds


@pytest.mark.parametrize("python", PYTHONS)
def test_each_pin_is_in_its_range_on_each_python(python: str):
    pinned = pins("constraints.txt", python)
    for one in ranges():
        version = pinned.get(canonicalize_name(one.name))
        assert version is None or one.specifier.contains(Version(version)), one
    needed = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    assert needed <= {*pinned}
