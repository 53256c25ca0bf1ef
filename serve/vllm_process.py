"""`serving(target) -> Endpoint`: vLLM's OpenAI-compatible server as a child that is ready when it says so, and gone when
the block ends."""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UsageError
from tunegate.serve.client import api_key
from tunegate.serve.middleware import INSTANCE_HEADER, INSTANCE_VARIABLE, KEY_VARIABLE
from tunegate.serve.vllm_failures import explain
from tunegate.serve.vllm_flags import SERVER_MODULE, Launch, ServeOptions, Target, build, describe, template_digest

# What the log says when a phase begins, and the phase in plain words.
PHASES = (
    (r"Initializing a V1 LLM engine", "engine starting"),
    (r"Starting to load model|Loading (safetensors|weights)", "loading weights"),
    (r"Loading weights took|Model loading took", "weights loaded, warming up"),
    (r"Dynamo bytecode transform|Compiling a graph", "compiling (once for this model and machine)"),
    (r"Application startup complete|Starting vLLM server", "listening"),
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running server. base_url ends in /v1; model is the name requests use; facts are kept in reports."""

    base_url: str
    model: str
    key: str | None = None
    pid: int = 0
    log: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def serving(
    target: Target, *, options: ServeOptions | None = None, log: Path | None = None, key: str | None = None
) -> Iterator[Endpoint]:
    """Start vLLM for `target`, wait until it answers a real request, stop it when the block ends.

    Raises UserError for what it would refuse, InfrastructureError with cause and remedy when it does not start.
    """
    options = options or ServeOptions()
    options = replace(options, port=free_port(options.host) if options.port == 0 else options.port)
    refuse_taken(options.host, options.port)
    launch = build(target, options)
    log = log or Path(tempfile.mkdtemp(prefix="tunegate-serve-")) / "vllm.log"
    key = key or api_key()
    instance = uuid.uuid4().hex
    process = _start(launch, log, instance, key)
    try:
        started = time.monotonic()
        url = f"http://{_reachable(options.host)}:{options.port}"
        _wait_ready(process, url, instance, launch.model, key, log, options.start_timeout_s)
        took = time.monotonic() - started
        say(f"vLLM serves {describe(target)} at {url}/v1 (ready after {took:.0f} s)")
        facts = {
            "engine": "vllm",
            "flags": launch.arguments,
            "start_s": round(took, 1),
            "template_digest": template_digest(target),
        }
        yield Endpoint(base_url=f"{url}/v1", model=launch.model, key=key, pid=process.pid, log=log, facts=facts)
    finally:
        stop(process)


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def refuse_taken(host: str, port: int) -> None:
    """Raise InfrastructureError at once when the port is taken, rather than after vLLM's imports."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise UsageError(f"port {port} needs more rights", where="--port", hint="choose one above 1023") from None
        except OSError as error:
            raise InfrastructureError(
                f"port {port} on {host} cannot be used: {error.strerror}",
                where="--port",
                hint="choose another --port, or stop what listens there: ft serve status",
            ) from None


def stop(process: "subprocess.Popen[bytes]", *, grace_s: float = 10.0) -> None:
    """Stop the server and everything it started: SIGTERM to its process group, SIGKILL after `grace_s`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(launch: Launch, log: Path, instance: str, key: str | None) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **launch.environment, INSTANCE_VARIABLE: instance}
    environment.pop("VLLM_API_KEY", None)
    environment.pop(KEY_VARIABLE, None)
    if key:
        environment[KEY_VARIABLE] = key
    command = [sys.executable, "-m", SERVER_MODULE, *launch.arguments]
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """Ask Linux to send the child SIGTERM when we die, however we die (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_ready(
    process: "subprocess.Popen[bytes]",
    url: str,
    instance: str,
    model: str,
    key: str | None,
    log: Path,
    timeout_s: float,
) -> None:
    """Until *this* instance is healthy and has answered one real request; phases are told as they come."""
    deadline = time.monotonic() + timeout_s
    started, told, position = time.monotonic(), -1, 0
    say("starting vLLM: importing")
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise explain(log, process.returncode)
        with log.open("rb") as stream:
            stream.seek(position)
            fresh = stream.read().decode("utf-8", "replace")
            position = stream.tell()
        for index, (pattern, words) in enumerate(PHASES):
            if index > told and re.search(pattern, fresh):
                told = index
                say(f"starting vLLM: {words} ({time.monotonic() - started:.0f} s)")
        if _is_ours(url, instance):
            _first_answer(url, model, key, log, timeout_s=max(1.0, deadline - time.monotonic()))
            return
        time.sleep(0.2)
    raise explain(log, None)


def _is_ours(url: str, instance: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310
            return bool(response.headers.get(INSTANCE_HEADER) == instance)
    except (OSError, urllib.error.URLError):
        return False


def _first_answer(url: str, model: str, key: str | None, log: Path, timeout_s: float) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            json.loads(response.read())["choices"][0]
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")[:300]
        raise InfrastructureError(
            f"the server started but refuses a first request: HTTP {error.code} {text}", hint=f"log: {log}"
        ) from None
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InfrastructureError(
            f"the server started but does not answer a first request: {error}", hint=f"log: {log}"
        ) from None


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
