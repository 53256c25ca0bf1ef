"""`promote(Release, GateDecision, alias) -> Promotion`: a name for exactly the bytes that a gate let through.

The chain that is checked: the decision says PASS and is as it was written; it was made on a report, which is as it was
written; the report is of a folder with this digest; the folder still has it.
"""

import getpass
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import UNCOVERED, EvalReport, GateDecision, GgufExport, Release, Run
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import read_json
from tunegate.core.manifest import Input
from tunegate.core.registry import Promotion
from tunegate.serve import base_check

# Facts of a run without weights: what its making chose and counted.
MADE = ("k", "selection", "examples", "passages", "embedder", "instruction_tokens")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A PASS for one release. decision: the parsed decision.json."""

    gate: GateDecision
    report: EvalReport
    decision: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """What the history keeps of it."""
        keys = ("metric", "rule", "slice", "decision", "value", "low", "high", "reason")
        return {
            "gate": self.gate.digest,
            "report": self.report.digest,
            "baseline": (self.decision.get("baseline") or {}).get("digest"),
            "decision": self.decision["decision"],
            "decided": self.decision.get("created"),
            "n": self.report.manifest.facts.get("n"),
            "metrics": self.report.manifest.facts.get("metrics", {}),
            "conditions": [{k: c.get(k) for k in keys} for c in self.decision["conditions"]],
        }


class Registry(Protocol):
    """Where promotions are kept: a folder, or MLflow."""

    def histories(self) -> dict[str, list[Promotion]]:
        """By alias, oldest first."""
        ...

    def add(self, alias: str, promotion: Promotion, artifact: Release | Run, evidence: Evidence) -> Promotion:
        """Keep the bytes and their evidence, and let `alias` mean them; returns the entry as kept."""
        ...

    def roll_back(self, alias: str, to: str | None, by: str, reason: str | None) -> tuple[Promotion, Promotion]:
        """Let `alias` mean what it meant before: (what it meant until now, the new entry)."""
        ...

    def report(self, alias: str, promotion: Promotion) -> EvalReport | None:
        """The report that `promotion`, an entry of `alias`, was made on; None where it is not kept on this machine."""
        ...

    def where(self) -> str:
        """In words."""
        ...


def promote(
    artifact: Release | Run, gate: Path, alias: str, registry: Registry, *, by: str | None, reason: str | None
) -> Promotion:
    """Let `alias` mean `artifact`, on a passing decision for exactly its bytes.

    Raises UserError when the folder, the decision or its report was changed, when another artifact lies in the folder, when
    the base model that it is served with has changed, when the decision is not PASS, or when it is for other bytes.
    """
    manifests.refuse_changed(artifact.path, "the release")
    if inner := manifests.inner_artifacts(artifact.path):  # a run is passed on too, from here on
        raise UserError(
            f"{inner[0]}/ in it is {UNCOVERED}", where=str(artifact.path), hint="move it out of that folder"
        )
    evidence = evidence_for(artifact, gate)
    base_check.refuse_changed(artifact)
    promotion = Promotion(
        action="promote",
        digest=artifact.digest,
        kind=artifact.kind,
        path="",
        at=manifests.now(),
        by=by or who(),
        from_path=str(artifact.path),
        reason=reason,
        evidence=evidence.summary(),
        facts=described(artifact),
    )
    return registry.add(alias, promotion, artifact, evidence)


def evidence_for(artifact: Release | Run, folder: Path) -> Evidence:
    """The decision in `folder` (a GateDecision, or an EvalReport with one inside), proven to be a PASS for `artifact`."""
    gate = _decision(folder)
    manifests.refuse_changed(gate.path, "the gate's decision")
    decision: dict[str, Any] = read_json(gate.path / "decision.json")
    verdict = decision.get("decision")
    if verdict != "PASS" or gate.manifest.facts.get("decision") != "PASS":
        raise UserError(
            f"the gate's decision is {verdict}, not PASS",
            where=str(gate.path),
            hint="only a PASS promotes; see ft gate",
        )
    judged = next((i for i in gate.manifest.inputs if i.role == "candidate" and i.kind == EvalReport.kind), None)
    if judged is None or (decision.get("candidate") or {}).get("digest") != judged.digest:
        raise UserError("the decision does not say which report it was made on", where=str(gate.path))
    system = next((i for i in judged.inputs if i.role == "system"), None)
    if system is None or system.digest != artifact.digest or system.kind != artifact.kind:
        raise UserError(
            f"the decision is for {_words(system)}, not for these bytes ({artifact.kind} {artifact.digest[:12]})",
            where=str(gate.path),
            hint=f"judge this folder: ft eval {artifact.path} --task task.yaml --out report/ --against BASELINE",
        )
    report = _report(judged, gate)
    if report.report()["target"]["digest"] != artifact.digest:
        raise UserError("the report is of another system than the decision says", where=str(report.path))
    return Evidence(gate=gate, report=report, decision=decision)


def standing(history: list[Promotion]) -> list[Promotion]:
    """What the alias means (last) and what a rollback would go back to (before it): promotions that were taken back left out."""
    stack: list[Promotion] = []
    for entry in history:
        while entry.action == "rollback" and stack and stack[-1].digest != entry.digest:
            stack.pop()
        again = bool(stack) and stack[-1].digest == entry.digest
        stack = [*(stack[:-1] if again else stack), entry]
    return stack


def rollback_target(alias: str, history: list[Promotion], to: str | None) -> tuple[Promotion, Promotion]:
    """(what the alias means now, what it goes back to). to: the beginning of a digest from the history; where that was
    promoted more than once, its latest promotion is meant.

    Raises UserError when there is nothing to go back to.
    """
    stack = standing(history)
    if not stack:
        raise UserError(f"nothing was ever promoted as {alias!r}", hint="ft release list")
    now, earlier = stack[-1], stack[:-1]
    if to is not None:
        return now, _named(alias, history, stack, to)
    if not earlier:
        raise UserError(
            f"no promotion of {alias!r} before {now.digest[:12]} stands", hint="ft release promote takes one up again"
        )
    return now, earlier[-1]


def _named(alias: str, history: list[Promotion], stack: list[Promotion], to: str) -> Promotion:
    """The promotion of the digest that begins with `to`. stack: what stands of the history."""
    if not to:
        raise UserError("no digest is given", where="--to", hint="leave --to out to go back by one")
    now, earlier = stack[-1], stack[:-1]
    matching = [entry for entry in earlier if entry.digest.startswith(to)]
    if len(found := {entry.digest for entry in matching}) > 1:
        told = ", ".join(sorted(digest[:12] for digest in found))
        raise UserError(f"{to!r} begins more than one digest", where="--to", hint=f"one of {told}")
    if now.digest in found or (not found and now.digest.startswith(to)):
        before = f"leave --to out to go back to {earlier[-1].digest[:12]}" if earlier else "nothing stood before it"
        raise UserError(f"{alias!r} means {now.digest[:12]} already, since {now.at}", where="--to", hint=before)
    if found:
        return matching[-1]
    if any(entry.digest.startswith(to) for entry in history):
        raise UserError(f"{alias!r} was taken back from {to!r}", where="--to", hint="ft release promote it again")
    known = [entry.digest[:12] for entry in earlier]
    hint = nearest(to, known) if known else "nothing stood before it"
    raise UserError(f"{alias!r} never meant {to!r} before", where="--to", hint=hint)


def taken_up(target: Promotion, by: str, reason: str | None) -> Promotion:
    """The entry of a rollback to `target`: it says which promotion is meant again."""
    promoted = target.promoted or f"{target.at} by {target.by}"
    return replace(target, action="rollback", at=manifests.now(), by=by, reason=reason, promoted=promoted)


def who() -> str:
    """Who promotes: the CI's actor, else user@host."""
    actor = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    if actor:
        return actor
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}@{socket.gethostname()}"


