"""Take the README's pictures of a report page: `python take_pictures.py [report.html] OUT_FOLDER`.

Without a page the made-up report of the tests is shown.
"""

import sys
import tempfile
from pathlib import Path

from conftest import LAUNCH
from made_report import make_report, make_rows
from playwright.sync_api import sync_playwright

from tunegate.evalkit.render.html import render


def main() -> None:
    out = Path(sys.argv[-1])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(sys.argv[1]).resolve() if len(sys.argv) > 2 else Path(folder) / "report.html"
        if len(sys.argv) <= 2:
            mine, theirs = make_rows()
            page.write_text(render(make_report(mine, theirs), mine, theirs), encoding="utf-8")
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=LAUNCH)
        for name, width, height, scale in (("desktop", 1280, 1180, 1), ("phone", 360, 740, 2)):
            tab = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            tab.goto(page.as_uri())
            if name == "phone":
                tab.locator(".item-id").first.click()
                tab.locator("tr.item.open").evaluate("row => row.scrollIntoView()")
            tab.screenshot(path=out / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
