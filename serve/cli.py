"""`ft serve`: options, opening what is served, printing. Sub-commands: status, logs, stop, top, deploy."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.artifacts import Release, Run, open_any
from tunegate.core.commands import DefaultCommandGroup
from tunegate.core.console import JsonOption, emit_json, out, say
from tunegate.core.errors import ExitCode, InfrastructureError, TunegateError, UsageError, UserError
from tunegate.core.files import home_path
from tunegate.core.machine import gpus
from tunegate.core.manifest import is_finished
from tunegate.core.model_source import ModelSource, resolve
from tunegate.serve import base_check, cli_manage, servers
from tunegate.serve.client import api_key
from tunegate.serve.deploy.cli import deploy
from tunegate.serve.machine_plan import choose_start
from tunegate.serve.middleware import GuardSettings
from tunegate.serve.preflight import check_numbers, checked_name
from tunegate.serve.served_model import Adapter, Target, has_adapter
from tunegate.serve.supervisor import detached_log, supervise
from tunegate.serve.top import top
from tunegate.serve.vllm_flags import SERVER_MODULE, Launch, ServeOptions, build
from tunegate.serve.vllm_process import Endpoint, refuse_taken

app = typer.Typer(cls=DefaultCommandGroup, add_completion=False, rich_markup_mode="rich", no_args_is_help=True,
                  help="Serve a release, run or model with vLLM (OpenAI-compatible): ft serve TARGET.",
                  epilog="Example: ft serve release-awq/ --port 8000 --detach && ft serve status")  # fmt: skip
app.command(epilog="Example: ft serve status")(cli_manage.status)
app.command(epilog="Example: ft serve logs --port 8000 -f")(cli_manage.logs)
app.command(epilog="Example: ft serve stop --port 8000")(cli_manage.stop)
app.command(epilog="Example: ft serve top --port 8000")(top)
app.command(
    context_settings={"allow_extra_args": True},
    epilog="Example: ft serve deploy release-awq/ --to kubernetes --gpu L4 --out deployment/ -- --max-num-batched-tokens 4096",
)(deploy)

DEFAULTS = GuardSettings()
BODY_MB = DEFAULTS.max_body_bytes / 1e6
OWN_KINDS = (UserError, InfrastructureError, TunegateError)  # a class an exit code


def open_target(spec: str) -> Target:
    """A Run or Release folder, else a model source (hub id, folder, GGUF, builtin). Raises UserError."""
    path = home_path(spec)
    if not is_finished(path):
        return resolve(spec)
    artifact = open_any(path)
    if not isinstance(artifact, Run | Release):
        raise UserError(f"is a {artifact.kind} folder; a run or a release can be served", where=spec)
    return artifact


class Start(StrEnum):
    """How vLLM is started."""

    FAST = "fast"
    COMPILED = "compiled"
    AUTO = "auto"


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
        bool, typer.Option("--detach", help="Run in the background; ft serve status, logs, stop.")
    ] = False,
    start: Annotated[
        Start, typer.Option(help="Answer soon, or compile first; auto: compile for a service.")
    ] = Start.AUTO,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; else that of its folder.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=RUN: a LoRA adapter beside TARGET; repeatable.")
    ] = None,
    max_model_len: Annotated[int, typer.Option(min=16, help="Tokens a request may take, prompt and answer.")] = 2048,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests computed together.")] = 32,
    max_request_mb: Annotated[float, typer.Option(min=0.001, help="Largest request body, 1e6 bytes.")] = BODY_MB,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait until it answers.")] = 900.0,
    restart: Annotated[int, typer.Option(min=0, help="Start it again so often when it dies or hangs.")] = 0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds running requests get when stopped.")] = DEFAULTS.drain_s,
    hang_after: Annotated[
        float, typer.Option(min=1, help="Seconds one token may take; then it hangs.")
    ] = DEFAULTS.hang_s,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key; else TUNEGATE_API_KEY.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="TLS certificate (PEM); with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--print-command", help="Check and print vLLM's command.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve TARGET until Ctrl-C; flags after -- go to vLLM as they are."""
    check_numbers(max_request_mb=max_request_mb, start_timeout=start_timeout, drain=drain, hang_after=hang_after)
    key = api_key(api_key_file)
    if host not in ("127.0.0.1", "localhost", "::1") and not key:
        raise UsageError(
            f"listening on {host} needs an API key", where="--host", hint="set TUNEGATE_API_KEY or --api-key-file"
        )
    _check_tls(tls_cert, tls_key)
    if not dry_run:
        servers.refuse_kept(port)
        refuse_taken(host, port)
    guard = replace(
        _from_environment(), drain_s=drain, hang_s=hang_after, quiet_s=min(DEFAULTS.quiet_s, hang_after),
        max_body_bytes=round(max_request_mb * 1e6),
    )  # fmt: skip
    options = ServeOptions(
        host=host, port=port, max_model_len=max_model_len, max_num_seqs=max_num_seqs, start_timeout_s=start_timeout,
        certificate=tls_cert, private_key=tls_key, guard=guard, extra=tuple(context.args),
        adapters=tuple(_adapter(text) for text in adapter or ()), name=checked_name(name),
    )  # fmt: skip
    options = _with_start(opened := open_target(target), options, start, detach=detach, service=detach or restart > 0)
    if dry_run:
        _print_command(build(opened, options), as_json=as_json)
    elif detach:
        build(opened, options)  # what is wrong is said here, not in a log
        _detach(port, start_timeout, as_json=as_json)
    else:
        _supervised(target, opened, options, key=key, restarts=restart, as_json=as_json)


