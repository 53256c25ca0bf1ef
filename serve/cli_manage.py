"""`ft serve status|logs|stop`: the servers that were started on this machine."""

import codecs
import io
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, out, show, table
from tunegate.core.errors import ExitCode, InfrastructureError, UsageError, UserError
from tunegate.serve import servers

PortOption = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of the server.")]
KILL_S = 15.0  # after this a supervisor that was told to stop at once is killed


def status(port: PortOption = None, as_json: JsonOption = False) -> None:
    """Tell of each server whether it is serving, draining, hung or dead. Exit 4 when one is hung or dead."""
    found = [servers.find(port)] if port is not None else servers.records()
    shown = [_shown(record) for record in found]
    if as_json:
        emit_json({"servers": shown})
    elif not shown:
        out().print("no server is running")
    else:
        columns = ["port", "target", "model", "state", "restarts", "started"]
        rows = [[str(s[c] if s[c] is not None else "") for c in columns] for s in shown]
        table(None, columns, rows, left=6)
        for s in shown:
            if s["detail"]:
                out().print(f"port {s['port']}: {s['detail']}; log: {s['log']}", markup=False)
    if any(s["state"] in ("dead", "hung") for s in shown):
        raise typer.Exit(ExitCode.INFRASTRUCTURE)


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    state, detail = servers.look(record)
    keys = ("port", "target", "model", "url", "pid", "server_pid", "log", "started", "start_s", "restarts")
    about = {key: record.get(key) for key in keys}
    alive = servers.supervisor(record) is not None
    return {**about, "state": state, "detail": detail or None, "alive": alive, "healthy": state == "serving"}


def logs(
    port: PortOption = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the end of a server's log."""
    if follow and as_json:
        raise UsageError("--follow has no end, --json is one object", where="--follow")
    port = servers.find(None)["port"] if port is None else port
    path = servers.log_path(port)
    if not path.is_file():
        raise UserError(f"no log of a server on port {port}", hint="ft serve status")
    text = path.read_text(encoding="utf-8", errors="replace")
    shown = text.splitlines()[-lines:]
    if as_json:
        emit_json({"port": port, "log": str(path), "lines": shown})
        return
    show("\n".join(shown))
    if follow:
        _follow(path, len(text.encode("utf-8", "replace")))


def _follow(path: Path, position: int) -> None:
    """Print what is added; a log that was begun anew (a restart) is shown from its start. A character or CR LF that two
    pieces share is whole again, and a CR alone (a progress bar) ends a line."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    while True:
        if path.is_file():
            size = path.stat().st_size
            position = position if size >= position else 0
            if size > position:
                with path.open("rb") as stream:
                    stream.seek(position)
                    fresh = stream.read()
                position += len(fresh)
                show(decoder.decode(fresh), end="")
        time.sleep(0.2)


def stop(
    port: PortOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for running requests, at most; default: as it was started with."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Drain and stop a server started with --detach (or in another terminal)."""
    record = servers.find(port)
    started = time.monotonic()
    killed = not _stopped(record, timeout)
    servers.record_path(record["port"]).unlink(missing_ok=True)
    took = round(time.monotonic() - started, 1)
    if as_json:
        emit_json({"stopped": record["port"], "killed": killed, "took_s": took})
    else:
        how = "killed" if killed else "stopped"
        out().print(f"{how} the server on port {record['port']} after {took:.1f} s")


def _stopped(record: dict[str, Any], timeout: float | None) -> bool:
    """SIGTERM, a second one when the time is up, SIGKILL at last; False when it came to that."""
    if not servers.kill_supervisor(record, signal.SIGTERM):
        return True
    if _gone(record, float(record.get("drain_s", 30.0)) + KILL_S if timeout is None else timeout):
        return True
    servers.kill_supervisor(record, signal.SIGTERM)
    if _gone(record, KILL_S):
        return True
    servers.kill_supervisor(record, signal.SIGKILL)  # its reaper takes the server's group along
    if not _gone(record, KILL_S):
        raise InfrastructureError(f"process {record['pid']} cannot be killed", where=f"port {record['port']}")
    return False


def _gone(record: dict[str, Any], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while servers.supervisor(record) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
