"""Take the pictures of docs/: `python take_pictures.py OUT_FOLDER`. Scores and releases are made up; pages are the real ones."""

import json
import os
import random
import sys
import tempfile
import threading
from pathlib import Path

from conftest import LAUNCH
from made_report import make_report, make_rows
from playwright.sync_api import Browser, sync_playwright

from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.evalkit.cli import eval_app
from tunegate.evalkit.render.html import render
from tunegate.evalkit.report_server import ReportServer

SIZES = {"desktop": (1280, 1180, 1), "phone": (360, 740, 2)}
# release -> (day of 2026 it was judged, share of items that are right)
RELEASES = {"base": ("09-01", 0.74), "lora-1": ("09-15", 0.75), "lora-2": ("10-06", 0.81), "lora-3": ("10-20", 0.62), "lora-3-awq": ("11-10", 0.83)}  # fmt: skip
TASK = "name: intents\ndata: eval.jsonl\nvalidators: [{name: exact, kind: exact_match}]\n"


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder = Path(place)
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=LAUNCH)
        mine, theirs = make_rows()
        page = folder / "report.html"
        page.write_text(render(make_report(mine, theirs), mine, theirs), encoding="utf-8")
        shoot(browser, page.as_uri(), "report", out)
        judge_releases(folder)
        with ReportServer(Path("reports"), 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            shoot(browser, f"http://127.0.0.1:{server.server_address[1]}/", "trend", out)
            server.shutdown()
        browser.close()


def shoot(browser: Browser, url: str, name: str, out: Path) -> None:
    """One picture for each width, light and dark; on a phone the report's first item is open."""
    for size, (width, height, scale) in SIZES.items():
        for scheme in ("light", "dark"):
            tab = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme
            )
            tab.goto(url)
            if size == "phone" and name == "report":
                tab.locator(".item-id").first.click()
                tab.locator("tr.item.open").evaluate("row => row.scrollIntoView()")
            tab.screenshot(path=out / f"{name}-{size}{'' if scheme == 'light' else '-dark'}.png")
            tab.close()


def judge_releases(folder: Path) -> None:
    """Reports of five made-up releases, each compared with the first, by the real command."""
    os.chdir(folder)
    os.environ["TUNEGATE_HOME"] = str(folder / "home")
    rng, ids = random.Random(1), [f"i{n}" for n in range(300)]
    turns = [{"id": i, "messages": [{"role": "user", "content": i}, {"role": "assistant", "content": "yes"}]} for i in ids]  # fmt: skip
    Path("eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    Path("task.yaml").write_text(TASK)
    hard = {i: rng.random() for i in ids}
    for name, (day, share) in RELEASES.items():
        manifest.now = lambda day=day: f"2026-{day}T09:00:00Z"
        said = [{"id": i, "output": "yes" if hard[i] + rng.uniform(-0.1, 0.1) < share else "no"} for i in ids]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        against = [] if name == "base" else ["--against", "reports/base"]
        run(
            eval_app,
            prog="ft eval",
            argv=[f"{name}.jsonl", "--task", "task.yaml", "--out", f"reports/{name}", *against],
        )


if __name__ == "__main__":
    main()
