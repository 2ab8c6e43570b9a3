"""Draw the pictures of a report for docs/looking.md: of a store of this Python's own library, in a Chromium.

    CHROMIUM=/usr/bin/chromium python docs/images/report.py

Needs the packages playwright and pillow, and `lightning-lance[report]`.
"""

from __future__ import annotations

import io
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from playwright.sync_api import sync_playwright

from lightning_lance import Corpus
from lightning_lance.inspection import write_report
from lightning_lance.sources import DatasetSource
from lightning_lance.tokenization import TrainedBPE

HERE = Path(__file__).parent
LANGUAGES = {".py": "Python", ".h": "C"}
COLUMNS = {"text": "text", "repo": "repo", "path": "path", "license": "license"}
# Colours of a picture: as many as can be told apart in it.
COLOURS = 128


def documents() -> pa.Table:
    """Return the files of the library, each with its package as a repository."""
    rows = []
    paths = sysconfig.get_paths()
    for folder in (Path(paths["stdlib"]), Path(paths["include"])):
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if (
                file.suffix not in LANGUAGES
                or "site-packages" in inside.parts
                or not 200 < file.stat().st_size < 60_000
            ):
                continue
            package = inside.parts[0] if len(inside.parts) > 1 else "stdlib"
            text = file.read_text(encoding="utf-8", errors="replace")
            rows.append(
                {
                    "text": text,
                    "repo": f"python/{package}",
                    "path": str(inside),
                    "license": "psf-2.0",
                    "lang": LANGUAGES[file.suffix],
                }
            )
    return pa.Table.from_pylist(rows)


def report(folder: Path) -> Path:
    """Build a store, and write the report about it."""
    pq.write_table(documents(), folder / "library.parquet")
    source = DatasetSource.parquet([str(folder / "library.parquet")], language_column="lang", columns=COLUMNS)
    store = Corpus(source, TrainedBPE(8192), folder / "python.lance", val_fraction=0.02).prepare()
    write_report(store, folder / "report.html", context_length=512, max_steps=1000, batch_size=8)
    return folder / "report.html"


def save(name: str, png: bytes) -> None:
    """Write a picture in few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(HERE / name, optimize=True)


def draw(browser: Any, file: Path) -> None:
    """Draw the begin of the page as on a desk, and a window as on a phone."""
    desk = browser.new_page(viewport={"width": 1000, "height": 720}, color_scheme="light")
    desk.goto(file.as_uri())
    # Where it was made is nobody's business.
    desk.evaluate("document.querySelector('.place bdi').textContent = 'data/python.lance'")
    save("report.png", desk.screenshot())
    phone = browser.new_context(
        viewport={"width": 360, "height": 640},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,
        device_scale_factor=1.5,
    ).new_page()
    phone.goto(file.as_uri())
    # The last window is of the language that comes last.
    window = phone.locator("details.window").last
    window.locator("summary").tap()
    window.locator(".tokens i").nth(30).tap()
    window.locator("summary").evaluate("it => it.scrollIntoView()")
    save("report-phone.png", phone.screenshot())


def main() -> None:
    """Draw all pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = report(Path(folder))
        browser = driver.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-gpu"])
        draw(browser, file)
        browser.close()


if __name__ == "__main__":
    main()
