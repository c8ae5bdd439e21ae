"""Drive JupyterLab in a headless browser; tests/test_lab.py runs this with the Python of outputs/lab-env.

    python tests/lab_driver.py CHROMIUM URL NOTEBOOK MINUTES [LINE NEW-LINE …]

Opens a notebook whose counts were cleared, writes other lines of code in the place of some, restarts and runs all,
waits until every cell has a count or one has failed, saves, and prints what it saw as JSON.
"""

import json
import sys
import time
from pathlib import Path

from playwright.sync_api import TimeoutError as Late
from playwright.sync_api import sync_playwright

TURN = """() => { const pane = document.querySelector('.jp-WindowedPanel-outer'), before = pane.scrollTop;
  pane.scrollTop += 400; return pane.scrollTop === before; }"""
PLACES = """selector => [...document.querySelectorAll('.jp-Notebook .jp-Cell')].filter(
  cell => cell.querySelector(selector)).map(cell => Number(cell.dataset.windowedListIndex))"""


def answer_dialogs(page):
    """Accept every dialogue that stands in the way."""
    for _ in range(5):
        button = page.locator("dialog.jp-Dialog .jp-Dialog-button.jp-mod-accept, .jp-Dialog .jp-mod-accept").first
        if not button.is_visible():
            return
        button.click()
        page.wait_for_timeout(500)


def pages(page):
    """Turn the notebook page by page, from its beginning to its end: cells far from the window are not drawn."""
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    for _ in range(400):
        page.wait_for_timeout(200)
        yield
        if page.evaluate(TURN):
            return


def places(page, selector):
    """Return the places of the cells that hold what a selector names, among those that are drawn."""
    return set(page.evaluate(PLACES, selector))


def walk(page):
    """Return ([places of folded cells], [places of cells with an image]) of the whole notebook."""
    folded, images = set(), set()
    for _ in pages(page):
        folded |= places(page, ".jp-InputPlaceholder")
        images |= places(page, ".jp-RenderedImage img")
    return sorted(folded), sorted(images)


def replace_line(page, old, new):
    """Write a line of code in the place of the one that begins with `old`, as a reader would: by mouse and keyboard."""
    line = page.locator(".jp-Notebook .cm-line:visible", has_text=old).first
    for _ in pages(page):
        if line.is_visible():
            break
    line.click()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+End")
    page.keyboard.insert_text(new)


def is_done(path):
    """Tell, from the saved file, whether every code cell ran, or one failed."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    failed = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    return failed or all(cell["execution_count"] for cell in cells)


def drive(page, url, path, minutes, changes):
    """Return what was seen: folded cells before and after the run, headings of the side panel, texts that stand open."""
    seen = {}
    page.goto(url, timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)
    answer_dialogs(page)
    seen["folded"], _ = walk(page)
    page.locator('[data-id="table-of-contents"]').first.click()
    page.wait_for_selector(".jp-TableOfContents .jp-tocItem", timeout=60_000)
    seen["headings"] = page.locator(".jp-TableOfContents .jp-tocItem-content").all_inner_texts()
    for old, new in changes:
        replace_line(page, old, new)
    page.keyboard.press("Escape")
    page.locator(".lm-MenuBar-itemLabel", has_text="Kernel").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Restart Kernel and Run All Cells").first.click()
    page.wait_for_timeout(1000)
    answer_dialogs(page)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        page.wait_for_timeout(5000)
        answer_dialogs(page)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        if is_done(path):
            break
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2000)
    seen["folded after"], seen["images"] = walk(page)
    return seen


def main():
    chromium, url, path, minutes, *changes = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        try:
            pairs = list(zip(changes[::2], changes[1::2], strict=True))
            seen = drive(page, url, Path(path), float(minutes), pairs)
        except Late as error:
            page.screenshot(path=Path(path).with_suffix(".png"))
            raise SystemExit(f"JupyterLab did not show what was waited for: {error}") from None
        finally:
            browser.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
