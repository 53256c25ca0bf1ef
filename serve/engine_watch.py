"""Is the engine alive? Tokens that flow say so; where none do, a real request for one token is made, with a deadline.

vLLM's /health answers 200 while the engine process is stopped or stuck: it asks whether the process is there.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Probe = Callable[[], Awaitable[None]]
PROBE = "tunegate.probe"  # in the scope of a probe, which no client can write into
COUNTERS = ("vllm:generation_tokens", "vllm:prompt_tokens")


class EngineWatch:
    """Decides from token counts and a probe whether the engine hangs; `step` is called at every tick.

    probe: makes one token, returns when it came (or was refused); None: never asked, never called hung. chunks: pieces
    of streamed answers seen so far, which count as progress where the engine's own counters are switched off.
    """

    def __init__(self, probe: Probe | None, *, quiet_s: float, hang_s: float) -> None:
        self.probe = probe
        self.chunks = 0
        self.hung = False
        self.silent_s = 0.0
        self._quiet_s, self._hang_s = quiet_s, hang_s
        self._seen: tuple[float, int] = (0.0, 0)
        self._asked: asyncio.Future[None] | None = None
        self._waited_s = 0.0

    def step(self, tokens: float, passed_s: float) -> None:
        """Take the engine's token count, `passed_s` after the last call (a tick, however long the machine slept)."""
        answered = self._asked is not None and self._asked.done()
        if answered:
            assert self._asked is not None
            self._asked.exception()  # an error is an answer; fetched so that nobody logs it
            self._asked = None
        if answered or (tokens, self.chunks) != self._seen:
            self._seen = (tokens, self.chunks)
            self.silent_s = self._waited_s = 0.0
            self.hung = False
            return
        self.silent_s += passed_s
        if self._asked is not None:
            self._waited_s += passed_s
            self.hung = self._waited_s >= self._hang_s
        elif self.probe is not None and self.silent_s >= self._quiet_s:
            self._asked, self._waited_s = asyncio.ensure_future(self.probe()), 0.0  # one at a time: they never pile up


def engine_tokens() -> float:
    """Tokens read and written by the engine so far, from the server's own Prometheus registry; 0 without one."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return 0.0
    families = REGISTRY.restricted_registry([f"{name}_total" for name in COUNTERS]).collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name.endswith("_total"))


async def one_token(app: Any, lifespan: MutableMapping[str, Any], model: str) -> None:
    """Ask the app itself, behind the guard, for one token. lifespan: the scope the app was started with."""
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0}).encode()
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if pending:
            return pending.pop()
        await asyncio.get_running_loop().create_future()  # the probe never leaves: what waits says so
        raise AssertionError("unreachable")

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST",
        "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0),
        "app": lifespan.get("app"), "state": dict(lifespan.get("state") or {}), PROBE: True,
    }  # fmt: skip
    await app(scope, receive, send)