def described(artifact: Release | Run | GgufExport) -> dict[str, Any]:
    """Which data, base, recipe and quantization, from the manifest and from the folders it names where they still are."""
    facts = artifact.manifest.facts
    found: dict[str, Any] = {"name": artifact.path.resolve().name}
    keys = ("base", "base_name", "license", "method", "quantization", "format", "group_size", "calibration_rows", "bytes",
            "template_digest", "probe_digest", *MADE)  # fmt: skip
    found |= {name: facts[name] for name in keys if name in facts}
    if artifact.kind == Run.kind:
        found["run"] = {"path": str(artifact.path), "digest": artifact.digest}
        found["recipe"] = artifact.manifest.config
    for row in manifests.lineage(artifact.manifest.inputs):
        document = _still_there(row)
        if row["kind"] == "run" and "run" not in found:
            found["run"] = {"path": row["path"], "digest": row["digest"]}
            found["recipe"] = document.config if document else {}
        elif row["kind"] == "dataset" and row["role"] == "dataset" and "data" not in found:
            counts = {k: document.facts[k] for k in ("train", "eval") if k in document.facts} if document else {}
            found["data"] = {"path": row["path"], "digest": row["digest"], **counts}
        elif row["role"] == "base_model" and "base_digest" not in found:
            found["base_digest"] = row["digest"]
    return found


def _still_there(row: dict[str, Any]) -> manifests.Manifest | None:
    try:
        manifest = manifests.read(Path(row["path"]))
    except UserError:
        return None
    return manifest if manifest.digest == row["digest"] else None


def _decision(folder: Path) -> GateDecision:
    kind = manifests.read(folder).kind
    if kind == EvalReport.kind and (folder / "gate").is_dir():
        folder = folder / "gate"
    elif kind == EvalReport.kind:
        raise UserError(
            "this report was never decided on", where=str(folder), hint=f"ft gate {folder} --policy gate.yaml"
        )
    return GateDecision.open(folder)


def _report(judged: Input, gate: GateDecision) -> EvalReport:
    """The report that the decision was made on: where it was, or the folder that the decision lies in."""
    for folder in (gate.path.resolve().parent, Path(judged.path)):
        if manifests.digest_at(folder) == judged.digest:
            manifests.refuse_changed(folder, "the report")
            return EvalReport.open(folder)
    raise UserError(
        f"the report that the decision was made on (digest {judged.digest[:12]}) is not where it was, or was changed",
        where=judged.path,
        hint="put it back, or judge again: ft eval ... --against BASELINE",
    )


def _words(system: Input | None) -> str:
    if system is None:
        return "a system it does not name"
    return f"{system.kind} {system.path} ({system.digest[:12]})"
