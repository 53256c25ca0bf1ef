"""The servers started on this machine: one record a port, kept by its supervisor, read by status, logs, stop and top."""

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import write_json
from tunegate.core.manifest import now
from tunegate.core.model_source import cache_folder
from tunegate.serve.middleware import INSTANCE_HEADER
from tunegate.serve.plain_http import call

State = Literal["starting", "serving", "draining", "hung", "restarting", "dead"]
STALE_S = 60.0  # a supervisor that has written nothing for so long is itself stopped or stuck


def folder() -> Path:
    """Where records and logs are."""
    place = cache_folder() / "serve"
    place.mkdir(parents=True, exist_ok=True)
    return place


def log_path(port: int) -> Path:
    """vLLM's log of the server on this port."""
    return folder() / f"{port}.log"


def record_path(port: int) -> Path:
    """The record of the server on this port."""
    return folder() / f"{port}.json"


class Record:
    """A server's record on disk; `update` merges and writes it whole. It never holds a key."""

    def __init__(self, port: int, **about: Any) -> None:
        self.path = record_path(port)
        me = psutil.Process()
        self._content: dict[str, Any] = {
            "pid": me.pid, "pid_started": me.create_time(), "port": port, "started": now(), "restarts": 0,
            "log": str(log_path(port)), **about,
        }  # fmt: skip
        self.update(state="starting", detail=None)

    @property
    def content(self) -> dict[str, Any]:
        """What was written last."""
        return dict(self._content)

    def update(self, **changes: Any) -> None:
        """Change some fields and write."""
        self._content |= {**changes, "checked": time.time()}
        write_json(self.path, self._content)

    def remove(self) -> None:
        """A server that ended as asked leaves no record."""
        self.path.unlink(missing_ok=True)


def records() -> list[dict[str, Any]]:
    """All records, by port; one that is being replaced or is damaged is left out."""
    found = []
    for path in folder().glob("*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if _is_record(record):
            found.append(record)
    return sorted(found, key=lambda r: r["port"])


def _is_record(value: Any) -> bool:
    """Whether it has what the commands ask of a record; psutil would take a missing pid for its own."""
    kinds = {"port": int, "pid": int, "pid_started": int | float, "state": str, "checked": int | float, "log": str}
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def find(port: int | None) -> dict[str, Any]:
    """The record of a port; without one, of the only server there is, or the only one alive. Raises UserError."""
    known = records()
    alive = [r for r in known if supervisor(r) is not None] or known
    if port is None and len(alive) == 1:
        return alive[0]
    match = next((r for r in known if r["port"] == port), None)
    if match is None:
        ports = ", ".join(str(r["port"]) for r in known)
        which = "several servers run" if port is None and known else "no server" + (f" on port {port}" if port else "")
        raise UserError(
            f"{which}: --port {ports}" if port is None and known else f"{which} was started here",
            hint=f"known ports: {ports}" if known else "ft serve TARGET --detach",
        )
    return match


def supervisor(record: dict[str, Any]) -> psutil.Process | None:
    """The process that looks after a server; None when it is gone (its number may have gone to another since)."""
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["pid_started"]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def refuse_kept(port: int) -> None:
    """Raise InfrastructureError for a port whose server somebody looks after, whatever it does just now (it may be importing still and
    not listen): a second supervisor would write the same record and logs."""
    kept = next((r for r in records() if r["port"] == port and supervisor(r) is not None), None)
    if kept is not None:
        raise InfrastructureError(
            f"a server was started on port {port} and is {kept['state']} (process {kept['pid']})",
            where="--port",
            hint=f"ft serve stop --port {port}, or choose another --port",
        )


def health(url: str, instance: str, *, timeout_s: float = 3.0, certificate: Path | None = None) -> tuple[str, str]:
    """(state, in words) as the server itself tells it: serving, draining, hung, failing, or silent when it does not."""
    try:
        reply = call(url.removesuffix("/v1") + "/health", timeout_s=timeout_s, certificate=certificate)
    except OSError as error:
        return "silent", f"/health does not answer: {error}"
    if reply.headers.get(INSTANCE_HEADER) != instance:
        return "silent", "another server answers on this port"
    if reply.status == 200:
        return "serving", ""
    try:
        said = reply.json()["error"]
        return (said["code"] if said["code"] in ("draining", "hung") else "failing"), str(said["message"])
    except (ValueError, KeyError, TypeError):
        return "failing", f"/health says {reply.status}"


def look(record: dict[str, Any]) -> tuple[State, str]:
    """(state, in words) of a server now: its record, whether its supervisor is there, and what /health says."""
    state, detail = record["state"], record.get("detail") or ""
    if supervisor(record) is None:
        return ("dead", detail) if state == "dead" else ("dead", "its supervisor is gone")
    if state in ("starting", "restarting", "draining"):
        return state, detail
    certificate = record.get("certificate")
    told, words = health(record["url"], record["instance"], certificate=Path(certificate) if certificate else None)
    if told in ("serving", "draining", "hung"):
        return told, words  # type: ignore[return-value]
    if told == "silent" and not psutil.pid_exists(record["server_pid"] or -1):
        return "dead", detail or words
    if time.time() - record["checked"] > STALE_S:
        return "hung", f"its supervisor (process {record['pid']}) writes nothing; {words}"
    return "hung", detail or words


def kill_supervisor(record: dict[str, Any], signal_number: int) -> bool:
    """Send a signal to a server's supervisor; False when that is gone."""
    process = supervisor(record)
    if process is None:
        return False
    try:
        os.kill(process.pid, signal_number)
    except ProcessLookupError:
        return False
    return True