def _from_environment() -> GuardSettings:
    """The guard's settings that have no option. Raises UsageError for one that is no number."""
    try:
        return GuardSettings.from_environment()
    except ValueError as error:
        raise UsageError(f"a TUNEGATE_..._S or _BYTES variable is no number: {error}", where="environment") from None


def _adapter(text: str) -> Adapter:
    """NAME=FOLDER. Raises UsageError."""
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UsageError(f"{text!r} is not NAME=RUN", where="--adapter", hint="--adapter support=runs/support")
    opened = open_target(folder)
    if isinstance(opened, ModelSource):
        raise UserError("a model folder is no adapter; a Run or a Release is needed", where=folder)
    return Adapter(name=name, artifact=opened)


def _with_start(target: Target, options: ServeOptions, start: Start, *, detach: bool, service: bool) -> ServeOptions:
    """The options with the way to start, told; and whether what is served was judged on the base that it gets. Raises UserError
    where its own bytes are others than were judged; with `detach` that is left to the same command in the background."""
    served = (target, *(a.artifact for a in options.adapters))
    if not detach:
        base_check.refuse_other_bytes(*served)
    base_check.warn_changed(*served)
    adapters = bool(options.adapters) or has_adapter(target)
    compiled, words = choose_start(start, service=service, on_gpu=bool(gpus()), adapters=adapters)
    say(words)
    return replace(options, eager=not compiled)


def _print_command(launch: Launch, *, as_json: bool) -> None:
    """vLLM's command with what it needs in its environment; the key is not among it."""
    command = [sys.executable, "-m", SERVER_MODULE, *launch.arguments]
    if as_json:
        names = [launch.model, *launch.adapters]
        emit_json({"command": command, "environment": launch.environment, "models": names})
    else:
        set_first = [f"{name}={shlex.quote(value)}" for name, value in launch.environment.items()]
        out().print(" ".join([*set_first, shlex.join(command)]), markup=False)


