"""Applies a run's prompting to chat requests inside the server: no proxy, no second parse of what streams back.

vLLM loads `PromptApp` by `--middleware`; the environment says which model names are prompted, and how much fits.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from tunegate.serve.engine_watch import PROBE
from tunegate.serve.middleware import refuse
from tunegate.serve.prompting.prompting import Prompting

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# JSON: {model name: folder that holds its prompting}, and the tokens that prompt and answer may take together.
FOLDERS = "TUNEGATE_PROMPTING"
CONTEXT = "TUNEGATE_CONTEXT_TOKENS"
# The prompted model that answers a request which names none; not set where another one does.
DEFAULT = "TUNEGATE_PROMPTED_DEFAULT"
# A response header, JSON: ids of the examples or passages the model saw, and how many more did not fit.
USED_HEADER = "x-tunegate-context"
LARGEST_HEADER = 4000  # bytes; ids beyond are left out, and said so by "more"
# Room kept for the answer of a request that names no max_tokens, and for what the template adds around the turns.
ANSWER_TOKENS = 256
TEMPLATE_TOKENS = 32
PATH = "/v1/chat/completions"
# vLLM's other routes that make a model answer: without the prompting, so that another system answers than was measured.
UNPROMPTED = frozenset({
    "/v1/completions", "/v1/responses", "/v1/messages", "/v1/chat/completions/batch", "/v1/systemone", "/invocations",
    "/inference/v1/generate", "/cohere/v2/chat", "/generative_scoring",
})  # fmt: skip


class PromptApp:
    """ASGI middleware: `POST /v1/chat/completions` for a prompted model gets its messages from `Prompting.apply`; routes
    that would answer without it are refused."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.context = int(os.environ[CONTEXT])
        self.default = os.environ.get(DEFAULT)
        self.promptings = {
            name: Prompting.load(Path(folder)) for name, folder in json.loads(os.environ[FOLDERS]).items()
        }
        for prompting in self.promptings.values():
            prompting.apply([{"role": "user", "content": "warm up"}], room=self.context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; rewrite the body of chat completions, refuse what would not be prompted."""
        path = scope.get("path")
        if scope["type"] != "http" or scope.get("method") != "POST" or (path != PATH and path not in UNPROMPTED):
            await self.app(scope, receive, send)
            return
        raw = await _body(receive)
        if raw is None:
            return  # the client left before its request was complete
        if path in UNPROMPTED:
            await self._unprompted(raw, scope, receive, send)
            return
        body, used = await self._prompted(raw)
        headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}

        async def with_header(message: MutableMapping[str, Any]) -> None:
            if used is not None and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (USED_HEADER.encode(), used)]}
            await send(message)

        await self.app(scope, _once(body, receive), with_header)

    async def _unprompted(self, raw: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request of a prompted model; pass on that of another, and the guard's probe of the engine."""
        try:
            name = self._model(json.loads(raw))
            prompted = name in self.promptings and not scope.get(PROBE)
        except (ValueError, TypeError, AttributeError, RecursionError):
            prompted = False
        if not prompted:
            await self.app(scope, _once(raw, receive), send)
            return
        words = f"the model {name!r} is prompted by this server, and {scope['path']} is not: use {PATH}"
        await refuse(scope, send, 400, words, "prompted_model", [])

    def _model(self, request: dict[str, Any]) -> Any:
        """The name that a request asks for, as vLLM takes it: none, or an empty one, is the model served first."""
        return request.get("model") or self.default

    async def _prompted(self, raw: bytes) -> tuple[bytes, bytes | None]:
        """(body for the engine, value of the header). What is no chat request of ours goes on untouched."""
        try:
            request = json.loads(raw)
            prompting = self.promptings[self._model(request)]
            messages = request["messages"]
            well_formed = all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
            json.dumps(request, ensure_ascii=False).encode()  # half of a surrogate pair: no tokenizer takes it
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return raw, None
        if not well_formed:
            return raw, None
        room = self.context - TEMPLATE_TOKENS - _answer_tokens(request)
        if request.get("tools"):
            room -= int(prompting.count([json.dumps(request["tools"])]))
        applied = await asyncio.to_thread(prompting.apply, messages, room=room)
        request["messages"] = applied.messages
        return json.dumps(request).encode(), _header(applied.used, applied.dropped)


def _answer_tokens(request: dict[str, Any]) -> int:
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    return asked if isinstance(asked, int) and asked > 0 else ANSWER_TOKENS


def _header(used: list[str], dropped: int) -> bytes:
    kept = list(used)
    while True:
        more = {"more": len(used) - len(kept)} if len(kept) < len(used) else {}
        value = json.dumps({"ids": kept, "dropped": dropped, **more}, separators=(",", ":")).encode()
        if len(value) <= LARGEST_HEADER or not kept:
            return value
        kept.pop()


async def _body(receive: Receive) -> bytes | None:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _once(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the client sends (its disconnect)."""
    given = False

    async def call() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return call
