"""Ask both engines about all 1.1 million code points, and write which they see differently into unicode_tables.py.

To be run after an upgrade of either engine; takes some minutes for each regular expression. Until then, builds with versions
that were not compared find out by themselves, for the characters that their texts hold.
"""

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_lance.tokenization import unicode_tables
from lightning_lance.tokenization.engine_comparison import EngineComparison, telling_apart

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_O200K = f"{_FIRST}{_UPPER}*{_LOWER}+(?i:{_CONTRACTIONS})?|{_FIRST}{_UPPER}+{_LOWER}*(?i:{_CONTRACTIONS})?|"
_PUNCTUATION = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
)
# The regular expressions that gigatoken knows, and gives the ids of `tokenizers` for in ASCII.
SPLITS: dict[str, list[str]] = {
    "llama3": [rf"{_WORDS}\p{{L}}+|\p{{N}}{{1,3}}{_OTHERS}{_LINES}"],
    "qwen2": [rf"{_WORDS}\p{{L}}+|\p{{N}}{_OTHERS}{_LINES}"],
    "qwen35": [rf"{_WORDS}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_LINES}"],
    "o200k": [rf"{_O200K}\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_LINES}"],
    "nemotron": [
        rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_LINES}",
    ],
    "deepseek_v3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        f"{_PUNCTUATION}\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
}


def pipelines() -> dict[str, dict[str, Any]]:
    """Return name to a tokenizer.json without a vocabulary."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    made = {"gpt2": (None, {**level, "use_regex": True}), "gpt2, NFC": ({"type": "NFC"}, {**level, "use_regex": True})}
    for name, patterns in SPLITS.items():
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in patterns
        ]
        made[name] = (None, {"type": "Sequence", "pretokenizers": [*splits, {**level, "use_regex": False}]})
    return {
        name: {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": {"type": "BPE"}}
        for name, (normalizer, pre_tokenizer) in made.items()
    }


def differing(name: str) -> list[int]:
    """Return the code points that the engines see differently with a pipeline."""
    comparison = EngineComparison(pipelines()[name])
    if not comparison.agrees():
        raise SystemExit(f"With {name}, the engines differ in ASCII already.")
    return [
        int(point)
        for point in comparison.differing(
            range(0x80 // unicode_tables.BLOCK, unicode_tables.POINTS // unicode_tables.BLOCK)
        )
    ]


def ranges(points: Iterable[int]) -> Iterator[str]:
    """Give sorted code points as ranges such as `897-89F`."""
    low = high = -2
    for point in [*points, -2]:
        if point == high + 1:
            high = point
            continue
        if high >= 0:
            yield f"{low:X}" if low == high else f"{low:X}-{high:X}"
        low = high = point


def written(points: Iterable[int], parts: Iterable[str]) -> str:
    """Return the lines of unicode_tables.py that say what was found."""
    versions = {name: version(name) for name in ("gigatoken", "tokenizers")}
    rows = [f'    "{row} "' for row in textwrap.wrap(" ".join(ranges(points)), 118)]
    names = textwrap.wrap(", ".join(f'"{part}"' for part in sorted(parts)), 118)
    lines = [f"COMPARED_WITH = {versions}".replace("'", '"'), "COMPARED = {", *(f"    {row.rstrip()}" for row in names)]
    lines[-1] += ","
    return "\n".join([*lines, "}", "NEWER = (", *rows, ")", ""])


def main() -> None:
    """Compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as processes:
        found = {*unicode_tables.points_of("")}.union(*processes.map(differing, pipelines()))
    parts = {part for fields in pipelines().values() for part in telling_apart(fields)}
    file = Path(unicode_tables.__file__)
    made = written(sorted(found), parts)
    text = re.sub(
        r"COMPARED_WITH = .*?(?=# End of what is made)", lambda _: made, file.read_text(), count=1, flags=re.DOTALL
    )
    file.write_text(text)


if __name__ == "__main__":
    main()
