"""The code of a page of the documentation: what runs, in its order, and what the page says of it.

A comment before a block tells what it is:

- `<!-- not run: REASON -->`: it needs a network, a GPU or more time.
- `<!-- file: NAME -->`: the reader saves it under this name.
- `<!-- fails -->`: the command ends with an error.
- `<!-- output -->`: what the command or the Python before it writes. Numbers may differ, and `...` stands for anything.
- `<!-- mistake: COMMAND -->`: what this command writes, which fails.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMENT = re.compile(r"<!-- ([\w ]+?)(?:: (.*))? -->")
_KINDS = ("not run", "file", "fails", "output", "mistake")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        place: Its page and line.
        line: Its first line of code in the page.
        language: What the fence says.
        code: What is in it.
        kind: What the comment before it says; empty without one.
        detail: What the comment says after its colon.
    """

    place: str
    line: int
    language: str
    code: str
    kind: str = ""
    detail: str = ""


def name_of(page: Path) -> str:
    """Return the name of a page in messages."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    kind = detail = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if comment := _COMMENT.fullmatch(line):
            kind, detail = comment[1], comment[2] or ""
            assert kind in _KINDS, f"{name_of(page)}:{number}: {line}"
        elif line.startswith("```"):
            end = lines.index("```", number)
            code = "\n".join(lines[number:end]) + "\n"
            yield Block(f"{name_of(page)}:{number + 1}", number + 1, line[3:].strip(), code, kind, detail)
            kind = detail = ""
            number = end + 1
        elif line.strip():
            assert not line.lstrip().startswith("```"), f"{name_of(page)}:{number}: a block that is indented is not run"
            assert not kind, f"{name_of(page)}:{number}: a comment stands directly before its block"


def commands(code: str) -> list[str]:
    """Return the commands of a block of bash."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def is_said(said: str, written: str) -> bool:
    """Return whether the output of a page is in what was written. Numbers may differ, and `...` stands for anything."""
    parts = [re.escape(_without_numbers(part)) for part in said.split("...")]
    return re.search(".*?".join(parts), _without_numbers(written)) is not None


def _without_numbers(text: str) -> str:
    return re.sub(r"\b[0-9][0-9,._]*[0-9]\b|\b[0-9]\b", "0", " ".join(text.split()))
