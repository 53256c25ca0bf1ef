"""The runner against a small local server: resume after a kill, retries, infrastructure errors, a web page."""

import asyncio
import json
import threading
from collections import Counter

import pytest

from tunegate.core.errors import InfrastructureError
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.result_log import ResultLog, key_of
from tunegate.evalkit.runner import RunOptions, ask
from tunegate.evalkit.system import Target
from tunegate.evalkit.task import load_task


@pytest.fixture
def server():
    """Answers the question itself; `plan` says which questions fail, with which status and how often."""
    from aiohttp import web

    asked: Counter[str] = Counter()
    plan: dict[str, tuple[int, int]] = {}

    async def complete(request):
        question = (await request.json())["messages"][-1]["content"]
        asked[question] += 1
        status, times = plan.get(question, plan.get("*", (200, 0)))
        if asked[question] <= times:
            return web.json_response({"error": {"message": "busy"}}, status=status, headers={"Retry-After": "0"})
        choice = {"message": {"content": question}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})

    async def models(_):
        return web.json_response({"data": [{"id": "m"}]})

    async def page(_):
        return web.Response(text="<html>", content_type="text/html")

    app = web.Application()
    app.add_routes(
        [web.post("/v1/chat/completions", complete), web.get("/v1/models", models), web.get("/page/models", page)]
    )
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    port = site._server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}", asked, plan
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


@pytest.fixture
def task(tmp_path):
    rows = [
        {"id": f"i{i}", "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"q{i}"}]}
        for i in range(60)
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: exact, kind: exact_match}]\n")
    return load_task(tmp_path / "task.yaml")


def go(task, url, path, digest="d", retries=0):
    with ResultLog(path) as log:
        return ask(
            task,
            Target(base_url=url, model=""),
            log,
            model_digest=digest,
            options=RunOptions(concurrency=8, retries=retries),
        )


def test_resume_repeats_and_loses_nothing(task, server, tmp_path):
    url, asked, _ = server
    log = tmp_path / "log.jsonl"
    assert go(task, url + "/v1", log).asked == 60
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(whole[:30]) + whole[30][:25])  # what kill -9 in mid-write leaves
    asked.clear()
    resumed = go(task, url + "/v1", log)
    assert resumed.asked == sum(asked.values()) == 30
    assert {key: [a.text for a in answers] for key, answers in resumed.answers.items()} == {
        f"i{i}": [f"q{i}"] for i in range(60)
    }
    assert go(task, url + "/v1", log).asked == 0


def test_another_model_is_never_given_these_answers(task, server, tmp_path):
    """Defect B7: a cache key without the model scored the candidate by the baseline's answers."""
    url, _, _ = server
    go(task, url + "/v1", tmp_path / "log.jsonl")
    assert go(task, url + "/v1", tmp_path / "log.jsonl", digest="other").asked == 60
    assert key_of("p", {}, "a", 0) != key_of("p", {}, "b", 0)


def test_faults_are_retried_and_lasting_ones_kept_apart(task, server, tmp_path):
    url, asked, plan = server
    plan |= {"q1": (503, 1), "q2": (500, 99), "q3": (400, 99)}
    found = go(task, url + "/v1", tmp_path / "log.jsonl", retries=1).answers
    assert found["i1"][0].attempts == 2
    assert "HTTP 500" in found["i2"][0].error
    assert "HTTP 400" in found["i3"][0].error
    assert (asked["q2"], asked["q3"]) == (2, 1)
    plan.clear()
    assert go(task, url + "/v1", tmp_path / "log.jsonl").asked == 2  # only what got no answer


def test_a_web_page_or_nothing_is_an_infrastructure_error(task, server, tmp_path):
    url, _, _ = server
    with pytest.raises(InfrastructureError, match="not JSON"):
        go(task, url + "/page", tmp_path / "log.jsonl")
    with pytest.raises(InfrastructureError, match="nothing answers"):
        go(task, "http://127.0.0.1:9/v1", tmp_path / "log.jsonl")


def test_log_is_held_by_one(tmp_path):
    from tunegate.core.errors import UserError

    with ResultLog(tmp_path / "l") as log:
        log.add("k", Answer(text="\ud800 é"))
        with pytest.raises(UserError, match="another evaluation"), ResultLog(tmp_path / "l"):
            pass
    with ResultLog(tmp_path / "l") as log:
        assert log.get("k").text == "\ud800 é"


def test_the_running_estimate_never_holds_the_requests_up(monkeypatch):
    """Judging that is slow is done now and then, for a moment; the share says over how many answers it is."""
    from tunegate.evalkit import runner

    clock, said = [0.0], []
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])

    def judge(row, answer):
        clock[0] += 0.008
        return answer.text == "right"

    estimate = runner._Estimate(lambda n, text=None: said.append((n, text)), judge)
    for i in range(1000):
        clock[0] += 0.001
        estimate.add(None, Answer(text="right" if i % 2 else "x"))
    estimate.show()
    assert sum(n for n, _ in said) == 1000
    assert len(said) <= 1 + 2.0 / 0.25
    assert clock[0] <= 1.0 + len(said) * (0.02 + 0.008), "what judging took"
    judged = 3 * len(said)
    assert said[-1][1].startswith("right ")
    assert said[-1][1].endswith(f"of {judged} judged")
