"""ASGI middleware inside vLLM's server: the key on every route but /health, limits, draining, and health that is true.

Given to vLLM by `--middleware`, so there is no proxy in between. vLLM's own `--api-key` leaves /invocations, /tokenize,
/metrics and others open; its SIGTERM aborts what runs, or drains with 500s for newcomers and no end; its /health says
200 while the engine hangs. Settings and the key come from the environment, never from the command line.
"""

import asyncio
import hmac
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any, Self

from tunegate.serve.connections import close_silent
from tunegate.serve.engine_watch import EngineWatch, engine_tokens, one_token

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

INSTANCE_HEADER = "x-tunegate-instance"
INSTANCE_VARIABLE = "TUNEGATE_INSTANCE"
KEY_VARIABLE = "TUNEGATE_API_KEY"
KEY_REQUIRED_VARIABLE = "TUNEGATE_KEY_REQUIRED"
PROBE_MODEL_VARIABLE = "TUNEGATE_PROBE_MODEL"
NO_KEY = f"{KEY_VARIABLE} is empty, and {KEY_REQUIRED_VARIABLE} says that there is no server without a key: put it into the secret"
HEALTH = "/health"
METRICS = "/metrics"  # scraped to the end, so that a drain can be watched
TICK_S = 1.0
DROPPED = 16  # a body that is too long is read up to so many times the limit
EXIT_S = 10.0  # what the engine and the server get to end after a drain


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """Limits of one server; each comes from the environment as TUNEGATE_ and the name in capitals.

    drain_s: seconds that running requests get after SIGTERM. max_body_bytes: of one request. body_s, header_s: seconds a
    client may take to send a request's body, and its headers. quiet_s: seconds without a token after which a request for
    one token is made; hang_s: seconds without any after that, and the engine is called hung.
    """

    drain_s: float = 30.0
    max_body_bytes: int = 4_000_000
    body_s: float = 30.0
    header_s: float = 20.0
    quiet_s: float = 10.0
    hang_s: float = 60.0

    @classmethod
    def from_environment(cls) -> Self:
        """The settings that `as_environment` wrote, defaults where it did not."""
        found: dict[str, Any] = {}
        for item in fields(cls):
            if _variable(item.name) in os.environ:
                read = int if item.type in (int, "int") else float
                found[item.name] = read(os.environ[_variable(item.name)])
        return cls(**found)

    def as_environment(self) -> dict[str, str]:
        """These settings as environment variables."""
        return {_variable(f.name): str(getattr(self, f.name)) for f in fields(self)}


def _variable(name: str) -> str:
    return f"TUNEGATE_{name.upper()}"


class _Request:
    """One request that runs: its task, and how far its answer is."""

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self.task = task
        self.cut = False
        self.started = False
        self.streams = False


