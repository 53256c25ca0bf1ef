"""`ft serve`: options, opening what is served, printing. Sub-commands: status, logs, stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.artifacts import Release, Run, open_any
from tunegate.core.commands import DefaultCommandGroup
from tunegate.core.console import JsonOption, emit_json, out, say, table
from tunegate.core.errors import InfrastructureError, UsageError, UserError
from tunegate.core.files import write_json
from tunegate.core.manifest import NAME as MANIFEST
from tunegate.core.manifest import now
from tunegate.core.model_source import cache_folder, resolve
from tunegate.serve.client import api_key
from tunegate.serve.vllm_flags import ServeOptions, Target
from tunegate.serve.vllm_process import refuse_taken, serving

app = typer.Typer(cls=DefaultCommandGroup, add_completion=False, rich_markup_mode="rich", no_args_is_help=True,
                  help="Serve a release, run or model with vLLM (OpenAI-compatible): ft serve TARGET.",
                  epilog="Example: ft serve release-awq/ --port 8000   then   ft serve status")  # fmt: skip


def open_target(spec: str) -> Target:
    """A Run or Release folder, else a model source (hub id, folder, GGUF, builtin). Raises UserError."""
    path = Path(spec).expanduser()
    if not (path / MANIFEST).is_file():
        return resolve(spec)
    artifact = open_any(path)
    if not isinstance(artifact, Run | Release):
        raise UserError(f"is a {artifact.kind} folder; a run or a release can be served", where=spec)
    return artifact


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    epilog="Example: ft serve release-awq/ --port 8000 -- --max-num-batched-tokens 4096",
)
def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="Release or Run folder, model folder, hub id or builtin:smollm2-135m.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs a key.")] = "127.0.0.1",
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; see ft serve status, logs, stop.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile/--eager", help="Compile for speed (slower start), or start at once.")
    ] = False,
    max_model_len: Annotated[int, typer.Option(min=16, help="Tokens a request may take, prompt and answer.")] = 2048,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests computed together.")] = 32,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait until it answers.")] = 900.0,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key; else TUNEGATE_API_KEY.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve TARGET until Ctrl-C; flags after -- go to vLLM as they are."""
    key = api_key(api_key_file)
    if host not in ("127.0.0.1", "localhost", "::1") and not key:
        raise UsageError(
            f"listening on {host} needs an API key", where="--host", hint="set TUNEGATE_API_KEY or --api-key-file"
        )
    refuse_taken(host, port)
    if detach:
        _detach(port, start_timeout, as_json=as_json)
        return
    opened = open_target(target)
    options = ServeOptions(
        host=host, port=port, eager=not compiled, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
        start_timeout_s=start_timeout, extra=tuple(context.args),
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _interrupt)
    log = _folder() / f"{port}.log"
    with serving(opened, options=options, log=log, key=key) as endpoint:
        state = {
            "pid": os.getpid(),
            "port": port,
            "url": endpoint.base_url,
            "model": endpoint.model,
            "target": target,
            "log": str(log),
            "started": now(),
        }
        write_json(_folder() / f"{port}.json", state)
        try:
            if as_json:
                emit_json(state)
            else:
                _print_ready(endpoint.base_url, endpoint.model, needs_key=bool(key))
            _wait(endpoint.pid, log)
        finally:
            (_folder() / f"{port}.json").unlink(missing_ok=True)


@app.command(epilog="Example: ft serve status")
def status(as_json: JsonOption = False) -> None:
    """List the servers started here, and whether each answers."""
    servers = [{**s, "alive": _alive(s["pid"]), "healthy": _healthy(s)} for s in _states()]
    if as_json:
        emit_json({"servers": servers})
        return
    if not servers:
        out().print("no server is running")
        return
    words = {True: "healthy", False: "does not answer"}
    rows = [
        [str(s["port"]), s["target"], s["model"], words[s["healthy"]] if s["alive"] else "dead", s["started"]]
        for s in servers
    ]
    table(None, ["port", "target", "model", "state", "started"], rows, left=5)


@app.command(epilog="Example: ft serve logs --port 8000")
def logs(
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    lines: Annotated[int, typer.Option(min=1, help="Lines from the end.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the end of a server's log."""
    path = _folder() / f"{port}.log"
    if not path.is_file():
        raise UserError(f"no log of a server on port {port}", hint="ft serve status")
    shown = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    if as_json:
        emit_json({"port": port, "log": str(path), "lines": shown})
    else:
        out().print("\n".join(shown), markup=False)


@app.command(epilog="Example: ft serve stop --port 8000")
def stop(port: Annotated[int, typer.Option(help="Port of the server.")] = 8000, as_json: JsonOption = False) -> None:
    """Stop a server started with --detach (or in another terminal)."""
    state = next((s for s in _states() if s["port"] == port), None)
    if state is None:
        raise UserError(f"no server on port {port} was started here", hint="ft serve status")
    if _alive(state["pid"]):
        os.kill(state["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 30
        while _alive(state["pid"]) and time.monotonic() < deadline:
            time.sleep(0.1)
        if _alive(state["pid"]):
            raise InfrastructureError(
                f"the server on port {port} did not stop within 30 s", hint=f"kill -9 {state['pid']}"
            )
    (_folder() / f"{port}.json").unlink(missing_ok=True)
    if as_json:
        emit_json({"stopped": port})
    else:
        out().print(f"stopped the server on port {port}")


def _folder() -> Path:
    folder = cache_folder() / "serve"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _states() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(_folder().glob("*.json"))]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def _healthy(state: dict[str, Any]) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(state["url"].removesuffix("/v1") + "/health", timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _wait(pid: int, log: Path) -> None:
    """Until Ctrl-C or SIGTERM (a clean end), or until the server dies (an error)."""
    try:
        while _alive(pid):
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("stopping")
        return
    raise InfrastructureError("the server died", hint=f"log: {log}")


def _print_ready(url: str, model: str, *, needs_key: bool) -> None:
    key = ' -H "Authorization: Bearer $TUNEGATE_API_KEY"' if needs_key else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    out().print(f"ready: {url} (model {model}); Ctrl-C stops it", markup=False)
    out().print(
        f"try:   curl {url}/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'", markup=False
    )


def _detach(port: int, timeout_s: float, *, as_json: bool) -> None:
    """Run the same command in the background and wait until it is ready or has failed."""
    arguments = [a for a in sys.argv[1:] if a not in ("--detach", "--json")]
    own_log = _folder() / f"{port}.supervisor.log"
    with own_log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.argv[0], *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state = next((s for s in _states() if s["port"] == port and s["pid"] == child.pid), None)
        if state is not None:
            emit_json(state) if as_json else out().print(
                f"serving {state['model']} at {state['url']} in the background; ft serve stop --port {port}",
                markup=False,
            )
            return
        if child.poll() is not None:
            lines = own_log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
            raise InfrastructureError(lines[-1].removeprefix("error: "))
        time.sleep(0.2)
    child.terminate()
    raise InfrastructureError("the server was not ready in time", hint=f"log: {own_log}")