def _supervised(
    spec: str, target: Target, options: ServeOptions, *, key: str | None, restarts: int, as_json: bool
) -> None:
    """Serve in the foreground, with a record of it. With `as_json` the server's object is the only one on standard output:
    what comes after it goes to standard error, and the exit code stays."""
    record = servers.Record(
        options.port, target=spec, drain_s=options.guard.drain_s, model=None, url=None, instance=None
    )
    try:
        supervise(target, options, key=key, restarts=restarts, record=record,
                  ready=lambda endpoint: _ready(endpoint, record, as_json=as_json))  # fmt: skip
    except (TunegateError, KeyboardInterrupt) as error:
        told = as_json and record.content["url"] is not None  # a server has its URL when it is told of
        if not told:
            raise
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        say(f"error: {error.line()}")
        raise typer.Exit(error.exit_code) from None
    finally:
        if record.content["state"] != "dead":
            record.remove()


def _check_tls(certificate: Path | None, private_key: Path | None) -> None:
    if (certificate is None) != (private_key is None):
        raise UsageError("--tls-cert and --tls-key belong together", where="--tls-cert")
    for path in (certificate, private_key):
        if path is not None and not path.is_file():
            raise UserError("no such file", where=str(path))


def _ready(endpoint: Endpoint, record: servers.Record, *, as_json: bool) -> None:
    """One line with the URL, one with a request to try."""
    if as_json:
        emit_json(record.content)
        return
    url = endpoint.base_url
    key = ' -H "Authorization: Bearer $TUNEGATE_API_KEY"' if endpoint.key else ""
    body = json.dumps({"model": endpoint.model, "messages": [{"role": "user", "content": "Hello"}]})
    out().print(f"ready: {url} (model {endpoint.model}); Ctrl-C stops it", markup=False)
    out().print(
        f"try:   curl {url}/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'", markup=False
    )


def _detach(port: int, timeout_s: float, *, as_json: bool) -> None:
    """Run the same command in the background and wait until it is ready or has failed; if it is not waited for to its end
    (Ctrl-C, no time left), it is stopped.

    Raises what it ended with; InfrastructureError when it is not ready in time.
    """
    arguments = _without(sys.argv[1:], ("--detach", "--json"))
    own_log = detached_log(port)
    with own_log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.argv[0], *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        state = _wait_serving(child, port, own_log, timeout_s)
    except BaseException:
        child.terminate()
        raise
    emit_json(state) if as_json else out().print(
        f"serving {state['model']} at {state['url']} in the background; ft serve stop --port {port}", markup=False
    )


def _wait_serving(child: "subprocess.Popen[bytes]", port: int, own_log: Path, timeout_s: float) -> dict[str, Any]:
    """The record of a supervisor in the background, once its server serves. Raises as `_detach` does."""
    deadline = time.monotonic() + timeout_s
    shown = 0
    while time.monotonic() < deadline:
        shown = _show_phases(own_log, shown)
        state = next((s for s in servers.records() if s["port"] == port and s["pid"] == child.pid), None)
        if state is not None and state["state"] == "serving":
            return state
        if (code := child.poll()) is not None:
            raise _as_it_ended(code, _printed(own_log))
        time.sleep(0.2)
    raise InfrastructureError("the server was not ready in time", hint=f"log: {own_log}")


def _as_it_ended(code: int, printed: str) -> BaseException:
    """What to raise for a supervisor in the background that ended with `code`: its last line and its own exit code, so that
    --detach ends as the foreground does. A signal, a crash of Python's (1) or an end without error (0) is 4."""
    if code == ExitCode.INTERRUPTED:
        return KeyboardInterrupt()
    said = (printed.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
    return next((kind(said) for kind in OWN_KINDS if kind.exit_code == code), InfrastructureError(said))


def _printed(log: Path) -> str:
    """What a supervisor in the background has printed; nothing where somebody has removed its log."""
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def _without(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """The command line without these options of ours; what stands after -- is not touched."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [a for a in arguments[:end] if a not in options] + arguments[end:]


def _show_phases(path: Path, shown: int) -> int:
    """Pass on what the background supervisor says of its start; lines shown so far."""
    lines = _printed(path).split("\n")[:-1]
    for line in lines[shown:]:
        if line.startswith("starting vLLM"):
            say(line)
    return len(lines)
