"""`ft serve top`: a live view of a server, from its /metrics."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.errors import InfrastructureError, UsageError
from tunegate.serve import servers
from tunegate.serve.client import api_key
from tunegate.serve.endpoint_url import certificate_problem, checked_url
from tunegate.serve.metrics import Snapshot, between, snapshot
from tunegate.serve.plain_http import call

if TYPE_CHECKING:
    from rich.table import Table

ROWS = (
    ("running", "requests being computed", "{:.0f}"),
    ("waiting", "requests waiting", "{:.0f}"),
    ("kv_use", "KV cache in use", "{:.1%}"),
    ("generated_tokens_per_s", "tokens written / s", "{:.1f}"),
    ("prompt_tokens_per_s", "tokens read / s", "{:.1f}"),
    ("requests_per_s", "answers finished / s", "{:.2f}"),
    ("cache_hit_rate", "prompt tokens found in the prefix cache", "{:.1%}"),
    ("ttft_ms", "mean time to first token, ms", "{:.0f}"),
    ("tpot_ms", "mean time per token after it, ms", "{:.1f}"),
    ("preemptions", "requests set back for lack of cache", "{:.0f}"),
)


def top(
    target: Annotated[
        str | None, typer.Argument(help="URL of a server (http://host:port/v1); else one started here.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of a server started here.")] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, and leave.")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key; else TUNEGATE_API_KEY.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show requests, tokens per second, cache use and cache hits of a server as it runs; Ctrl-C ends it."""
    if as_json and not once:
        raise UsageError("--json is one object: give --once too", where="--json")
    url, certificate = (checked_url(target), None) if target else _started_here(port)
    url = url.removesuffix("/v1")
    key = api_key(api_key_file)
    before = _scrape(url, key, certificate)
    if once:
        time.sleep(interval)
        after = _scrape(url, key, certificate)
        seen = between(before, after)
        if as_json:
            emit_json({"url": f"{url}/v1", "interval_s": after.at - before.at, **seen, "finished": after.finished})
        else:
            out().print(render(url, after, seen))
        return
    _live(url, key, certificate, before, interval)


def _live(url: str, key: str | None, certificate: Path | None, before: Snapshot, interval: float) -> None:
    from rich.live import Live

    with Live(console=out(), auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            after = _scrape(url, key, certificate)
            live.update(render(url, after, between(before, after)), refresh=True)
            before = after


def render(url: str, now: Snapshot, seen: dict[str, float | None]) -> "Table":
    """The view as a table: one row a figure, `-` where nothing happened to measure."""
    from rich.table import Table

    grid = Table(
        title=f"{url}/v1", title_justify="left", header_style="bold", caption=_finished(now), caption_justify="left"
    )
    grid.add_column("now")
    grid.add_column("", justify="right", min_width=9)
    for name, words, shape in ROWS:
        value = seen[name]
        grid.add_row(words, "-" if value is None else shape.format(value))
    return grid


def _finished(now: Snapshot) -> str:
    ended = ", ".join(f"{reason} {count:,.0f}" for reason, count in sorted(now.finished.items()))
    return f"since its start: {now.generated_tokens:,.0f} tokens written; finished: {ended or 'none'}"


def _started_here(port: int | None) -> tuple[str, Path | None]:
    record: dict[str, Any] = servers.find(port)
    if not record.get("url"):
        raise InfrastructureError(f"the server on port {record['port']} is {record['state']}", hint="ft serve status")
    certificate = record.get("certificate")
    return record["url"], Path(certificate) if certificate else None


def _scrape(url: str, key: str | None, certificate: Path | None) -> Snapshot:
    try:
        reply = call(f"{url}/metrics", key=key, certificate=certificate)
    except OSError as error:
        problem = certificate_problem(getattr(error, "reason", error))
        words, hint = problem or (str(error), "is the server running? ft serve status")
        raise InfrastructureError(f"no metrics: {words}", where=url, hint=hint) from None
    if reply.status == 401:
        raise InfrastructureError(
            "no metrics: the key is missing or wrong", where=url, hint="set TUNEGATE_API_KEY or --api-key-file"
        )
    if reply.status != 200:
        raise InfrastructureError(f"no metrics: HTTP {reply.status}", where=url, hint="only vLLM's server has them")
    return snapshot(reply.body.decode("utf-8", "replace"), time.monotonic())
