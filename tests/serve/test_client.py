"""The client against a stand-in server: what is an answer, what is an infrastructure error, what is tried again."""

import asyncio
import json
import random
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, unquote

import pytest

from tunegate.core.errors import InfrastructureError
from tunegate.serve import client as clients
from tunegate.serve.client import ChatClient, EndpointError

MESSAGES = [{"role": "user", "content": "x"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def chunk(content=None, finish=None, **delta):
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}]}


def sse(*events, done=True):
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


WHOLE = sse(
    chunk("", role="assistant"), chunk("na"), chunk("ïve 東京"), chunk(finish="stop"), {"choices": [], "usage": USAGE}
)


def stream(raw, cuts=()):
    """A handler that sends `raw` in pieces cut at these byte positions."""

    async def handle(request):
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        bounds = [0, *cuts, len(raw)]
        for a, b in zip(bounds, bounds[1:], strict=False):  # noqa: RUF007
            await response.write(raw[a:b])
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    return handle


def answer(body, status=200, content_type="application/json", **headers):
    async def handle(request):
        from aiohttp import web

        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, content_type=content_type, headers=headers)

    return handle


async def cut_off(request):
    """Half a stream, then the connection is gone."""
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(sse(chunk("half"), done=False))
    request.transport.abort()
    return response


async def slow(request):
    await asyncio.Event().wait()


@pytest.fixture
def waits(monkeypatch):
    """How long the client wanted to wait, without waiting."""
    found = []
    sleep = asyncio.sleep

    async def note(seconds):
        if seconds:
            found.append(seconds)
        await sleep(0)

    monkeypatch.setattr(clients.asyncio, "sleep", note)
    monkeypatch.setattr(clients.random, "random", lambda: 0.0)
    return found


@pytest.fixture
def ask():
    """ask(handlers, ...): one completion from a server whose n-th answer is the n-th handler's, the last one's for ever."""

    def ask(*handlers, call=None, **options):
        from aiohttp import web

        seen = []

        async def handle(request):
            seen.append((request.path, dict(request.headers), await request.json() if request.can_read_body else None))
            return await handlers[min(len(seen), len(handlers)) - 1](request)

        async def go():
            app = web.Application()
            app.router.add_route("*", "/{tail:.*}", handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
            try:
                async with ChatClient(url, "m", **options) as client:
                    if call is not None:
                        return await call(client)
                    return await client.complete(MESSAGES, generation={"max_tokens": 8, "temperature": 0})
            finally:
                await runner.cleanup()

        ask.seen = seen
        return asyncio.run(go())

    return ask


def test_an_answer_is_the_same_however_it_is_cut(ask):
    whole = ask(stream(WHOLE))
    assert (whole.text, whole.finish_reason, whole.attempts) == ("naïve 東京", "stop", 1)
    assert (whole.prompt_tokens, whole.completion_tokens) == (3, 2)
    assert 0 < whole.ttft_ms <= whole.latency_ms
    for seed in range(4):
        cuts = sorted(random.Random(seed).sample(range(1, len(WHOLE)), 40))
        assert ask(stream(WHOLE, cuts)).text == whole.text
    assert ask(stream(WHOLE, range(1, len(WHOLE)))).text == whole.text, "byte by byte"
    assert ask(stream(WHOLE.replace(b"\n", b"\r\n"))).text == whole.text
    assert ask(stream(b": a comment\n\nevent: x\n" + WHOLE.replace(b"data: ", b"data:"))).text == whole.text


def test_the_request_asks_for_a_stream_and_carries_the_key(ask):
    ask(stream(WHOLE), key="k")
    path, headers, body = ask.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k"
    assert body == {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True},
                    "max_tokens": 8, "temperature": 0}  # fmt: skip


def test_length_refusal_and_tool_calls_are_kept_apart(ask):
    assert ask(stream(sse(chunk("half"), chunk(finish="length")))).finish_reason == "length"
    refused = ask(stream(sse(chunk(None, refusal="I "), chunk(None, refusal="will not"), chunk(finish="stop"))))
    assert (refused.text, refused.refusal) == ("", "I will not")
    first = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    called = ask(
        stream(sse(chunk(None, tool_calls=[first]), chunk(None, tool_calls=[rest]), chunk(finish="tool_calls")))
    )
    assert called.tool_calls[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("handler", "cause", "says"),
    [
        (stream(sse(chunk("half"))), "cut_off", "ended without a finish reason"),
        (stream(sse(chunk("half"), done=False)), "cut_off", "ended without a finish reason"),
        (stream(b""), "cut_off", "ended without a finish reason"),
        (stream(sse(chunk("half"), {"error": {"message": "CUDA out of memory"}})), "engine",
         "failed in mid-stream: CUDA out of memory"),
        (stream(b"data: {broken\n\n"), "malformed", "not JSON"),
        (cut_off, "connection|cut_off", "the connection broke|ended without a finish reason"),
    ],
)  # fmt: skip
def test_half_an_answer_is_an_infrastructure_error_after_the_last_attempt(ask, waits, handler, cause, says):
    with pytest.raises(EndpointError, match=says) as caught:
        ask(handler, retries=2)
    assert isinstance(caught.value, InfrastructureError)
    assert re.fullmatch(cause, caught.value.cause)
    assert not caught.value.fatal
    assert len(ask.seen) == 3
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 524, 529])
def test_a_passing_fault_is_tried_again(ask, waits, status):
    found = ask(answer({"error": {"message": "busy"}}, status), stream(WHOLE))
    assert (found.text, found.attempts, len(ask.seen)) == ("naïve 東京", 2, 2)
    assert waits == [0.5]


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 0.5), ("soon", 0.5)])
def test_retry_after_is_kept(ask, waits, asked, waited):
    assert ask(answer("{}", 429, **{"Retry-After": asked}), stream(WHOLE)).attempts == 2
    assert waits == [waited]


