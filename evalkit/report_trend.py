"""The reports of a folder as a trend: each metric with its interval over time, per task, with the gate's decisions."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GateDecision
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, read_json
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.evaluate import open_reading
from tunegate.evalkit.report_shape import check_report

# What must be the same for two points of a line to be comparable. The system (its prompt included) may be another.
FIXED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "data": lambda report: (report.get("data") or {}).get("items_digest"),
    "scorer": lambda report: [report.get("scorer_version"), (report.get("task") or {}).get("digest")],
    "generation": lambda report: report.get("generation"),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One report of the folder. key: names it in addresses. decision: its own, else the newest one that names it."""

    key: str
    folder: Path
    report: dict[str, Any]
    digest: str
    decision: str | None
    also_at: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a folder holds. entries: oldest first. skipped: folders that say they are reports and cannot be read."""

    root: Path
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[Path, str], ...]


def collect(root: Path) -> Collection:
    """Find every EvalReport under `root`, itself included; equal content is listed once.

    Raises UserError when `root` is no folder.
    """
    if not root.is_dir():
        raise UserError("no such folder", where=str(root), hint="name a folder that holds EvalReport folders")
    found: dict[str, Entry] = {}
    verdicts: dict[str, tuple[str, str]] = {}
    skipped: list[tuple[Path, str]] = []
    for folder in _artifacts(root):
        try:
            kind = manifests.read(folder).kind
            if kind == GateDecision.kind:
                _note(verdicts, read_json(folder / "decision.json"))
            elif kind == EvalReport.kind:
                entry = _entry(folder)
                known = found.get(entry.key)
                found[entry.key] = entry if known is None else replace(known, also_at=(*known.also_at, folder))
        except UserError as error:
            skipped.append((folder, error.message))
    entries = [_decided(entry, verdicts) for entry in found.values()]
    entries.sort(key=lambda entry: (str(entry.report.get("created")), entry.key))
    return Collection(root=root, entries=tuple(entries), skipped=tuple(skipped))


def _artifacts(root: Path) -> Iterator[Path]:
    """Folders with a manifest, in the order of their paths; no link is followed, so nothing outside `root` is read."""
    for path, names, files in os.walk(root):
        names.sort()
        if manifests.NAME in files:
            yield Path(path)


def _entry(folder: Path) -> Entry:
    opened = EvalReport.open(folder)
    report: Any = opened.report()
    check_report(report, str(folder))
    decision = (report["decision"] or {}).get("decision")
    return Entry(key=opened.digest[:16], folder=folder, report=report, digest=opened.digest, decision=decision)


def _note(verdicts: dict[str, tuple[str, str]], decision: Any) -> None:
    """Keep the newest decision on each candidate."""
    if not isinstance(decision, dict) or not isinstance(decision.get("candidate") or {}, dict):
        raise UserError("damaged decision.json")
    digest = str((decision.get("candidate") or {}).get("digest"))
    dated = (str(decision.get("created")), str(decision.get("decision")))
    verdicts[digest] = max(dated, verdicts.get(digest, dated))


def _decided(entry: Entry, verdicts: dict[str, tuple[str, str]]) -> Entry:
    if entry.decision is None and entry.digest in verdicts:
        return replace(entry, decision=verdicts[entry.digest][1])
    return entry


def read(folder: Path) -> Reading:
    """A whole report, rows included. Raises UserError when it was damaged or removed since."""
    return open_reading(EvalReport.open(folder), name=folder.name)


def trend(found: Collection) -> dict[str, Any]:
    """What `ft report serve --json` prints: `reports`, `tasks` with the points of each metric, `skipped`."""
    tasks: dict[str, list[Entry]] = {}
    for entry in found.entries:
        tasks.setdefault(task_name(entry.report), []).append(entry)
    return {
        "folder": str(found.root),
        "reports": [_summary(entry) for entry in found.entries],
        "tasks": [_task(name, entries) for name, entries in tasks.items()],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
    }


def task_name(report: dict[str, Any]) -> str:
    """The name of the task that a report is about."""
    return str((report.get("task") or {}).get("name") or "unnamed")


def _summary(entry: Entry) -> dict[str, Any]:
    report, target = entry.report, entry.report.get("target") or {}
    comparison = report.get("comparison") or {}
    return {
        "key": entry.key,
        "path": str(entry.folder),
        "also_at": [str(path) for path in entry.also_at],
        "digest": entry.digest,
        "name": report.get("name"),
        "created": report.get("created"),
        "task": task_name(report),
        "primary": (report.get("task") or {}).get("primary"),
        "target": target.get("spec"),
        "target_digest": target.get("digest"),
        "n": report.get("n"),
        "outcomes": report.get("outcomes"),
        "decision": entry.decision,
        "against": (comparison.get("baseline") or {}).get("name"),
    }


def _task(name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    metrics: dict[str, list[dict[str, Any]]] = {}
    last: dict[str, Entry] = {}
    for entry in entries:
        figures = {**entry.report["metrics"], **(entry.report.get("operations") or {})}
        for metric, figure in figures.items():
            if not isinstance(figure, dict) or figure.get("value") is None:
                continue
            point = {key: figure.get(key) for key in ("value", "low", "high")}
            changed = _changed(last[metric], entry) if metric in last else []
            metrics.setdefault(metric, []).append(
                {
                    "report": entry.key,
                    "created": entry.report.get("created"),
                    **point,
                    "decision": entry.decision,
                    "changed": changed,
                }
            )
            last[metric] = entry
    primary = (entries[-1].report.get("task") or {}).get("primary")
    return {"name": name, "primary": primary, "reports": len(entries), "metrics": metrics}


def _changed(before: Entry, now: Entry) -> list[str]:
    """What of the task differs between two neighbours, so that their difference is not the system's alone."""
    return [name for name, of in FIXED.items() if canonical_json(of(before.report)) != canonical_json(of(now.report))]
