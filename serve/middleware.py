"""ASGI middleware inside vLLM's server: an instance id on every answer, and the key on every route but /health.

vLLM's own `--api-key` leaves /invocations, /tokenize, /metrics and others open. Given by `--middleware`; the id and the
key come from the environment, never from the command line.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

INSTANCE_HEADER = "x-tunegate-instance"
INSTANCE_VARIABLE = "TUNEGATE_INSTANCE"
KEY_VARIABLE = "TUNEGATE_API_KEY"
OPEN_PATHS = frozenset({"/health"})


class Guard:
    """Wraps an ASGI app. Requests without the key get 401; answers carry the instance id."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.instance = os.environ.get(INSTANCE_VARIABLE, "").encode()
        self.key = os.environ.get(KEY_VARIABLE, "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without the key, else pass on; mark the answer with the instance id."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (INSTANCE_HEADER.encode(), self.instance)]
            await send(message)

        if self.key and scope.get("path") not in OPEN_PATHS and not self._allowed(scope):
            await _refuse(scope, marked)
            return
        await self.app(scope, receive, marked)

    def _allowed(self, scope: Scope) -> bool:
        sent = next((v for k, v in scope.get("headers", []) if k.lower() == b"authorization"), b"")
        return hmac.compare_digest(bytes(sent), b"Bearer " + self.key)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b'{"error": {"message": "missing or wrong API key", "type": "invalid_request_error", "code": 401}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
