"""The made-up report, hostile texts, and one Chromium for the browser tests."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LAUNCH = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = {
    "script": "</script><script>window.hacked = 1; alert(1)</script><!-- <script>",
    "markup": '<img src=x onerror="window.hacked = 2"> <svg/onload=alert(3)> <style>*{display:none}</style>',
    "markdown": "# Title\n[click](javascript:alert(4)) **bold** ![x](https://example.org/pixel.png)",
    "ansi": "\x1b[31mred\x1b[0m \x1b]8;;https://example.org\x07link\x1b]8;;\x07",
    "bidi": "user \u202etxt.exe\u202c and \u2066isolated\u2069 \u200bzero\u200dwidth \ufeff",
    "nul": "before\x00after\x08\x7f\x85",
    "surrogate": "half \ud83d of a pair",
    "tags": "hidden \U000e0068\U000e0069 instruction",
    "slots": "{{data}} {{script}} $& \\1 ]]> -->",
    "separator": "line\u2028separator\u2029 here",
}


def _made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_report", Path(__file__).with_name("made_report.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made() -> ModuleType:
    return _made()


@pytest.fixture(scope="session")
def hostile() -> dict[str, str]:
    return HOSTILE


@pytest.fixture(scope="session")
def hostile_report(made: ModuleType) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """A report in which every string that a stranger can choose is hostile."""
    mine, theirs = made.make_rows(len(HOSTILE) + 1)
    for text, row, base in zip(HOSTILE.values(), mine, theirs, strict=False):
        row["id"] = base["id"] = f"{row['id']} {text}"
        row.update(output=text, expected=text, reason=text, finish_reason=text, tags={"topic": text, text: text})
        row["messages"] = [
            {"role": text, "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ]
        row["scores"] = {text: {"pass": False, "score": 0, "reason": text}}
        base["output"] = text[::-1]
    mine[-1].update(id="long", output="x\u202ey" + "0123456789" * 100_000)
    theirs[-1]["id"] = "long"
    report = made.make_report(made.make_rows(12)[0], made.make_rows(12)[1], "FAIL")
    everything = " ".join(HOSTILE.values())
    report["name"] = everything
    report["target"]["spec"] = report["data"]["path"] = report["task"]["name"] = report["created"] = everything
    report["metrics"][everything] = {"value": 0.5, "low": 0.4, "high": 0.6}
    report["slices"]["topic"][everything] = {"n": 3, "metrics": {"exact": {"value": 0.5, "low": 0.1, "high": 0.9}}}
    report["comparison"]["baseline"]["name"] = everything
    report["comparison"]["allowed_differences"] = [everything]
    report["comparison"]["flips"] = [
        {"id": mine[0]["id"], "direction": "broken", "cause": everything, "reason": everything}
    ]
    report["decision"]["conditions"][0].update(metric=everything, reason=everything, rule=everything)
    report["lineage"][0].update(path=everything, role=everything, digest=everything)
    return report, mine, theirs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium for the tests of one file: Playwright keeps an event loop running, and later tests need the thread's own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (Debian and Ubuntu: apt-get install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, headless=True, args=LAUNCH)
        yield started
        started.close()
