"""The guard inside the server: a key on every route but /health, an instance id on every answer."""

import asyncio

import pytest

from tunegate.serve.middleware import INSTANCE_VARIABLE, KEY_VARIABLE, Guard

ROUTES = ["/v1/chat/completions", "/v1/models", "/metrics", "/tokenize", "/invocations", "/health/", "/healthz", "//health",
          "/", "/HEALTH", "/docs", "/v1/../health"]  # fmt: skip


@pytest.fixture
def call(monkeypatch):
    def call(path, *, key="secret", sent=None, kind="http", headers=()):
        monkeypatch.setenv(INSTANCE_VARIABLE, "id-1")
        monkeypatch.setenv(KEY_VARIABLE, key)
        reached, messages = [], []

        async def app(scope, receive, send):
            reached.append(scope["type"])
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
                await send({"type": "http.response.body", "body": b"ok"})

        async def send(message):
            messages.append(message)

        async def receive():
            return {"type": "http.request"}

        given = [*headers, *([(b"authorization", sent)] if sent is not None else [])]
        asyncio.run(Guard(app)({"type": kind, "path": path, "headers": given}, receive, send))
        return bool(reached), messages

    return call


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "sent", [None, b"", b"Bearer ", b"Bearer wrong", b"secret", b"bearer secret", b"Bearer secret "]
)
def test_every_route_but_health_needs_the_key(call, path, sent):
    reached, messages = call(path, sent=sent)
    assert not reached
    assert messages[0]["status"] == 401
    assert b"missing or wrong API key" in messages[1]["body"]
    assert dict(messages[0]["headers"])[b"content-length"] == str(len(messages[1]["body"])).encode()


@pytest.mark.parametrize("path", ROUTES)
def test_the_right_key_passes_and_the_answer_is_marked(call, path):
    reached, messages = call(path, sent=b"Bearer secret")
    assert reached
    assert messages[0]["headers"] == [(b"a", b"b"), (b"x-tunegate-instance", b"id-1")]
    assert messages[1]["body"] == b"ok"


def test_health_is_open_and_marked(call):
    reached, messages = call("/health")
    assert reached
    assert (b"x-tunegate-instance", b"id-1") in messages[0]["headers"]


def test_the_refusal_is_marked_too(call):
    assert (b"x-tunegate-instance", b"id-1") in call("/v1/models")[1][0]["headers"]


def test_without_a_key_everything_is_open(call):
    assert call("/metrics", key="")[0]


def test_the_first_of_two_headers_counts(call):
    assert not call("/metrics", sent=b"Bearer secret", headers=[(b"Authorization", b"Bearer wrong")])[0]


def test_a_websocket_without_the_key_is_closed(call):
    reached, messages = call("/v1/realtime", kind="websocket")
    assert not reached
    assert messages == [{"type": "websocket.close", "code": 1008}]
    assert call("/v1/realtime", kind="websocket", sent=b"Bearer secret")[0]


def test_the_lifespan_passes(call):
    assert call("", kind="lifespan")[0]
