"""The two registries: a folder (with a lock), and MLflow's model registry (in an environment of its own)."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tunegate.core import manifest as manifests
from tunegate.core import registry as folders
from tunegate.core.artifacts import EvalReport, Release, Run
from tunegate.core.errors import InfrastructureError, UserError, first_line
from tunegate.core.registry import Promotion
from tunegate.train.paths import given_name
from tunegate.train.release import environments, worker
from tunegate.train.release.promote import Evidence, Registry, rollback_target, standing, taken_up

PREFIX = "mlflow:"
MODEL = "tunegate"
KIND = Release.kind


def open_registry(spec: str | None) -> Registry:
    """The registry that `spec` names: None for `$TUNEGATE_REGISTRY` (an empty one is not set) or the default folder,
    `mlflow:URI[#NAME]`, or a folder. Raises UsageError for an empty `spec`."""
    spec = os.environ.get("TUNEGATE_REGISTRY", "").strip() if spec is None else given_name("--registry", spec)
    if not spec:
        return FolderRegistry(folders.home())
    if spec.startswith(PREFIX):
        uri, _, name = spec.removeprefix(PREFIX).partition("#")
        if not uri:
            raise UserError("no address after mlflow:", where="--registry", hint="mlflow:sqlite:///mlflow.db")
        return MlflowRegistry(uri, name or MODEL)
    return FolderRegistry(Path(spec))


@dataclass(frozen=True)
class FolderRegistry:
    """A folder: bytes by digest under store/, `registry.json` with every alias's history, changed under a lock."""

    place: Path

    def where(self) -> str:
        """In words."""
        return str(self.place)

    def histories(self) -> dict[str, list[Promotion]]:
        """By alias, oldest first. Raises UserError when the file is damaged."""
        entries = folders.read(self.place)
        return {name: _history(entries, name, self.place) for name in folders.names(entries, KIND)}

    def add(self, alias: str, promotion: Promotion, artifact: Release | Run, evidence: Evidence) -> Promotion:
        """Copy release, report and decision in, then change the alias; the report becomes what --against ALIAS means."""
        folders.checked_name(alias)
        kept = folders.store(artifact, alias, place=self.place)
        report = folders.store(evidence.report, alias, place=self.place)
        folders.store(evidence.gate, alias, place=self.place)
        added = {
            folders.key(KIND, alias): replace(promotion, path=kept.name).as_json(),
            folders.key(EvalReport.kind, alias): folders.entry_of(evidence.report, report),
        }
        folders.append(added, place=self.place)
        return replace(promotion, path=str(kept))

    def roll_back(self, alias: str, to: str | None, by: str, reason: str | None) -> tuple[Promotion, Promotion]:
        """Go back under the lock, after the bytes to go back to were hashed."""
        with folders.locked(self.place) as entries:
            history = _history(entries, alias, self.place)
            now, target = rollback_target(alias, history, to)
            stored = Path(target.path)
            if not stored.is_dir():
                again = f"ft release promote {target.from_path} --gate DECISION --as {alias}"
                raise UserError(
                    "the bytes to go back to are gone",
                    where=str(stored),
                    hint=f"promote them again: {again}; or go back to others by --to",
                )
            if manifests.read(stored).digest != target.digest or manifests.verify(stored):
                raise UserError("the bytes to go back to were changed", where=str(stored), hint=f"ft verify {stored}")
            entry = taken_up(target, by, reason)
            entries[folders.key(KIND, alias)].append(replace(entry, path=stored.name).as_json())
            report = self._report_at(target)
            saved = folders.entry_of(EvalReport.open(report), report)
            entries.setdefault(folders.key(EvalReport.kind, alias), []).append(saved)
        return now, entry

    def report(self, alias: str, promotion: Promotion) -> EvalReport | None:
        """From the store, where `add` put it. Raises UserError when it is gone or was changed."""
        return folders.kept_report(alias, self._report_at(promotion), str(promotion.evidence["report"]))

    def _report_at(self, promotion: Promotion) -> Path:
        return folders.stored_at(EvalReport.kind, str(promotion.evidence["report"]), self.place)


