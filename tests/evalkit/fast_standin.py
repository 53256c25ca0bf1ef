"""A chat endpoint that answers at once, so that a client against it measures the client: `python fast_standin.py [TOKENS]`.

Prints its port. One process, raw HTTP/1.1 over asyncio (uvloop where it is installed), every answer made beforehand: a
stream of one event a token where the request asks for one, else one JSON object. `GET /stats` tells how many requests came
and the seconds from the first one's arrival to the last one's end, and begins anew. `RequestLog` is the same counter as
ASGI middleware, for a real server.
"""

import asyncio
import json
import sys
import time

WORD = "word "


class Counter:
    """Requests, and when the first arrived and the last ended."""

    def __init__(self):
        self.n, self.first, self.last = 0, 0.0, 0.0

    def begin(self):
        self.first = self.first or time.perf_counter()

    def end(self):
        self.n += 1
        self.last = time.perf_counter()

    def take(self):
        found = json.dumps({"requests": self.n, "seconds": self.last - self.first}).encode()
        self.n, self.first = 0, 0.0
        return found


class RequestLog:
    """ASGI middleware that counts `/chat/completions` and answers `/stats`."""

    def __init__(self, app):
        self.app, self.counter = app, Counter()

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if path == "/stats":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.counter.take()})
            return
        counted = path.endswith("/chat/completions")
        if counted:
            self.counter.begin()
        await self.app(scope, receive, send)
        if counted:
            self.counter.end()


def answers(tokens):
    """(streamed, whole): the two responses as bytes, headers included."""
    usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
    shell = {"id": "chatcmpl-1", "created": 1, "model": "standin"}

    def event(choices, **more):
        return (
            b"data: "
            + json.dumps({**shell, "object": "chat.completion.chunk", "choices": choices, **more}).encode()
            + b"\n\n"
        )

    parts = [event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])]
    parts += [event([{"index": 0, "delta": {"content": WORD}, "finish_reason": None}]) for _ in range(tokens)]
    parts += [event([{"index": 0, "delta": {}, "finish_reason": "stop"}]), event([], usage=usage), b"data: [DONE]\n\n"]
    body = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in parts) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    message = {"role": "assistant", "content": WORD * tokens}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return head + body, whole({**shell, "object": "chat.completion", "choices": [choice], "usage": usage})


def whole(value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Connection(asyncio.Protocol):
    counter, streamed, plain = Counter(), b"", b""

    def __init__(self):
        self.pending = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.pending += data
        while (end := self.pending.find(b"\r\n\r\n")) >= 0:
            head = self.pending[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.pending) < end + 4 + length:
                self.counter.begin()
                return
            body, self.pending = self.pending[end + 4 : end + 4 + length], self.pending[end + 4 + length :]
            self.transport.write(self.answer(head, body))

    def answer(self, head, body):
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/chat/completions"):
            self.counter.begin()
            self.counter.end()
            compact = body.replace(b" ", b"")
            return self.streamed if b'"stream":true' in compact else self.plain
        if path.endswith(b"/stats"):
            return whole(self.counter.take())
        if path.endswith(b"/models"):
            return whole({"object": "list", "data": [{"id": "standin", "object": "model"}]})
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


async def main():
    Connection.streamed, Connection.plain = answers(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(main())
