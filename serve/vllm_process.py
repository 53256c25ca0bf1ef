"""vLLM's server as a child that owns its process group and cannot outlive us, and `serving(target) -> Endpoint`."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Release, Run
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UsageError
from tunegate.serve.client import api_key
from tunegate.serve.middleware import (
    EXIT_S,
    INSTANCE_VARIABLE,
    KEY_VARIABLE,
    PROBE_MODEL_VARIABLE,
    GuardSettings,
)
from tunegate.serve.served_model import Target, describe, has_dated_template, template_digest
from tunegate.serve.template_check import check_template
from tunegate.serve.vllm_flags import SERVER_MODULE, Launch, ServeOptions, build
from tunegate.serve.vllm_start import wait_ready

UNREADY_S = 5.0  # to end in, of a server that has answered nobody yet
EMPTY_S = 5.0  # within this a killed group is gone
YOUNG_S = 120.0  # a compiler is done by then


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running server. base_url ends in /v1; model is the name requests use; facts are kept in reports."""

    base_url: str
    model: str
    key: str | None = None
    pid: int = 0
    instance: str = ""
    log: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Child:
    """The server's process, leader of its group, and the reaper that kills the group when we are gone."""

    process: "subprocess.Popen[bytes]"
    reaper: "subprocess.Popen[bytes]"


@contextmanager
def serving(
    target: Target, *, options: ServeOptions | None = None, log: Path | None = None, key: str | None = None
) -> Iterator[Endpoint]:
    """Start vLLM for `target`, wait until it answers a real request as training rendered it, stop it when the block ends.

    Raises UserError for what it would refuse or has refused, InfrastructureError with cause and remedy when it does not
    start for another reason.
    """
    options = options or ServeOptions()
    options = replace(options, port=free_port(options.host) if options.port == 0 else options.port)
    refuse_taken(options.host, options.port)
    launch = build(target, options)
    log = log or Path(tempfile.mkdtemp(prefix="tunegate-serve-")) / "vllm.log"
    key = key or api_key()
    instance = uuid.uuid4().hex
    child = start(launch, log, instance, key, options.guard)
    started, grace = time.monotonic(), UNREADY_S
    try:
        root = f"{'https' if options.certificate else 'http'}://{_reachable(options.host)}:{options.port}"
        wait_ready(child.process, root, instance, launch.model, key, log, options)
        checked = [(target, launch.model)] if isinstance(target, Release | Run) else []
        for artifact, name in [*checked, *((a.artifact, a.name) for a in options.adapters)]:
            check_template(artifact, root, name, key=key, certificate=options.certificate)
        took = time.monotonic() - started
        grace = options.guard.drain_s + EXIT_S + 1.0
        say(f"vLLM serves {describe(target)} at {root}/v1 (ready after {took:.0f} s)")
        facts = {
            "engine": "vllm",
            "flags": launch.arguments,
            "start_s": round(took, 1),
            "template_digest": template_digest(target),
            "dated_template": has_dated_template(target),
            "adapters": list(launch.adapters),
        }
        yield Endpoint(
            base_url=f"{root}/v1", model=launch.model, key=key, pid=child.process.pid, instance=instance, log=log, facts=facts
        )  # fmt: skip
    finally:
        stop(child, grace_s=grace)


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def refuse_taken(host: str, port: int) -> None:
    """Raise InfrastructureError at once when the port is taken, rather than after vLLM's imports."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
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


def start(launch: Launch, log: Path, instance: str, key: str | None, guard: GuardSettings) -> Child:
    """Start the server and its reaper. The key goes by the environment, which other users cannot read."""
    drop_cut_kernels()
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **launch.environment, **guard.as_environment(), INSTANCE_VARIABLE: instance}
    environment[PROBE_MODEL_VARIABLE] = launch.model
    environment.pop("VLLM_API_KEY", None)
    environment.pop(KEY_VARIABLE, None)
    if key:
        environment[KEY_VARIABLE] = key
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVER_MODULE, *launch.arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    return Child(process, _reaper(process.pid))


def drop_cut_kernels() -> None:
    """Remove compiled kernels that a killed compiler left empty: torch takes one for finished, and every engine that asks for
    it dies ("file too short"). A young one may still be written."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    places = [Path(named)] if named else Path(tempfile.gettempdir()).glob("torchinductor_*")
    for file in (found for place in places for found in place.glob("*/*.so")):
        with contextlib.suppress(OSError):
            status = file.stat()
            if status.st_size == 0 and status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG_S:
                file.unlink()


def stop(child: Child, *, grace_s: float) -> None:
    """SIGTERM the server (its guard drains, its engine goes on meanwhile), wait `grace_s`, SIGKILL the whole group.

    Ctrl-C while it waits ends the waiting. The group is empty on return, or was killed EMPTY_S ago.
    """
    process = child.process
    try:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    except KeyboardInterrupt:
        say("stopping now")
    finally:
        kill_group(process)
        child.reaper.communicate(b"done\n")


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL everything the server started, and wait until it is gone."""
    deadline = time.monotonic() + EMPTY_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        process.poll()
        time.sleep(0.02)
    process.wait()


def _die_with_parent() -> None:
    """Ask Linux to send the child SIGTERM when we die, however we die (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _reaper(group: int) -> "subprocess.Popen[bytes]":
    """A shell that waits for a word from us; when we die instead, its pipe closes and it kills the server's group.

    The engine and its workers have no other tie to us: vLLM leaves them running when their parent is killed.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r done || kill -s KILL -- "-$0"', str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _reachable(host: str) -> str:
    """The address to ask a server at that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host
