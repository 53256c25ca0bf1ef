"""A small OpenAI-compatible stand-in on this machine, and a task whose right answers are the questions."""

import asyncio
import json
import threading
from collections import Counter
from types import SimpleNamespace

import pytest


@pytest.fixture
def standin():
    """`answer(question, times asked)` gives (status, text); by default the question itself. `asked` counts requests. `says` is
    the message of an error, `models` are those served, `usage` is what each answer reports."""
    from aiohttp import web

    state = SimpleNamespace(asked=Counter(), answer=lambda question, _: (200, question), delay_s=0.0, bodies=[])
    state.says, state.models, state.usage = "broken", ["m"], {"prompt_tokens": 10, "completion_tokens": 5}

    async def complete(request):
        body = await request.json()
        question = body["messages"][-1]["content"]
        state.asked[question] += 1
        state.bodies.append(body)
        await asyncio.sleep(state.delay_s)
        status, text = state.answer(question, state.asked[question])
        if status == "html":
            return web.Response(text="<html>login</html>", content_type="text/html")
        if status != 200:
            return web.json_response({"error": {"message": state.says}}, status=status, headers={"Retry-After": "0"})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": state.usage})

    async def models(_):
        return web.json_response({"data": [{"id": name} for name in state.models]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    state.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield state
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A folder with eval.jsonl of 60 items and task.yaml; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"q{i}"}] for i in range(60)]
    rows = [json.dumps({"id": f"i{i}", "messages": messages}) + "\n" for i, messages in enumerate(turns)]
    (tmp_path / "eval.jsonl").write_text("".join(rows))
    (tmp_path / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: exact, kind: exact_match}]\n")
    return tmp_path


@pytest.fixture
def ft(capsys):
    """Runs a command in this process: (exit code, what --json printed or the text, messages)."""
    from tunegate.core.commands import run
    from tunegate.evalkit.cli import eval_app, gate_app, report_app

    apps = {"eval": eval_app, "gate": gate_app, "report": report_app}

    def call(command, *arguments):
        capsys.readouterr()
        code = run(apps[command], prog=f"ft {command}", argv=[str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(
            code=code, out=out, err=err, json=json.loads(out) if "--json" in arguments and out else None
        )

    return call
