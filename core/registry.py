"""Names for artifacts: alias -> digest and folder, with the history of every change.

Lives in `$TUNEGATE_HOME`, else `.tunegate/` in the working directory, so that a project's baseline is found by its CI.
What is named is copied in, by digest: overwriting or deleting the original does not change what the name means.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Artifact, EvalReport, Release
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import folder_bytes, need_disk, new_folder, read_json, write_json

Entries = dict[str, list[dict[str, Any]]]
SCHEMA_VERSION = 1
# Linux's ioctl that lets a new file share the blocks of another, copy on write (linux/fs.h: FICLONE).
FICLONE = 0x40049409


class _Entry(msgspec.Struct):
    """What readers rely on in every entry of the file; more may stand in it."""

    digest: str
    path: str
    at: str


class _Condition(msgspec.Struct):
    decision: str
    metric: str
    rule: str
    reason: str | None


class _Evidence(msgspec.Struct):
    """What readers rely on in a promotion's evidence; its conditions are left out where a registry has no room for them."""

    report: str
    conditions: list[_Condition] = []


class _Facts(msgspec.Struct):
    data: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One entry of a release's history: since `at` the alias means `digest`. action: promote or rollback.

    path: of the bytes, as the registry keeps them. from_path: where they were. evidence: digests of decision, report and
    baseline, and the conditions. facts: what was made of what (data, base, recipe, quantization), kept so that it can be
    told when the folders are gone. promoted: of a rollback, when and by whom that was promoted which the alias means again.
    """

    action: str
    digest: str
    kind: str
    path: str
    at: str
    by: str
    from_path: str
    reason: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    promoted: str | None = None

    @staticmethod
    def from_json(value: Any) -> "Promotion":
        """Rebuild from a registry's JSON; keys of a later version are left out. Raises msgspec.ValidationError for what no reader
        could use."""
        found = msgspec.convert(value, Promotion)
        msgspec.convert(found.evidence, _Evidence)
        msgspec.convert(found.facts, _Facts)
        return found

    def as_json(self) -> dict[str, Any]:
        """For the registry."""
        return asdict(self)


def home() -> Path:
    """The registry's folder: `$TUNEGATE_HOME`, else `.tunegate` in the working directory."""
    return Path(os.environ.get("TUNEGATE_HOME") or ".tunegate")


def save(name: str, artifact: Artifact) -> Path:
    """Copy `artifact` into the store and let `name` mean it from now on; the history keeps what it meant before.

    Raises UserError for a name that could be a path or an URL.
    """
    stored = store(artifact, checked_name(name))
    append({key(artifact.kind, name): entry_of(artifact, stored)})
    return stored


def check_save(name: str) -> None:
    """Raise, before any work, what `save` would raise at its end: for the name, and for a registry that cannot be written."""
    checked_name(name)
    with locked(home()):
        pass


