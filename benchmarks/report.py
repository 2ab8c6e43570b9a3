"""What both benchmarks print and keep: one table, with the machine and the versions that it holds for."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def environment(packages):
    """Tell the machine, the date and the versions of some packages, those that are installed."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": found,
    }


def bar(what, value, least):
    """Say whether a bar is met; it is told, never asserted, because a busy machine moves it."""
    met = "met" if value >= least else "NOT MET"
    return {"bar": what, "value": round(value, 3), "least": least, "met": value >= least, "text": f"{value:.2f}: {met}"}


def _markdown(header, rows):
    cells = [header, *[["" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    # Names to the left, numbers to the right.
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def publish(name, title, header, rows, bars, notes, data):
    """Write the table to results/NAME.md, and with all that was measured to results/NAME.json; and print it."""
    packages = [
        f"{package} {version or 'not installed'}" for package, version in data["environment"]["packages"].items()
    ]
    env = data["environment"]
    text = "\n\n".join(
        [
            f"# {title}",
            _markdown(header, rows),
            "\n".join(f"- {entry['bar']}: {entry['text']}" for entry in bars),
            "\n".join(f"- {note}" for note in notes),
            f"{env['date']}, {env['processor']}, {env['cores']} cores, {env['system']}, Python {env['python']}; "
            + ", ".join(packages)
            + ".",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps({**data, "bars": bars}, indent=2) + "\n", encoding="utf-8")
    print(text)
