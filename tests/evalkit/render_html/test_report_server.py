"""`ft report serve`: the list and trend of a folder of reports, over a real socket and in Chromium."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.evalkit.report_server import ReportServer
from tunegate.evalkit.report_trend import collect, trend

TASK = """name: answers
data: eval.jsonl
validators: [{name: exact, kind: exact_match}]
generation: {max_tokens: 8}
"""
# name -> items that are right, of 60; every one but the first is compared with the first
RELEASES = {"v1": 40, "v2": 55, "v3": 10}
HOSTILE = "<script>alert(1)</script>\u202e"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three releases judged on one task by the real command, one judged on other data, one that is damaged."""
    root = tmp_path_factory.mktemp("served")
    ids = [f"i{n}" for n in range(60)]
    rows = [
        {"id": i, "messages": [{"role": "user", "content": i}, {"role": "assistant", "content": f"yes {i}"}]}
        for i in ids
    ]
    write_jsonl(root / "eval.jsonl", rows)
    (root / "task.yaml").write_text(TASK)
    environment = dict(os.environ, TUNEGATE_HOME=str(root / "home"))

    def judge(name, right, *more):
        write_jsonl(
            root / f"{name}.jsonl", [{"id": i, "output": f"yes {i}" if n < right else "no"} for n, i in enumerate(ids)]
        )
        words = ["eval", f"{name}.jsonl", "--task", "task.yaml", "--out", f"reports/{name}", *more]
        done = subprocess.run(
            [sys.executable, "-c", "from tunegate.core.ft import main; main()", *words],
            cwd=root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (root / "reports" / name).is_dir(), done.stderr

    (root / "reports").mkdir()
    for name, right in RELEASES.items():
        judge(name, right, *([] if name == "v1" else ["--against", "reports/v1"]))
        time.sleep(1.1)  # reports are dated to the second
    write_jsonl(
        root / "eval.jsonl",
        [{**row, "messages": [row["messages"][0], {"role": "assistant", "content": "no"}]} for row in rows],
    )
    judge("v4", 60)
    broken = root / "reports" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    return root / "reports"


@pytest.fixture
def server(folder):
    with ReportServer(folder, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, path, *, method="GET", host=None):
    """(status, headers by lower-case name, text)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def test_the_trend_is_the_scores_over_time_with_the_gates_decisions(folder):
    found = trend(collect(folder))
    assert [r["name"] for r in found["reports"]] == ["v1", "v2", "v3", "v4"]
    (task,) = found["tasks"]
    points = task["metrics"]["exact"]
    assert [round(p["value"] * 60) for p in points] == [40, 55, 10, 0]
    assert all(p["low"] <= p["value"] <= p["high"] for p in points)
    assert [p["decision"] for p in points] == [None, "PASS", "FAIL", None]
    assert [p["changed"] for p in points[:3]] == [[], [], []]
    assert "data" in points[3]["changed"]  # other expected answers: no trend
    assert [s["path"] for s in found["skipped"]] == [str(folder / "broken")]


def test_a_decision_made_later_counts_and_a_copy_is_listed_once(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "v1", tmp_path / "a")
    shutil.copytree(folder / "v1", tmp_path / "b")
    digest = trend(collect(tmp_path))["reports"][0]["digest"]
    from tunegate.core import manifest as manifests
    from tunegate.core.files import write_json

    for name, decision, created in (("g1", "FAIL", "2026-01-01T00:00:00Z"), ("g2", "PASS", "2026-01-02T00:00:00Z")):
        (tmp_path / name).mkdir()
        write_json(
            tmp_path / name / "decision.json",
            {"decision": decision, "candidate": {"digest": digest}, "created": created},
        )
        manifests.write(tmp_path / name, "gate_decision", inputs=[], config={})
    (report,) = trend(collect(tmp_path))["reports"]
    assert (report["decision"], report["also_at"]) == ("PASS", [str(tmp_path / "b")])


def test_pages_over_http(server, folder):
    status, headers, text = get(server, "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in headers["content-security-policy"]
    assert "<script" not in text
    keys = [report["key"] for report in json.loads(get(server, "/trend.json")[2])["reports"]]
    for key in keys:
        assert f'href="/report/{key}"' in text
    status, headers, page = get(server, f"/report/{keys[1]}")
    assert status == 200
    assert "script-src 'sha256-" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "; frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert '<a href="/">All reports</a>' in page
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["answers"]  # the baseline's answers are found in the folder
    assert get(server, "/", method="HEAD")[2] == ""


@pytest.mark.parametrize(
    "path",
    ["/../task.yaml", "/%2e%2e/task.yaml", "/report/../v1/report.json", "/report/v1", "/report/..%2f..%2ftask.yaml", "/report/",
     "//etc/passwd", "/report/%00", "/v1/report.html", "/report/" + "a" * 9000],
)  # fmt: skip
def test_no_address_leads_to_a_file(server, path):
    status, headers, text = get(server, path)
    assert status == 404
    assert headers["content-security-policy"] == "default-src 'none'"
    assert text == "no such page; the list is at /\n"


def test_other_methods_and_other_hosts_are_refused(server):
    assert get(server, "/", method="POST")[0] == 501
    assert get(server, "/", host="evil.example:80")[0] == 403  # a name that resolves to 127.0.0.1 (DNS rebinding)
    assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_html_that_lies_in_the_folder_is_never_served(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "v1", tmp_path / "r")
    page = tmp_path / "r" / "report.html"
    page.write_text("<script>alert(1)</script>".ljust(page.stat().st_size), encoding="utf-8")
    with ReportServer(tmp_path, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        key = json.loads(get(running, "/trend.json")[2])["reports"][0]["key"]
        text = get(running, f"/report/{key}")[2]
        running.shutdown()
        thread.join()
    assert "alert(1)" not in text
    assert "Scores" in text


def test_hostile_names_stay_text():
    from tunegate.evalkit.render import html_trend

    point = {
        "report": HOSTILE,
        "created": HOSTILE,
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "decision": HOSTILE,
        "changed": [HOSTILE],
    }
    summary = dict.fromkeys(("key", "name", "created", "task", "primary", "target", "decision", "against"), HOSTILE)
    text = html_trend.render(
        {
            "folder": HOSTILE,
            "reports": [summary],
            "tasks": [{"name": HOSTILE, "primary": HOSTILE, "metrics": {HOSTILE: [point, point]}}],
            "skipped": [{"path": HOSTILE, "reason": HOSTILE}],
        }
    )
    assert "<script" not in text
    assert "\u202e" not in text


def test_a_taken_port_and_no_folder_are_one_line(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InfrastructureError, match="the port is taken"):
            ReportServer(folder, taken.getsockname()[1])
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "none")


def test_the_command_serves_until_ctrl_c(folder):
    words = [
        sys.executable,
        "-c",
        "from tunegate.core.ft import main; main()",
        "report",
        "serve",
        str(folder),
        "--port",
        "0",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rsplit(":", 1)[1].rstrip("/\n"))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            process.send_signal(signal.SIGINT)  # with the connection still open
            assert process.wait(timeout=30) == 130
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
            connection.close()
        finally:
            process.kill()  # `with` would wait for one that does not end


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_chromium_the_trend_leads_to_a_report_and_back(browser, server, scheme):
    problems = []
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: "favicon" in message.location.get("url", "") or problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server.url)
    assert page.title() == "Reports"
    chart = page.get_by_role("group", name="exact over 4 reports")
    assert chart.get_by_role("link").count() == 4
    assert page.get_by_role("table", name="Reports, newest first").get_by_role("row").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_text("Could not be read").is_visible()
    chart.get_by_role("link", name="v2").focus()
    page.keyboard.press("Enter")
    page.locator(".verdict-word").wait_for()
    assert page.locator(".verdict-word").inner_text().split() == ["✓", "PASS"]
    page.locator(".item-id").first.click()
    assert page.locator(".answer-panel.baseline").is_visible()
    page.get_by_role("link", name="All reports").click()
    page.get_by_role("heading", name="Reports", level=1).wait_for()
    context.close()
    assert problems == []
