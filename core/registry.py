"""Names for artifacts: alias -> digest and folder, with the history of every change.

Lives in `$TUNEGATE_HOME`, else `.tunegate/` in the working directory, so that a project's baseline is found by its CI.
What is named is copied in, by digest: overwriting or deleting the original does not change what the name means.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Artifact, EvalReport
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import new_folder, write_json


def home() -> Path:
    """The registry's folder: `$TUNEGATE_HOME`, else `.tunegate` in the working directory."""
    return Path(os.environ.get("TUNEGATE_HOME") or ".tunegate")


def save(name: str, artifact: Artifact) -> Path:
    """Copy `artifact` into the store and let `name` mean it from now on; the history keeps what it meant before.

    Raises UserError for a name that could be a path or an URL.
    """
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise UserError(f"{name!r} is not a usable name", hint="letters, digits, dash, underscore and dot")
    with _locked() as entries:
        stored = home() / "store" / f"{artifact.kind}-{artifact.digest[:16]}"
        if not stored.is_dir():
            with new_folder(stored) as folder:
                shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        history = entries.get(_key(artifact.kind, name), [])
        entry = {"digest": artifact.digest, "path": stored.name, "at": manifests.now(), "from": str(artifact.path)}
        entries[_key(artifact.kind, name)] = [*history, entry]
    return stored


def find_report(name: str) -> EvalReport:
    """The EvalReport that `name` means now. Raises UserError, with the names there are."""
    entries = _read()
    history = entries.get(_key(EvalReport.kind, name))
    if not history:
        known = [key.partition("/")[2] for key in entries if key.startswith(EvalReport.kind + "/")]
        hint = (
            nearest(name, known)
            if known
            else f"save one with: ft eval TARGET --task task.yaml --out DIR --save-as {name}"
        )
        raise UserError(f"no saved baseline, folder or model is called {name!r}", where=str(home()), hint=hint)
    path = home() / "store" / str(history[-1]["path"])
    report = EvalReport.open(path)
    if report.digest != history[-1]["digest"] or manifests.verify(path):
        raise UserError(f"the saved report behind {name!r} was changed", where=str(path), hint=f"ft verify {path}")
    return report


def has_report(name: str) -> bool:
    """Whether `name` is a saved report."""
    return _key(EvalReport.kind, name) in _read()


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name}"


def _read() -> dict[str, list[dict[str, Any]]]:
    path = home() / "registry.json"
    if not path.is_file():
        return {}
    try:
        entries: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))["entries"]
        for history in entries.values():
            history[-1]["path"], history[-1]["digest"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(
            "the registry file is damaged", where=str(path), hint="restore it, or remove it to start anew"
        ) from None
    return entries


@contextmanager
def _locked() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Read, change and write the registry under a lock: of two writers at once neither is lost."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = _read()
        yield entries
        write_json(home() / "registry.json", {"schema_version": 1, "entries": entries})
