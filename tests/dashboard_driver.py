"""Look at Trackio's dashboard in a headless browser; test_trackers.py runs this with the Python of outputs/lab-env.

    python tests/dashboard_driver.py CHROMIUM URL PICTURE WORD …

Waits until all words stand in the page and a curve is drawn; prints the text, and the number of marks, as JSON.
"""

import json
import sys

from playwright.sync_api import sync_playwright

DRAWN = """() => [...document.querySelectorAll('svg path, canvas')].filter(
  mark => mark.tagName.toLowerCase() === 'canvas' || (mark.getAttribute('d') || '').split(/[LC]/).length > 4).length"""


def main(chromium, url, picture, words):
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        for word in words:
            page.get_by_text(word).first.wait_for(timeout=60_000)
        page.wait_for_function(f"({DRAWN})() > 0", timeout=60_000)
        page.screenshot(path=picture)
        print(json.dumps({"text": page.inner_text("body"), "marks": page.evaluate(DRAWN)}))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
