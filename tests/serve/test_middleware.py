"""The guard inside the server: a key on every route but /health, limits, draining, and health that is true."""

import asyncio
import json
import types

import pytest

from tunegate.serve import middleware
from tunegate.serve.connections import close_silent
from tunegate.serve.engine_watch import EngineWatch, one_token
from tunegate.serve.middleware import INSTANCE_VARIABLE, KEY_VARIABLE, Guard, GuardSettings

ROUTES = ["/v1/chat/completions", "/v1/models", "/metrics", "/tokenize", "/invocations", "/health/", "/healthz", "//health",
          "/", "/HEALTH", "/docs", "/v1/../health", "/health/../metrics", "//v1/models", "/health%2f..%2fmetrics", "/health;x",
          "/ping", "/load", "/version", "/openapi.json", "/scale_elastic_ep", "/detokenize", "health", "", "/health\x00"]  # fmt: skip


def start_of(messages):
    return next(m for m in messages if m["type"] == "http.response.start")


def text_of(messages):
    return b"".join(m.get("body", b"") for m in messages if m["type"] == "http.response.body")


@pytest.fixture
def guard(monkeypatch):
    """Makes a guard around `app` with its key and limits."""

    def make(app, *, key="", **limits):
        monkeypatch.setenv(INSTANCE_VARIABLE, "id-1")
        monkeypatch.setenv(KEY_VARIABLE, key)
        for name, value in GuardSettings(**limits).as_environment().items():
            monkeypatch.setenv(name, value)
        return Guard(app)

    return make


async def ask(guard, path, *, method="GET", kind="http", headers=(), pieces=(), never=False):
    """The messages of one request; `pieces`: its body as it comes; never: no more comes after them."""
    sent, pending = [], list(pieces)

    async def receive():
        if pending:
            body = pending.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(pending) or never}
        return await asyncio.get_running_loop().create_future()

    async def send(message):
        sent.append(message)

    await guard({"type": kind, "path": path, "method": method, "headers": list(headers)}, receive, send)
    return sent


