"""The folders that stages pass on. `X.open(path)` checks kind, schema version and sizes; `ft verify` re-hashes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from tunegate.core import manifest as manifests
from tunegate.core.errors import UserError
from tunegate.core.files import read_json, sha256_file
from tunegate.core.manifest import Input, Manifest

UNCOVERED = "an artifact of its own, which its digest does not cover"
COLLECTIONS = ("bakeoff", "ladder")  # kinds of folders that are made up of artifacts, each verified by itself


@dataclass(frozen=True)
class Artifact:
    """A finished folder: its path and its manifest.

    passed_on: it is copied, served and published whole: it is not even opened where something lies in it which its digest does
    not cover. holds: the kinds of artifacts that a stage puts into it, later.
    """

    path: Path
    manifest: Manifest
    kind: ClassVar[str] = ""
    made_by: ClassVar[str | None] = None
    passed_on: ClassVar[bool] = False
    holds: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder of this kind.

        Raises UserError when it is another kind, unfinished, a file it lists is missing or has another size, or another
        artifact lies in one that is passed on.
        """
        if path.is_file():
            raise UserError(f"is a file, a {cls.kind} folder is needed here", where=str(path), hint=cls.made_by)
        manifest = manifests.read(path)
        if manifest.kind != cls.kind:
            raise UserError(
                f"is a folder of kind {manifest.kind}, one of kind {cls.kind} is needed here", where=str(path)
            )
        for item in manifest.outputs:
            file = path / str(item["path"])
            if not file.is_file():
                raise UserError(f"{item['path']} is missing", where=str(path), hint=f"ft verify {path}")
            if file.stat().st_size != item["bytes"]:
                raise UserError(
                    f"{item['path']} has {file.stat().st_size} bytes, its manifest says {item['bytes']}",
                    where=str(path),
                    hint=f"ft verify {path}",
                )
        if cls.passed_on and (inner := cls.uncovered(path)):
            raise UserError(f"{inner[0]}/ in it is {UNCOVERED}", where=str(path), hint="move it out of that folder")
        return cls(path, manifest)

    @classmethod
    def uncovered(cls, path: Path) -> list[str]:
        """Artifacts inside a folder of this kind, relative, that may not lie there."""
        return [inner for inner in manifests.inner_artifacts(path) if manifests.kind_at(path / inner) not in cls.holds]

    @property
    def digest(self) -> str:
        """SHA-256 that names the content."""
        return self.manifest.digest

    def as_input(self, role: str) -> Input:
        """This folder, seen as an input of the next stage."""
        return self.manifest.as_input(role, self.path)


class Dataset(Artifact):
    """`train.jsonl`, `eval.jsonl`, `rejected.jsonl`, `profile.json`."""

    kind = "dataset"
    made_by = "ft data prepare FILE --out DIR makes one"

    @property
    def train_path(self) -> Path:
        """Rows to train on."""
        return self.path / "train.jsonl"

    def check_train(self) -> None:
        """Raise UserError when the rows to train on are not those that the manifest names (`open` sees sizes only)."""
        known = next((o["sha256"] for o in self.manifest.outputs if o["path"] == self.train_path.name), None)
        if sha256_file(self.train_path) != known:
            raise UserError(
                "the rows were changed after the dataset was made",
                where=str(self.train_path),
                hint="make it again, or put it back: ft data prepare, ft verify",
            )

    @property
    def eval_path(self) -> Path:
        """Rows held out before any cleaning."""
        return self.path / "eval.jsonl"


class Run(Artifact):
    """An adapter or full weights with tokenizer, `config.yaml` and `metrics.jsonl`.

    `manifest.facts`: `method`, `base` (the model as the user named it), `template_digest`, `mask` (its certificate).
    """

    kind = "run"

    @property
    def method(self) -> str:
        """lora, qlora or full (or a method without weights)."""
        return str(self.manifest.facts["method"])

    @property
    def base(self) -> str:
        """The base model, as it was named."""
        return str(self.manifest.facts["base"])


class Release(Artifact):
    """What vLLM loads, with `release.yaml` and a model card.

    `manifest.facts`: `base`, `quantization` (none, awq, ...), `template_digest`, `bytes`.
    """

    kind = "release"
    passed_on = True

    @property
    def quantization(self) -> str:
        """none, awq, ..."""
        return str(self.manifest.facts["quantization"])


class GgufExport(Artifact):
    """One `.gguf` file for llama.cpp, and an Ollama `Modelfile` beside it.

    `manifest.facts`: `file`, `type`, `template_digest`, `stops`, and the proof that it tokenizes and answers as its release.
    """

    kind = "gguf"
    passed_on = True

    @property
    def model_path(self) -> Path:
        """The model's file."""
        return self.path / str(self.manifest.facts["file"])


class EvalReport(Artifact):
    """`results.jsonl`, `report.json`, `report.html`, `junit.xml`, `summary.md`."""

    kind = "eval_report"
    holds = ("gate_decision",)

    def report(self) -> dict[str, Any]:
        """The parsed `report.json`."""
        document: dict[str, Any] = read_json(self.path / "report.json", strict=True)
        return document

    @property
    def results_path(self) -> Path:
        """One row an item."""
        return self.path / "results.jsonl"


class GateDecision(Artifact):
    """`decision.json`: the policy, both report digests, each condition with its numbers, the verdict."""

    kind = "gate_decision"


class LoadReport(Artifact):
    """`report.json`, `requests.jsonl` (one row a request), `summary.md`, `plot.svg`: what `ft loadtest` measured."""

    kind = "load_report"

    def report(self) -> dict[str, Any]:
        """The parsed `report.json`."""
        document: dict[str, Any] = read_json(self.path / "report.json", strict=True)
        return document


class Deployment(Artifact):
    """Files that serve a release on a platform, a README, and (`manifest.facts`) what they were checked by."""

    kind = "deployment"


KINDS: dict[str, type[Artifact]] = {
    c.kind: c for c in (Dataset, Run, Release, GgufExport, EvalReport, GateDecision, LoadReport, Deployment)
}


def open_any(path: Path) -> Artifact:
    """Open a folder of whatever kind its manifest says."""
    kind = manifests.read(path).kind
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}", where=str(path / manifests.NAME))
    return KINDS[kind].open(path)


class Behind(NamedTuple):
    """A dataset that something was made from. path: where it was then. dataset: it, where it still lies there with the bytes it
    had; else None, and why not: `is not where it was` or `has changed`."""

    path: Path
    dataset: Dataset | None
    why: str = ""


def datasets_behind(inputs: tuple[Input, ...]) -> list[Behind]:
    """The datasets that something was made from, through its lineage, nearest first, each content once; one that only calibrated
    is left out. inputs: of its manifest."""
    found: dict[str, Behind] = {}
    for row in manifests.lineage(inputs):
        digest = str(row["digest"])
        known = digest in found and found[digest].dataset is not None
        if row["kind"] == Dataset.kind and row["role"] != "calibration" and not known:
            found[digest] = _behind(Path(row["path"]), digest)
    return list(found.values())


def _behind(path: Path, digest: str) -> Behind:
    if not manifests.is_finished(path):
        return Behind(path, None, "is not where it was")
    try:
        dataset = Dataset.open(path)
    except UserError:
        return Behind(path, None, "has changed")
    return Behind(path, dataset) if dataset.digest == digest else Behind(path, None, "has changed")
