"""Whatever an endpoint sends is an answer or an EndpointError of one line, over a real connection; never a crash."""

import asyncio
import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunegate.serve import client as clients
from tunegate.serve.client import ChatClient, Completion, EndpointError

MESSAGES = [{"role": "user", "content": "x"}]
CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
CHUNKS = [
    {"choices": [{"index": 0, "delta": {"content": "a", "refusal": None, "tool_calls": [CALL]}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    {"error": {"message": "m", "code": 500}},
]  # fmt: skip
BAD_BYTES = [b"\xff\xfe", b'{"a": "\xc3"}', b'{"choices": ' + b"[" * 20_000, b"9" * 5000, b"NaN", b'"\\ud800"', b"", b"[DONE", b"\x00"]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """The path of every value inside a chunk, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def chunks(draw):
    """A chunk as it should be, or with one value replaced by any other; or bytes that are no JSON."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(BAD_BYTES) | st.binary(max_size=12))
    chunk = copy.deepcopy(draw(st.sampled_from(CHUNKS)))
    path = draw(st.none() | st.sampled_from(list(places(chunk))))
    if path == ():
        chunk = draw(values)
    elif path is not None:
        holder = chunk
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw(values)
    return json.dumps(chunk).encode()


@st.composite
def streams(draw):
    prefix, end = draw(st.sampled_from([b"data: ", b"data:", b"", b"event: "])), draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n", b""]))  # fmt: skip
    done = draw(st.sampled_from([b"data: [DONE]\n\n", b"data: [DONE]", b""]))
    return b"".join(prefix + chunk + end for chunk in draw(st.lists(chunks(), max_size=4))) + done


@pytest.fixture(scope="module")
def wire():
    """wire(raw body, status, content type, cut): what the client makes of it, over one connection after the other."""
    from aiohttp import web

    loop, plan = asyncio.new_event_loop(), {}

    async def handle(request):
        await request.read()
        response = web.StreamResponse(status=plan["status"], headers={"Content-Type": plan["type"]})
        await response.prepare(request)
        for piece in (plan["raw"][: plan["cut"]], plan["raw"][plan["cut"] :]):
            if piece:
                await response.write(piece)
        await response.write_eof()
        return response

    async def start():
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = ChatClient(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", retries=0, timeout_s=20.0)
        return runner, await client.__aenter__()

    runner, client = loop.run_until_complete(start())

    def ask(call, raw, status=200, kind="text/event-stream", cut=7):
        plan.update(raw=raw, status=status, type=kind, cut=cut)
        try:
            return loop.run_until_complete(call(client))
        except EndpointError as error:
            found = error
        assert "\n" not in found.line()
        assert found.status == (None if status == 200 else status)
        return found

    yield ask
    loop.run_until_complete(client.__aexit__(None, None, None))
    loop.run_until_complete(runner.cleanup())
    loop.close()


def complete(client):
    return client.complete(MESSAGES, generation={})


FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(raw=streams(), cut=st.integers(0, 200))
def test_any_stream_is_an_answer_or_an_infrastructure_error(wire, raw, cut):
    found = wire(complete, raw, cut=cut)
    if isinstance(found, Completion):
        found.text.encode()
        assert found.finish_reason
        for count in (found.prompt_tokens, found.completion_tokens):
            assert count is None or (type(count) is int and count >= 0)
        for call in found.tool_calls:
            assert all(isinstance(call["function"][key], str) for key in ("name", "arguments"))


@FEW
@given(raw=chunks(), status=st.sampled_from([200, 400, 500]))
def test_any_body_is_an_answer_or_an_infrastructure_error(wire, raw, status):
    for call in (complete, lambda c: c.models(), lambda c: c.tokenize(MESSAGES)):
        found = wire(call, raw, status=status, kind="application/json")
        assert isinstance(found, EndpointError) or status == 200


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"data: 5\n\n", "a chunk that is int, not dict"),
        (b'data: {"choices": ["x"]}\n\n', "a choice that is str, not dict"),
        (b'data: {"choices": 3}\n\n', "choices that is int, not list"),
        (b'data: {"choices": [{"delta": "x"}]}\n\n', "a delta that is str"),
        (b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', "content that is int"),
        (b'data: {"choices": [{"delta": {"tool_calls": [{"index": "0"}]}}]}\n\n', "index is no whole number"),
        (b'data: "\xff\xfe"\n\n', "something that is not JSON"),
        (b'data: {"choices": null}\n\n', "ended without a finish reason"),
        (b'data: {"choices": [{"delta": null, "finish_reason": null}]}\n\n', "ended without a finish reason"),
    ],
)
def test_what_used_to_crash_is_named(wire, raw, says):
    found = wire(complete, raw)
    assert isinstance(found, EndpointError)
    assert says in found.message
    assert found.where.startswith("http://127.0.0.1")


def test_a_last_event_without_an_end_counts(wire):
    raw = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}'
    assert wire(complete, raw).text == "hi"
    assert wire(complete, raw + b"\n\ndata: [DONE]").text == "hi"
    parts = raw.replace(b'"hi"', b'[{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]')
    assert wire(complete, parts).text == "hi"


def test_a_character_cut_between_two_chunks_is_whole_again(wire):
    half = lambda text: b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text  # noqa: E731
    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
    assert wire(complete, half(rb"\ud83d") + half(rb"\ude00!") + end).text == "\U0001f600!"
    assert wire(complete, half(rb"\ude00") + half(rb"\ud83d a") + end).text == "\ufffd\ufffd a"


def test_an_answer_without_end_is_cut_off(wire, monkeypatch):
    monkeypatch.setattr("tunegate.serve.chat_stream.LARGEST_ANSWER", 100)
    assert "more than 100 bytes" in wire(complete, b"data: " + b"x" * 200).message
    monkeypatch.setattr(clients, "LARGEST_REFUSAL", 10)
    assert wire(complete, b"y" * 200, status=400, kind="text/plain").message == "HTTP 400: yyyyyyyyyy"
