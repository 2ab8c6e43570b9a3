"""Pictures of counts, as SVG that takes its colours from the page and has nothing in it but shapes and words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lightning_lance.inspection.report.spelling import cut, visible

# As wide as a phone: a picture is never made smaller, so that its words can be read.
_WIDTH = 340
_HEIGHT = 220
_ROW = 22
_LABEL = 18
_SVG = "http://www.w3.org/2000/svg"
# All that charts consist of. The rest, such as links and styles, is left out.
_ELEMENTS = {"svg", "g", "path", "line", "rect", "text", "tspan"}
_ATTRIBUTES = {
    "d", "transform", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "width", "height", "viewBox", "fill", "fill-opacity",
    "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "stroke-miterlimit", "opacity", "text-anchor",
    "font-family", "font-size", "font-weight", "display",
}  # fmt: skip
_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
    },
}
_COLOUR = "var(--mark)"
# 1,500 as 1.5k.
_SHORT = "format(datum.value, '~s')"


def bars(rows: Sequence[tuple[str, float]], title: str, noun: str = "") -> str:
    """Return a chart with a horizontal bar for each row, the first on top.

    Args:
        rows: Names and numbers.
        title: What the numbers are.
        noun: What the names are; empty where they tell themselves.
    """
    import altair as alt

    labels: list[str] = []
    values: list[dict[str, Any]] = []
    for name, number in rows:
        label = _label(name, labels)
        labels.append(label)
        values.append({"name": label, "number": number})
    names = alt.Y("name:N", sort=None, title=noun or None, axis=alt.Axis(ticks=False, domain=False))
    numbers = alt.X("number:Q", title=title, axis=alt.Axis(tickCount=4, labelExpr=_SHORT))
    chart = alt.Chart(alt.Data(values=values)).mark_bar(color=_COLOUR).encode(x=numbers, y=names)
    return _svg(chart, height=max(len(rows), 1) * _ROW + 50)


def histogram(lengths: Mapping[int, int], title: str, noun: str) -> str:
    """Return a histogram over a logarithmic axis, with bars from each power of two to the next.

    Args:
        lengths: How often each length occurs.
        title: What has the lengths.
        noun: What they are counted in.
    """
    import altair as alt

    counts: dict[int, int] = {}
    for length, times in lengths.items():
        power = max(int(length), 1).bit_length() - 1
        counts[power] = counts.get(power, 0) + times
    powers = range(min(counts, default=0), max(counts, default=0) + 1)
    values: list[dict[str, int]] = []
    for power in powers:
        values.append({"low": 2**power, "high": 2 ** (power + 1), "zero": 0, "number": counts.get(power, 0)})
    scale = alt.Scale(type="log", base=2, nice=False)
    # A few, so that their labels do not touch.
    ticks = [2**power for power in powers[:: -(-len(powers) // 5)]]
    low = alt.X("low:Q", scale=scale, title=noun, axis=alt.Axis(values=ticks, format=",", grid=False))
    number = alt.Y("number:Q", title=title, axis=alt.Axis(tickCount=4, labelExpr=_SHORT))
    chart = alt.Chart(alt.Data(values=values)).mark_bar(color=_COLOUR).encode(x=low, x2="high:Q", y=number, y2="zero:Q")
    return _svg(chart, height=_HEIGHT)


def by_rank(counts: np.ndarray) -> str:
    """Return how often ids occur against their rank, both axes logarithmic. `counts`: from the most frequent one on."""
    import altair as alt

    there = counts[counts > 0]
    ranks = np.unique(np.geomspace(1, max(len(there), 1), 160).astype(np.int64))
    values: list[dict[str, int]] = []
    for place in ranks[ranks <= len(there)].tolist():
        values.append({"rank": place, "count": int(there[place - 1])})
    axis = alt.Axis(values=[10**power for power in range(19)], labelExpr=_SHORT)
    rank = alt.X("rank:Q", scale=alt.Scale(type="log", nice=False), title="rank", axis=axis)
    count = alt.Y("count:Q", scale=alt.Scale(type="log"), title="occurrences", axis=axis)
    chart = alt.Chart(alt.Data(values=values)).mark_line(color=_COLOUR, strokeWidth=2).encode(x=rank, y=count)
    return _svg(chart, height=_HEIGHT)


def _label(name: str, others: Collection[str]) -> str:
    """Return a short name that differs from all others: rows of one name would be one bar."""
    short = cut(visible(name), _LABEL)
    label = short
    number = 2
    while label in others:
        label = f"{short} ({number})"
        number += 1
    return label


def _svg(chart: Any, height: int) -> str:
    import vl_convert

    # Not validated, which takes as long as drawing: the charts are those above, whatever the numbers are.
    spec = chart.to_dict(validate=False)
    spec.update(width=_WIDTH, height=height, autosize={"type": "fit", "contains": "padding"}, config=_CONFIG)
    return cleaned_svg(vl_convert.vegalite_to_svg(spec))


def cleaned_svg(text: str) -> str:
    """Return an SVG with known shapes and words only, hidden from readers of the page who hear it: tables tell them more."""
    root = ElementTree.fromstring(text)
    _clean(root)
    width, height = root.attrib.pop("width"), root.attrib.pop("height")
    root.attrib.setdefault("viewBox", f"0 0 {width} {height}")
    root.set("aria-hidden", "true")
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _clean(element: ElementTree.Element) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    for name in [*element.attrib]:
        if name not in _ATTRIBUTES or "url(" in element.attrib[name]:
            del element.attrib[name]
    for child in [*element]:
        if child.tag.removeprefix(f"{{{_SVG}}}") in _ELEMENTS and child.get("display") != "none":
            _clean(child)
        else:
            element.remove(child)
