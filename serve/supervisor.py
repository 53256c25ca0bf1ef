"""Looks after one server: tells its state, notices death and hanging, starts it again when asked to, drains it at the end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tunegate.core.console import say, warn
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.serve.served_model import Target
from tunegate.serve.servers import Record, health, log_path
from tunegate.serve.vllm_flags import ServeOptions
from tunegate.serve.vllm_process import Endpoint, serving

POLL_S = 0.25
CHECK_S = 2.0
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
FORGIVEN_S = 600.0  # a server that ran so long has its restarts back


def supervise(
    target: Target,
    options: ServeOptions,
    *,
    key: str | None,
    restarts: int,
    record: Record,
    ready: Callable[[Endpoint], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM, which drain it; start it again up to `restarts` times when it dies or hangs.

    Raises InfrastructureError when it does not start, or dies and may not be started again, and UserError when it does not
    start for what the user must mend (no restart helps then); `record` then says why the server that was there is dead.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    left, first = restarts, True
    while True:
        began = time.monotonic()
        try:
            reason = _serve_once(target, options, key=key, record=record, ready=ready if first else _quiet, left=left)
        except (InfrastructureError, UserError) as error:
            if first:
                raise
            if left == 0 or isinstance(error, UserError):
                record.update(state="dead", detail=error.message)
                raise
            reason = error.message
        if reason is None:
            return
        first = False
        left = restarts if time.monotonic() - began > FORGIVEN_S else left
        if left == 0:
            record.update(state="dead", detail=reason, server_pid=None)
            hint = f"--restart N starts it again; log: {log_path(options.port)}"
            raise InfrastructureError(reason, hint=hint)
        wait = BACK_OFF_S[min(restarts - left, len(BACK_OFF_S) - 1)]
        left -= 1
        warn(f"{reason}; starting it again in {wait:.0f} s ({left} restarts left)")
        record.update(state="restarting", detail=reason, server_pid=None, restarts=record.content["restarts"] + 1)
        with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
            log_path(options.port).replace(log_path(options.port).with_suffix(".log.1"))
        time.sleep(wait)


def _serve_once(
    target: Target,
    options: ServeOptions,
    *,
    key: str | None,
    record: Record,
    ready: Callable[[Endpoint], None],
    left: int,
) -> str | None:
    """One life of the server: None after Ctrl-C or SIGTERM, else how it ended."""
    with serving(target, options=options, log=log_path(options.port), key=key) as endpoint:
        record.update(
            state="serving", detail=None, url=endpoint.base_url, model=endpoint.model, instance=endpoint.instance,
            server_pid=endpoint.pid, start_s=endpoint.facts["start_s"],
            certificate=str(options.certificate) if options.certificate else None,
        )  # fmt: skip
        ready(endpoint)
        try:
            return _watch(endpoint, record, options, may_kill=left > 0)
        except KeyboardInterrupt:
            seconds = options.guard.drain_s
            record.update(state="draining", detail=f"running requests get {seconds:.0f} s")
            say(f"draining: running requests get up to {seconds:.0f} s; Ctrl-C again stops at once")
            return None


def _watch(endpoint: Endpoint, record: Record, options: ServeOptions, *, may_kill: bool) -> str:
    """Until the server dies, or hangs and may be killed for that: how it ended, in words."""
    checked = silent_since = time.monotonic()
    while True:
        code = _ended(endpoint.pid)
        if code is not None:
            return f"the server died ({code})"
        now = time.monotonic()
        if now - checked >= CHECK_S:
            checked = now
            state, words = health(endpoint.base_url, endpoint.instance, certificate=options.certificate)
            if state != "silent":
                silent_since = now
            elif now - silent_since > options.guard.hang_s:
                state = "hung"
            if state == "failing" or (state == "hung" and may_kill):
                os.killpg(endpoint.pid, signal.SIGKILL)  # vLLM says that its engine is dead, or it would not drain
                return f"the server {'failed' if state == 'failing' else 'hung'} ({words})"
            if state == "hung" and record.content["state"] != "hung":
                warn(f"the server hangs: {words}; log: {log_path(options.port)}")
            record.update(state=record.content["state"] if state == "silent" else state, detail=words or None)
        time.sleep(POLL_S)


def _ended(pid: int) -> str | None:
    """How our child `pid` ended, in words; None while it runs. It stays a zombie for whoever waits for it."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return f"exit code {found.si_status}"
    return f"signal {found.si_status}" + (", probably for memory" if found.si_status == signal.SIGKILL else "")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _quiet(endpoint: Endpoint) -> None:
    say(f"serving again at {endpoint.base_url}")


def detached_log(port: int) -> Path:
    """What a supervisor in the background prints."""
    return log_path(port).with_suffix(".supervisor.log")