def test_retry_after_may_be_a_date(ask, waits):
    soon = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=40))}
    ask(answer("{}", 429, **soon), stream(WHOLE))
    assert 20 < waits[0] < 40


def test_a_list_of_models_that_is_not_there_yet_or_never(ask, waits):
    served = {"data": [{"id": "m"}]}
    assert ask(answer("{}", 503), answer(served), call=lambda client: client.choose_model()) == "m"
    assert ask(answer("{}", 404), call=lambda client: client.choose_model()) == "m", "the named one"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_the_engine_gave_up_is_no_answer(ask, waits, reason):
    given_up = stream(sse(chunk("half"), chunk(finish=reason)))
    with pytest.raises(EndpointError, match="gave the answer up") as caught:
        ask(given_up, retries=0)
    assert caught.value.cause == "engine"


def test_a_message_beside_an_empty_delta_is_not_added(ask):
    last = {"choices": [{"index": 0, "delta": {}, "message": {"content": "yes"}, "finish_reason": "stop"}]}
    assert ask(stream(sse(chunk("yes"), last))).text == "yes"


@pytest.mark.parametrize(("status", "fatal"), [(400, False), (401, True), (403, True), (404, True), (422, False)])
def test_what_a_retry_cannot_mend_is_raised_at_once(ask, waits, status, fatal):
    with pytest.raises(EndpointError, match=f"HTTP {status}: wrong") as caught:
        ask(answer({"error": {"message": "wrong"}}, status))
    assert (caught.value.status, caught.value.fatal, caught.value.cause) == (status, fatal, f"http_{status}")
    assert (caught.value.hint is not None) == (status in (401, 403))
    assert (len(ask.seen), waits) == (1, [])


def test_a_server_without_a_tool_parser_ends_the_run(ask, waits):
    """vLLM's own words, to a request with tools."""
    said = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    with pytest.raises(EndpointError, match=r"HTTP 400: .auto. tool choice requires") as caught:
        ask(answer({"error": {"message": said}}, 400))
    assert caught.value.fatal
    assert "send_tools: false" in caught.value.hint


@pytest.mark.parametrize("body", ["", "plain text\nsecond line", "[]", '{"error": "text"}', '{"error": null}'])
def test_odd_error_bodies_are_read(ask, waits, body):
    with pytest.raises(EndpointError, match="HTTP 400") as caught:
        ask(answer(body, 400))
    assert "\n" not in caught.value.line()


def test_a_web_page_is_no_endpoint(ask, waits):
    with pytest.raises(EndpointError, match="not JSON \\(a web page") as caught:
        ask(answer("<html>hello</html>", content_type="text/html"))
    assert (caught.value.fatal, caught.value.cause, len(ask.seen)) == (False, "malformed", 5)
    assert caught.value.hint == "give the URL up to /v1"
    assert ask(answer("<html>", content_type="text/html"), stream(WHOLE)).attempts == 2, "a proxy's page among answers"
    with pytest.raises(EndpointError, match="web page") as caught:
        ask(answer("<html>hello</html>", content_type="text/html"), call=lambda client: client.choose_model())
    assert caught.value.fatal
    with pytest.raises(EndpointError, match="not an object") as caught:
        ask(answer([1]))
    assert caught.value.cause == "malformed"


def test_a_redirect_takes_neither_prompt_nor_key_elsewhere(ask):
    with pytest.raises(EndpointError, match="HTTP 307: it sends on to '/elsewhere'") as caught:
        ask(answer({}, status=307, Location="/elsewhere"), stream(WHOLE), key="sk-secret")
    assert [path for path, _, _ in ask.seen] == ["/v1/chat/completions"]
    assert caught.value.fatal
    assert "give that address if you trust it" in caught.value.hint
    with pytest.raises(EndpointError, match="it sends on to"):
        ask(answer({}, status=302, Location="/elsewhere"), answer({"data": []}), call=lambda client: client.models())
    assert len(ask.seen) == 1


def test_an_endpoint_that_does_not_stream_is_taken_whole(ask):
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": USAGE}
    found = ask(answer(body))
    assert (found.text, found.finish_reason, found.completion_tokens, found.ttft_ms) == ("x", "stop", 2, None)
    with pytest.raises(EndpointError, match="without a finish reason"):
        ask(answer({"choices": []}), retries=0)