class Guard:
    """Wraps an ASGI app; see the module's docstring."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.settings = GuardSettings.from_environment()
        self.instance = os.environ.get(INSTANCE_VARIABLE, "").encode()
        text = (
            os.environ.get(KEY_VARIABLE, "").removeprefix("\ufeff").strip()
        )  # a file's, as secrets are: its end is no key
        self.key = os.fsencode(text)
        self.required = os.environ.get(KEY_REQUIRED_VARIABLE, "0") != "0"
        self.draining = False
        self.running: set[_Request] = set()
        self.watch = EngineWatch(None, quiet_s=self.settings.quiet_s, hang_s=self.settings.hang_s)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop_asked = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse (401, 408, 413, 503), answer /health, or pass on and count; every answer carries the instance id."""
        if scope["type"] == "lifespan":
            if self.required and not self.key:  # uvicorn ends; an exception it would pass over, and serve on
                await send({"type": "lifespan.startup.failed", "message": NO_KEY})
                return
            await self.app(scope, receive, self._when_started(scope, send))
            return
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (INSTANCE_HEADER.encode(), self.instance)]
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        path = scope.get("path")
        if path == HEALTH and scope["type"] == "http":
            await self._health(scope, receive, marked)
        elif (self.key or self.required) and not self._allowed(scope):
            headers = [(b"www-authenticate", b"Bearer")]
            await refuse(scope, marked, 401, "missing or wrong API key", "invalid_api_key", headers)
        elif self.draining and path != METRICS:
            await refuse(scope, marked, 503, "the server is stopping", "draining", self._retry_after())
        else:
            await self._pass(scope, receive, marked)

    def _allowed(self, scope: Scope) -> bool:
        sent = next((v for k, v in scope.get("headers", []) if k.lower() == b"authorization"), b"")
        scheme, _, key = bytes(sent).partition(b" ")
        same = hmac.compare_digest(key.lstrip(b" "), self.key)
        return bool(self.key) and same and scheme.lower() == b"bearer"  # in any case: RFC 9110, section 11.1

    def _retry_after(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", str(max(1, round(self.settings.drain_s))).encode())]

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.draining:
            await refuse(scope, send, 503, "draining: running requests finish", "draining", self._retry_after())
        elif self.watch.hung:
            await refuse(scope, send, 503, f"hung: no token for {self.watch.silent_s:.0f} s", "hung", [])
        else:
            await self.app(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body within its limits, run the app, and cut its answer when the drain's deadline says so."""
        task = asyncio.current_task()
        assert task is not None
        request = _Request(task)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.started = True
                request.streams = any(v.startswith(b"text/event-stream") for _, v in message["headers"])
            elif message.get("more_body"):
                self.watch.chunks += 1
            await send(message)

        self.running.add(request)
        try:
            if scope["type"] == "http" and _has_body(scope):
                body = await self._body(scope, receive, noted)
                if body is None:
                    return
                receive = _replay(body, receive)
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if not request.cut:
                raise
            task.uncancel()
            await _end_cut(scope, request, send)
        finally:
            self.running.discard(request)

    async def _body(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """The whole body; None when it was refused, or the client left. What is too long is read on for a while and
        dropped: a client that is still sending would see a broken connection and not the answer."""
        limit, close = self.settings.max_body_bytes, [(b"connection", b"close")]
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.settings.body_s):
                while more and size <= DROPPED * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    size += len(piece)
                    more = bool(message.get("more_body"))
                    if size <= limit:
                        pieces.append(piece)
        except TimeoutError:
            words = f"the request's body took longer than {self.settings.body_s:.0f} s"
            await refuse(scope, send, 408, words, "request_timeout", close)
            return None
        if size > limit:
            await refuse(scope, send, 413, f"the request is longer than {limit} bytes", "request_too_large", close)
            return None
        return b"".join(pieces)

    def _when_started(self, scope: Scope, send: Send) -> Send:
        """Take over SIGTERM and begin to watch once the app has started: vLLM has set its handlers by then."""

        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                loop = asyncio.get_running_loop()
                if threading.current_thread() is threading.main_thread():
                    loop.add_signal_handler(signal.SIGTERM, self._sigterm)
                model = os.environ.get(PROBE_MODEL_VARIABLE)
                if model:
                    self.watch.probe = lambda: one_token(self.app, scope, model)
                self._spawn(self._every_tick(scope))
            await send(message)

        return started

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _every_tick(self, scope: Scope) -> None:
        silent: dict[Any, float] = {}
        while True:
            await asyncio.sleep(TICK_S)
            self.watch.step(engine_tokens(), TICK_S)
            silent = close_silent(scope.get("app"), silent, self.settings.header_s)

    def _sigterm(self) -> None:
        """The first SIGTERM drains; the second one ends the drain."""
        if self.draining:
            self._stop_asked.set()
            return
        self.draining = True
        self._spawn(self._drain())

    async def _drain(self) -> None:
        """Wait for running requests up to the deadline, cut those that are left, and let vLLM stop (its SIGINT)."""
        _end_after(self.settings.drain_s + EXIT_S)  # a blocked loop does not come to the next one
        deadline = time.monotonic() + self.settings.drain_s
        while self.running and time.monotonic() < deadline and not self._stop_asked.is_set():
            await asyncio.sleep(0.05)
        for request in list(self.running):
            request.cut = True
            request.task.cancel()
        if self.running:
            await asyncio.wait([r.task for r in self.running], timeout=2.0)
        _end_after(EXIT_S)
        os.kill(os.getpid(), signal.SIGINT)


def _end_after(seconds: float) -> None:
    last = threading.Timer(seconds, _end_now)
    last.daemon = True
    last.start()


def _end_now() -> None:
    """The last resort, in a thread of its own: this process and, where it leads its group, all it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _has_body(scope: Scope) -> bool:
    names = {k.lower(): v for k, v in scope.get("headers", [])}
    return b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the client sends (its disconnect)."""
    pending = [body]

    async def call() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return call


async def _end_cut(scope: Scope, request: _Request, send: Send) -> None:
    """The last words of an answer that the deadline cut; a client that reads nothing does not get them."""
    words = "the server stopped before this answer was finished"
    try:
        async with asyncio.timeout(1.0):
            if not request.started:
                await refuse(scope, send, 503, words, "draining", [(b"retry-after", b"1")])
            elif request.streams:
                event = b"data: " + _error(503, words, "draining") + b"\n\n"
                await send({"type": "http.response.body", "body": event})
    except TimeoutError:
        return


def _error(status: int, message: str, code: str) -> bytes:
    """An error as OpenAI's API words it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def refuse(
    scope: Scope, send: Send, status: int, message: str, code: str, headers: list[tuple[bytes, bytes]]
) -> None:
    """Answer with an error as OpenAI's API words it; a websocket is closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008 if status < 500 else 1013})
        return
    body = _error(status, message, code)
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