def _history(entries: folders.Entries, alias: str, place: Path) -> list[Promotion]:
    history = [Promotion.from_json(entry) for entry in entries.get(folders.key(KIND, alias), [])]
    return [replace(entry, path=str(place / "store" / entry.path)) for entry in history]


@dataclass(frozen=True)
class MlflowRegistry:
    """MLflow's model registry: one registered model, a version per promotion with the bytes as its artifacts, aliases as
    MLflow knows them, and each promotion as a tag of the model. uri: as MLflow takes it. name: of the registered model."""

    uri: str
    name: str

    def where(self) -> str:
        """In words, without a password."""
        import re

        return f"MLflow at {re.sub(r'//[^/@]*@', '//***@', self.uri)}, model {self.name!r}"

    def histories(self) -> dict[str, list[Promotion]]:
        """By alias, oldest first. Raises UserError for a tag that is no promotion."""
        found = self._worker({"action": "histories"})["histories"]
        return {alias: [self._told(tag, text) for tag, text in tags] for alias, tags in found.items()}

    def _told(self, tag: str, text: str) -> Promotion:
        try:
            return Promotion.from_json(msgspec.json.decode(text))
        except (msgspec.MsgspecError, RecursionError) as error:
            hint = f"restore or delete the tag {tag} of that model"
            raise UserError(f"a promotion is damaged: {first_line(error)}", where=self.where(), hint=hint) from None

    def add(self, alias: str, promotion: Promotion, artifact: Release | Run, evidence: Evidence) -> Promotion:
        """Log release, report and decision to an MLflow run, make a version of it, set the alias."""
        folders.checked_name(alias)
        parts = {"release": artifact.path, "report": evidence.report.path, "gate": evidence.gate.path}
        job = {"action": "add", "alias": alias, "entry": promotion.as_json()}
        done = self._worker({**job, "folders": {name: str(path.resolve()) for name, path in parts.items()}})
        return Promotion.from_json(done["entry"])

    def roll_back(self, alias: str, to: str | None, by: str, reason: str | None) -> tuple[Promotion, Promotion]:
        """Set the alias to the version it meant before."""
        now, target = rollback_target(alias, self.histories().get(alias, []), to)
        entry = taken_up(target, by, reason)
        done = self._worker({"action": "set", "alias": alias, "entry": entry.as_json()})
        return now, Promotion.from_json(done["entry"])

    def report(self, alias: str, promotion: Promotion) -> EvalReport | None:
        """From the default folder's store, where it was saved there too: MLflow's own copy may lie on another machine."""
        digest = str(promotion.evidence.get("report"))
        path = folders.stored_at(EvalReport.kind, digest, folders.home())
        return folders.kept_report(alias, path, digest) if path.is_dir() else None

    def _worker(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job in MLflow's environment. Raises InfrastructureError with MLflow's last line."""
        python = environments.ensure("mlflow")
        whole = {**job, "uri": self.uri, "name": self.name}
        _, said, answer = worker.answer(python, "mlflow_registry.py", whole, lambda _: None)
        if answer is None:
            lines = [line for line in said if line.strip()] or ["no message"]
            raise InfrastructureError(f"MLflow: {lines[-1].strip()}", where=self.where())
        return answer


def current(registry: Registry, alias: str) -> Promotion:
    """What `alias` means now. Raises UserError, with the aliases there are."""
    histories = registry.histories()
    if not histories.get(alias):
        raise UserError(
            f"nothing was promoted as {alias!r}",
            where=registry.where(),
            hint=f"known: {', '.join(sorted(histories))}"
            if histories
            else "ft release promote RELEASE --gate DECISION",
        )
    return standing(histories[alias])[-1]
