"""The page in a browser: nothing is refused or said on the console, keyboard and touch work, and it fits a phone.

Needs a Chromium: one on PATH, at the path in the environment variable CHROMIUM, or the one that `make test` fetches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_lance.inspection import write_report
from tests.support.chromium import found
from tests.support.reported import hostile_store

CHROMIUM = found()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: make test fetches one where npm is, or set CHROMIUM to the path of one"
)

# The lightness of a colour, as browsers write it: WCAG 2, relative luminance.
CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      const [, , , alpha] = channels(colour);
      if (alpha === undefined || alpha === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let least = [21, ""];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words || !element.getClientRects().length || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const own = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(own), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, `${element.tagName}.${element.className} ${own} on ${behind(element)}`];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    write_report(hostile_store(folder).uri, path, context_length=64, max_steps=10, batch_size=4)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None
    with sync_playwright() as driver:
        # A sandbox needs rights that containers lack; the page is our own.
        started = driver.chromium.launch(
            executable_path=CHROMIUM.path,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            env={**os.environ, **CHROMIUM.environment},
        )
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_works_in_a_browser(browser: Any, page_file: Path, width: int, scheme: str):
    is_phone = width < 500
    context = browser.new_context(
        viewport={"width": width, "height": 740}, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (e) => console.log('refused', e.violatedDirective))"
    )
    page.goto(page_file.as_uri())

    # By keyboard: the first stop leads past the navigation; a window opens by Enter, and the arrows go through its tokens.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    summary = page.locator("#window-2 summary")
    summary.focus()
    page.keyboard.press("Enter")
    first = page.locator("#window-2 .tokens i").first
    page.keyboard.press("Tab")
    assert first.evaluate("it => it === document.activeElement")
    assert first.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    readout = page.locator("#window-2 .readout")
    shown = readout.inner_text()
    assert shown.startswith(f"id {first.get_attribute('data-id')}: ")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() != shown
    assert "position 1 " in readout.inner_text()
    page.keyboard.press("ArrowDown")
    assert "position 1 " not in readout.inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    assert "position 63 " in readout.inner_text()
    page.keyboard.press("Home")
    assert "position 0 " in readout.inner_text()
    # The Tab key leaves the tokens at once.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.window').id") == "window-3"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert summary.evaluate("it => it === document.activeElement")

    # By touch or mouse.
    other = page.locator("#window-3 summary")
    third = page.locator("#window-3 .tokens i").nth(20)
    if is_phone:
        other.tap()
        third.tap()
    else:
        other.click()
        third.hover()
    assert page.locator("#window-3 .readout").inner_text().startswith(f"id {third.get_attribute('data-id')}: ")
    assert "owner/" in page.locator("#window-3 .readout").inner_text()

    # It fits, and can be read.
    for details in page.locator("details").all():
        details.evaluate("it => { it.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)"
    )
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    for svg in page.locator("svg").all():
        box = svg.bounding_box()
        # Words of pictures are not smaller than they are drawn, nearly.
        assert 0.85 * 340 < box["width"] <= width

    # What a hostile document tried has not happened.
    assert page.evaluate("window.hit") is None
    assert said == []
    assert asked == [page_file.as_uri()]
    context.close()