def checked_name(name: str) -> str:
    """`name`. Raises UserError for one that could be a path or an URL."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise UserError(f"{name!r} is not a usable name", hint="letters, digits, dash, underscore and dot")
    return name


def store(artifact: Artifact, name: str, *, place: Path | None = None) -> Path:
    """The folder in the store that holds `artifact`'s bytes, copied there where it is not yet; name: for messages.

    Raises InfrastructureError when there is no room, UserError when the folder changes under our hands.
    """
    place = place or home()
    stored = stored_at(artifact.kind, artifact.digest, place)
    with _lock(place, "store.lock"):
        if stored.is_dir() and not _damaged(stored, artifact.digest):
            return stored
        need_disk(place, folder_bytes(artifact.path), repr(name), "set TUNEGATE_HOME")
        with new_folder(stored, own=True) as folder:  # a damaged copy makes way
            shutil.copytree(artifact.path, folder, dirs_exist_ok=True, copy_function=_copy)
            if _damaged(folder, artifact.digest):
                raise UserError(
                    "is not as its manifest says", where=str(artifact.path), hint=f"ft verify {artifact.path}"
                )
    return stored


def stored_at(kind: str, digest: str, place: Path) -> Path:
    """Where the store of the registry at `place` keeps what has this digest."""
    return place / "store" / f"{kind}-{digest[:16]}"


def _damaged(folder: Path, digest: str) -> bool:
    """Whether a copy is not, byte for byte, what has this digest."""
    try:
        return manifests.read(folder).digest != digest or bool(manifests.verify(folder))
    except UserError:
        return True


def entry_of(artifact: Artifact, stored: Path) -> dict[str, Any]:
    """What the history says of `artifact`."""
    return {"digest": artifact.digest, "path": stored.name, "at": manifests.now(), "from": str(artifact.path)}


def append(added: dict[str, dict[str, Any]], *, place: Path | None = None) -> None:
    """Add one entry to the history of each key, all of them or none; of two writers at once neither is lost."""
    with locked(place or home()) as entries:
        for name, entry in added.items():
            entries[name] = [*entries.get(name, []), entry]


def find_report(name: str) -> EvalReport:
    """The EvalReport that `name` means now. Raises UserError, with the names there are."""
    entries = read()
    history = entries.get(key(EvalReport.kind, name))
    if not history:
        known = names(entries, EvalReport.kind)
        hint = (
            nearest(name, known)
            if known
            else f"save one with: ft eval TARGET --task task.yaml --out DIR --save-as {name}"
        )
        raise UserError(f"no saved baseline, folder or model is called {name!r}", where=str(home()), hint=hint)
    return kept_report(name, home() / "store" / str(history[-1]["path"]), str(history[-1]["digest"]))


def kept_report(name: str, path: Path, digest: str) -> EvalReport:
    """The EvalReport that a store keeps at `path`; name: what means it, for messages. Raises UserError when it is gone, or
    is not, byte for byte, what has this digest."""
    report = EvalReport.open(path)
    if report.digest != digest or manifests.verify(path):
        raise UserError(f"the saved report behind {name!r} was changed", where=str(path), hint=f"ft verify {path}")
    return report


def has_report(name: str) -> bool:
    """Whether `name` is a saved report."""
    return key(EvalReport.kind, name) in read()


def key(kind: str, name: str) -> str:
    """Where the history of `name` stands among the entries."""
    return f"{kind}/{name}"


def names(entries: Entries, kind: str) -> list[str]:
    """The names that mean something of this kind."""
    return [item.partition("/")[2] for item in entries if item.startswith(kind + "/")]


def read(place: Path | None = None) -> Entries:
    """All histories. Raises UserError when the file is damaged, or a newer Tunegate wrote it."""
    place = place or home()
    path = place / "registry.json"
    if place.exists() and not place.is_dir():
        raise UserError("is a file, the registry is a folder", where=str(place), hint="name another place")
    if not path.is_file():
        return {}
    try:
        document = read_json(path, strict=True)
        version = msgspec.convert(document.get("schema_version", SCHEMA_VERSION), int)
        entries: Entries = document["entries"] if version <= SCHEMA_VERSION else {}
        _check(entries)
    except (UserError, KeyError, TypeError, AttributeError, IndexError, msgspec.ValidationError):
        raise UserError(
            "the registry file is damaged", where=str(path), hint="restore it, or remove it to start anew"
        ) from None
    if version > SCHEMA_VERSION:
        raise UserError(
            f"written by a newer version (registry schema {version}, this one reads {SCHEMA_VERSION})",
            where=str(path),
            hint="upgrade tunegate",
        )
    return entries


def _check(entries: Entries) -> None:
    """Raise for what no reader could use: an empty history, a path that leads out of the store, a value of another type."""
    for name, history in entries.items():
        if any(Path(entry.path).name != entry.path for entry in msgspec.convert(history, list[_Entry])):
            raise TypeError
        history[-1]
        if name.startswith(key(Release.kind, "")):
            for entry in history:
                Promotion.from_json(entry)


@contextmanager
def locked(place: Path) -> Iterator[Entries]:
    """Read, change and write the registry under a lock; an error inside changes nothing."""
    with _lock(place, "lock"):
        entries = read(place)
        yield entries
        write_json(place / "registry.json", {"schema_version": SCHEMA_VERSION, "entries": entries})


@contextmanager
def _lock(place: Path, name: str) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with (place / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(source: str, target: str) -> str:
    """A copy that shares its blocks with the original where the file system can: a release may be tens of gigabytes."""
    with Path(source).open("rb") as read_from, Path(target).open("wb") as write_to:
        try:
            fcntl.ioctl(write_to, FICLONE, read_from.fileno())
        except OSError:
            shutil.copyfileobj(read_from, write_to, 1 << 20)
    return target