def test_no_answer_in_time(ask, waits):
    with pytest.raises(EndpointError, match="no answer within 0 s") as caught:
        ask(slow, timeout_s=0.2, retries=0)
    assert caught.value.cause == "timeout"


def test_nothing_listens(waits):
    async def go():
        async with ChatClient("http://127.0.0.1:9/v1", "m", retries=1) as client:
            await client.complete(MESSAGES, generation={})

    with pytest.raises(EndpointError, match="nothing answers: ") as caught:
        asyncio.run(go())
    assert "ft serve status" in caught.value.hint
    assert caught.value.cause == "unreachable"
    assert len(waits) == 1


def test_models_and_tokenize(ask):
    found = ask(answer({"data": [{"id": "a"}, {"id": "b"}]}), call=lambda c: c.models())
    assert found == ["a", "b"]
    assert ask.seen[0][0] == "/v1/models"
    odd = {"data": [{"id": None}, {"id": 5}, {}, {"id": ""}, "x", {"id": "a"}]}
    assert ask(answer(odd), call=lambda c: c.models()) == ["a"], "what has no name cannot be asked for"
    assert ask(answer({"tokens": [1, 2]}), call=lambda c: c.tokenize(MESSAGES)) == [1, 2]
    assert ask.seen[0][0] == "/tokenize"
    assert ask.seen[0][2]["add_special_tokens"] is False
    for body in ("<html>", "[]", '{"models": []}'):
        with pytest.raises(EndpointError) as caught:
            ask(answer(body), call=lambda c: c.models())
        assert caught.value.fatal
    with pytest.raises(EndpointError, match="HTTP 401"):
        ask(answer("{}", 401), call=lambda c: c.models())


def test_a_retry_after_of_an_hour_does_not_silence_the_run(waits):
    error = clients.EndpointError("busy", cause="http_429", status=429)
    error.retry_after_s = 3600.0
    client = clients.ChatClient("http://127.0.0.1:9/v1", "m", retries=1)

    async def refuse(body, attempt):
        raise error

    client._attempt = refuse
    with pytest.raises(clients.EndpointError):
        asyncio.run(client.complete([{"role": "user", "content": "hi"}], generation={}))
    assert waits == [clients.LONGEST_WAIT_S]


def ports_of(ask, handler, n, **options):
    """The client's ports over `n` answers, one after the other, and how long they took."""
    ports = []

    async def note(request):
        ports.append(request.transport.get_extra_info("peername")[1])
        return await handler(request)

    async def several(client):
        start = time.perf_counter()
        for _ in range(n):
            assert (await client.complete(MESSAGES, generation={})).text == "naïve 東京"
        return time.perf_counter() - start

    return ports, ask(note, call=several, **options)


def test_connections_are_used_again(ask):
    """What follows `[DONE]` is read to its end, or each answer would cost a new connection."""
    assert len(set(ports_of(ask, stream(WHOLE), 8)[0])) == 1
    cut = [len(WHOLE) - 14]
    assert len(set(ports_of(ask, stream(WHOLE + b"data: more\n\n", cut), 8)[0])) == 1


def test_a_stream_that_stays_open_after_its_answer_is_not_waited_for(ask):
    async def open_end(request):
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(WHOLE)
        await asyncio.sleep(5)
        return response

    ports, took = ports_of(ask, open_end, 2, timeout_s=20.0)
    assert len(set(ports)) == 2
    assert took < 4.0


SECRET = "sk-a/b+c=Zürich"


@pytest.mark.parametrize(
    "form", [SECRET, f"Bearer {SECRET}", quote(SECRET), quote(SECRET, safe=""), quote(SECRET, safe="").lower()]
)
@pytest.mark.parametrize("filler", ["", "x" * 490])
def test_a_key_that_an_endpoint_repeats_is_in_no_message(ask, form, filler):
    said = f"{filler} wrong key {form}, sorry"
    for handler in (
        answer({"error": {"message": said}}, status=401),
        answer({"message": said}, status=500),
        answer(said, status=502, content_type="text/plain"),
        answer(json.dumps({"message": None, "echo": said}), status=400),
        answer({}, status=307, Location=f"/login?{filler}key={quote(SECRET, safe='')}"),
        stream(sse({"error": {"message": said}})),
        stream(sse({"error": {"echo": said}})),
    ):
        with pytest.raises(EndpointError) as caught:
            ask(handler, key=SECRET, retries=0)
        shown = unquote(caught.value.line()).lower()
        assert "sk-a" not in shown
        assert "***" in shown or len(filler) > 480
        with pytest.raises(EndpointError) as caught:
            ask(handler, key=SECRET, retries=0, call=lambda client: client.models())
        assert "sk-a" not in unquote(caught.value.line()).lower()


def test_a_short_key_does_not_garble_messages(ask):
    with pytest.raises(EndpointError, match="HTTP 500: a bad day"):
        ask(answer({"message": "a bad day"}, status=500), key="a", retries=0)