class App:
    """Answers 200 and keeps what it was given."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            self.bodies.append(scope["type"])
            return
        message = await receive() if scope["method"] == "POST" else {}
        self.bodies.append(message.get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"ok"})


def once(guard, *args, **kwargs):
    return asyncio.run(ask(guard, *args, **kwargs))


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_every_route_but_health_needs_the_key(guard, path, method):
    app = App()
    made = guard(app, key="secret")
    for sent in (None, b"", b"Bearer ", b"Bearer wrong", b"secret", b"basic secret", b"Bearer secret "):
        messages = once(made, path, method=method, headers=[] if sent is None else [(b"authorization", sent)])
        head = dict(start_of(messages)["headers"])
        assert start_of(messages)["status"] == 401
        assert head[b"x-tunegate-instance"] == b"id-1"
        assert head[b"www-authenticate"] == b"Bearer"
        if method == "HEAD":
            assert text_of(messages) == b""
        else:
            assert json.loads(text_of(messages))["error"]["code"] == "invalid_api_key"
            assert int(head[b"content-length"]) == len(text_of(messages))
    assert app.bodies == []


def test_the_right_key_passes_and_the_answer_is_marked(guard):
    made = guard(App(), key="secret")
    for path in ROUTES:
        messages = once(made, path, headers=[(b"Authorization", b"Bearer secret")])
        assert start_of(messages)["headers"] == [(b"a", b"b"), (b"x-tunegate-instance", b"id-1")]
        assert text_of(messages) == b"ok"


def test_the_comparison_takes_the_same_time_wherever_the_keys_differ(guard, monkeypatch):
    calls = []
    real = middleware.hmac.compare_digest
    monkeypatch.setattr(middleware.hmac, "compare_digest", lambda a, b: calls.append((a, b)) or real(a, b))
    once(guard(App(), key="secret"), "/v1/models", headers=[(b"authorization", b"Bearer x")])
    assert calls == [(b"x", b"secret")]


def test_health_is_open_and_marked_and_without_a_key_everything_is_open(guard):
    messages = once(guard(App(), key="secret"), "/health")
    assert (start_of(messages)["status"], start_of(messages)["headers"][-1]) == (200, (b"x-tunegate-instance", b"id-1"))
    assert start_of(once(guard(App()), "/metrics"))["status"] == 200


def test_the_first_of_two_headers_counts(guard):
    headers = [(b"Authorization", b"Bearer wrong"), (b"authorization", b"Bearer secret")]
    assert start_of(once(guard(App(), key="secret"), "/metrics", headers=headers))["status"] == 401


def test_a_websocket_without_the_key_is_closed(guard):
    app = App()
    made = guard(app, key="secret")
    assert once(made, "/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert once(made, "/health", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert app.bodies == []
    once(made, "/v1/realtime", kind="websocket", headers=[(b"authorization", b"Bearer secret")])
    once(made, "", kind="other")
    assert app.bodies == ["websocket", "other"]


def test_a_body_passes_whole_however_it_comes(guard):
    app = App()
    pieces = [b"ab", b"", b"cd"]
    once(guard(app), "/v1/x", method="POST", headers=[(b"transfer-encoding", b"chunked")], pieces=pieces)
    once(guard(app, max_body_bytes=4), "/v1/x", method="POST", headers=[(b"content-length", b"4")], pieces=pieces)
    assert app.bodies == [b"abcd", b"abcd"]


@pytest.mark.parametrize("headers", [[(b"content-length", b"5")], [(b"transfer-encoding", b"chunked")]])
def test_a_body_that_is_too_long_is_413(guard, headers):
    app = App()
    messages = once(guard(app, max_body_bytes=4), "/v1/x", method="POST", headers=headers, pieces=[b"abc", b"de", b"x"])
    assert start_of(messages)["status"] == 413
    assert (b"connection", b"close") in start_of(messages)["headers"]
    assert json.loads(text_of(messages))["error"]["message"] == "the request is longer than 4 bytes"
    assert app.bodies == []


def test_a_body_that_never_ends_is_408_and_a_client_that_leaves_is_nothing(guard):
    headers = [(b"content-length", b"9")]
    made = guard(App(), body_s=0.05)
    messages = once(made, "/v1/x", method="POST", headers=headers, pieces=[b"a"], never=True)
    assert start_of(messages)["status"] == 408
    assert made.running == set()

    async def leave():
        sent = []

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await made({"type": "http", "path": "/v1/x", "method": "POST", "headers": headers}, receive, send)
        return sent

    assert asyncio.run(leave()) == []


def drain(made, path="/v1/x", *, first, monkeypatch, after=None):
    """Run one request of `first`, SIGTERM the guard when it runs, and give (its messages, seconds, new answers)."""
    signals = []
    monkeypatch.setattr(middleware.os, "kill", lambda pid, number: signals.append(number))
    monkeypatch.setattr(middleware, "_end_after", lambda seconds: None)

    async def work():
        running = asyncio.ensure_future(ask(made, path, method="POST"))
        await first.wait()
        made._sigterm()
        answers = [await ask(made, p) for p in ("/v1/models", "/health", "/metrics")]
        if after:
            await after()
        start = asyncio.get_running_loop().time()
        messages = await running
        took = asyncio.get_running_loop().time() - start
        for _ in range(100):
            if signals:
                break
            await asyncio.sleep(0.02)
        return messages, took, answers

    return *asyncio.run(work()), signals


class Slow:
    """Streams pieces for `seconds`, or for ever."""

    def __init__(self, seconds, kind=b"text/event-stream", start=True):
        self.seconds, self.kind, self.start, self.first = seconds, kind, start, asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] in ("/health", "/metrics"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"m"})
            return
        if self.start:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self.kind)]})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        self.first.set()
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.body", "body": b"data: end\n\n"})


def test_a_drain_lets_the_running_request_finish_and_refuses_new_ones(guard, monkeypatch):
    app = Slow(0.2)
    messages, _, (new, health, metrics), signals = drain(guard(app), first=app.first, monkeypatch=monkeypatch)
    assert text_of(messages) == b"data: 1\n\ndata: end\n\n"
    for answer, code in ((new, "draining"), (health, "draining")):
        assert start_of(answer)["status"] == 503
        assert json.loads(text_of(answer))["error"]["code"] == code
        assert dict(start_of(answer)["headers"])[b"retry-after"] == b"30"
        assert dict(start_of(answer)["headers"])[b"connection"] == b"close"
    assert json.loads(text_of(new))["error"]["type"] == "server_error"
    assert "draining" in json.loads(text_of(health))["error"]["message"]
    assert start_of(metrics)["status"] == 200, "the drain itself can be watched"
    assert signals == [2], "vLLM's own SIGINT, once, at the end"


def test_the_deadline_cuts_a_stream_with_an_error_in_it(guard, monkeypatch):
    app = Slow(60)
    messages, took, _, signals = drain(guard(app, drain_s=0.2), first=app.first, monkeypatch=monkeypatch)
    assert 0.1 < took < 30
    last = text_of(messages).removeprefix(b"data: 1\n\n").removeprefix(b"data: ")
    assert json.loads(last)["error"]["message"] == "the server stopped before this answer was finished"
    assert signals == [2]


def test_the_deadline_answers_503_where_nothing_was_sent_yet(guard, monkeypatch):
    app = Slow(60, start=False)
    messages, *_ = drain(guard(app, drain_s=0.1), first=app.first, monkeypatch=monkeypatch)
    assert start_of(messages)["status"] == 503


def test_a_second_sigterm_ends_the_drain_at_once(guard, monkeypatch):
    app = Slow(60)
    made = guard(app, drain_s=50)

    async def again():
        made._sigterm()

    _, took, _, signals = drain(made, first=app.first, monkeypatch=monkeypatch, after=again)
    assert took < 30
    assert signals == [2]


def test_a_client_that_reads_nothing_does_not_hold_the_drain(guard, monkeypatch):
    """Its `send` never returns: the request is cut, its last words are given up after a second."""
    started = asyncio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/v1/x":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            started.set()
            await asyncio.get_running_loop().create_future()

    made = guard(app, drain_s=0.1)
    stuck = made._pass

    async def passed(scope, receive, send):
        async def blocked(message):
            if message["type"] == "http.response.body":
                await asyncio.get_running_loop().create_future()
            await send(message)

        await stuck(scope, receive, blocked)

    made._pass = passed
    _, took, _, signals = drain(made, first=started, monkeypatch=monkeypatch)
    assert took < 30
    assert signals == [2]


def watched(steps, *, probe=True, quiet_s=2, hang_s=3):
    """EngineWatch after each (tokens, chunks): [hung], and the number of probes made. The probe never answers."""

    async def work():
        made = []

        async def never():
            made.append(1)
            await asyncio.get_running_loop().create_future()

        watch = EngineWatch(never if probe else None, quiet_s=quiet_s, hang_s=hang_s)
        hung = []
        for tokens, chunks in steps:
            watch.chunks = chunks
            watch.step(tokens, 1.0)
            await asyncio.sleep(0)
            hung.append(watch.hung)
        return hung, len(made)

    return asyncio.run(work())


def test_an_engine_whose_tokens_flow_is_never_asked():
    assert watched([(n, 0) for n in range(1, 30)]) == ([False] * 29, 0)
    assert watched([(0, n) for n in range(1, 30)]) == ([False] * 29, 0)


def test_a_silent_engine_is_asked_once_and_called_hung_by_the_deadline_and_well_when_tokens_come():
    hung, probes = watched([(5, 0)] * 9 + [(6, 0)])
    assert hung == [False] * 5 + [True] * 4 + [False]
    assert probes == 1
    assert watched([(5, 0)] * 20, probe=False) == ([False] * 20, 0)


def test_an_idle_engine_that_answers_the_probe_is_well_whatever_it_answers():
    async def work(probe):
        watch = EngineWatch(probe, quiet_s=2, hang_s=3)
        for _ in range(20):
            watch.step(5, 1.0)
            await asyncio.sleep(0)
            assert not watch.hung
        return watch.silent_s

    async def answers():
        pass

    async def refuses():
        raise ValueError

    for probe in (answers, refuses):
        assert asyncio.run(work(probe)) < 6


def test_a_hung_engine_shows_in_health(guard):
    made = guard(App())
    made.watch.hung, made.watch.silent_s = True, 70
    messages = once(made, "/health")
    assert start_of(messages)["status"] == 503
    assert json.loads(text_of(messages))["error"]["code"] == "hung"
    assert start_of(once(made, "/v1/models"))["status"] == 200


def test_the_probe_is_a_completion_of_one_token():
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope, sent=json.loads((await receive())["body"]))

    asyncio.run(one_token(app, {"app": "a", "state": {"x": 1}}, "m"))
    assert (seen["path"], seen["method"], seen["app"], seen["state"]) == ("/v1/completions", "POST", "a", {"x": 1})
    assert seen["sent"] == {"model": "m", "prompt": "a", "max_tokens": 1, "temperature": 0}


def test_settings_go_through_the_environment(monkeypatch):
    given = GuardSettings(drain_s=1.5, max_body_bytes=7, hang_s=3)
    for name, value in given.as_environment().items():
        monkeypatch.setenv(name, value)
    assert GuardSettings.from_environment() == given


def connection(*, cycle=None, timer=None):
    aborted = []
    transport = types.SimpleNamespace(abort=lambda: aborted.append(1))
    made = types.SimpleNamespace(cycle=cycle, timeout_keep_alive_task=timer, transport=transport, aborted=aborted)
    return Hashable(made)


class Hashable:
    def __init__(self, content):
        self.__dict__ = content.__dict__


def test_only_connections_without_a_whole_request_head_are_closed():
    silent = connection()
    busy = connection(cycle=types.SimpleNamespace(response_complete=False))
    idle = connection(cycle=types.SimpleNamespace(response_complete=True), timer="uvicorn's")
    second = connection(cycle=types.SimpleNamespace(response_complete=True))
    websocket = object()
    state = types.SimpleNamespace(connections={silent, busy, idle, second, websocket})
    app = types.SimpleNamespace(state=types.SimpleNamespace(server=types.SimpleNamespace(server_state=state)))
    seen = {}
    for _ in range(2):
        seen = close_silent(app, seen, 3.0)
    assert not silent.aborted
    state.connections = {silent, busy, idle, second, websocket}
    close_silent(app, seen, 3.0)
    assert [bool(c.aborted) for c in (silent, busy, idle, second)] == [True, False, False, True]
    assert close_silent(None, {}, 1.0) == close_silent(object(), {}, 1.0) == {}
