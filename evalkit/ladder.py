"""`ladder(Release, EvalTask)`: the same items at every step from the base model to what is served, pair by pair, so that a
drop has a name: training, merge, quantization, or the GGUF file and its engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GgufExport, Release, Run
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import folder_bytes, write_json, write_text
from tunegate.core.model_source import ModelSource
from tunegate.core.power import detectable_difference
from tunegate.core.statistics import holm
from tunegate.evalkit.compare import Reading, describe, flips_of, lock, pair
from tunegate.evalkit.evaluate import canonical_task, evaluate, identity_of, open_reading, planned
from tunegate.evalkit.folders import write_report
from tunegate.evalkit.runner import RunOptions
from tunegate.evalkit.summary import answered
from tunegate.evalkit.system import System, classify
from tunegate.evalkit.task import EvalTask
from tunegate.evalkit.verdict import finish, unanswered
from tunegate.serve import base_check

KIND = "ladder"
# What changes between a step and the one it is compared with.
CAUSES = {
    "adapter": "training",
    "trained": "training",
    "merged": "merge",
    "quantized": "quantization",
    "gguf": "GGUF and llama.cpp",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. name: base, adapter, trained (full tuning), merged, quantized, gguf. before: the step it is compared with."""

    name: str
    system: System
    before: str | None = None
    gguf: GgufExport | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The result, as ladder.json has it, and where its page is."""

    document: dict[str, Any]
    folder: Path


def steps_of(release: Release, gguf: GgufExport | None) -> list[Step]:
    """The steps behind a release, found through its lineage, bottom up; what is gone or changed is said and left out.

    Raises UserError when nothing but the release itself is left, or the GGUF is of another release.
    """
    found: list[Step] = []
    ancestors = manifests.lineage(release.manifest.inputs)
    base = next((row for row in ancestors if row["role"] == "base_model"), None)
    if base is not None and (system := _base(base)) is not None:
        found.append(Step(name="base", system=system))
    run = _folder(next((row for row in ancestors if row["kind"] == Run.kind), None), "the run")
    if run is not None:
        name = "trained" if isinstance(run.source, Run) and run.source.method == "full" else "adapter"
        found.append(Step(name=name, system=run, before=_last(found)))
    itself = classify(str(release.path))
    quantized = release.quantization != "none"
    merged = (
        _folder(next((r for r in ancestors if r["kind"] == Release.kind), None), "the merged release")
        if quantized
        else itself
    )
    if merged is not None:
        found.append(Step(name="merged", system=merged, before=_last(found)))
    if quantized:
        found.append(Step(name="quantized", system=itself, before=_last(found)))
    if gguf is not None:
        manifests.refuse_changed(gguf.path, "the export")
        made_from = next((i.digest for i in gguf.manifest.inputs if i.kind == Release.kind), None)
        bf16 = next((s for s in found if s.name == "merged"), None)
        if bf16 is None or made_from != bf16.system.digest:
            raise UserError("the GGUF was not made from this release's merged weights", where=str(gguf.path))
        system = System(spec=str(gguf.path), kind="endpoint", digest=gguf.digest, size_bytes=folder_bytes(gguf.path))
        found.append(Step(name="gguf", system=system, before="merged", gguf=gguf))
    if len(found) < 2:
        raise UserError(
            "no step before this release is left to compare with",
            where=str(release.path),
            hint="keep the run and the merged release where they were made",
        )
    return found


def _base(row: dict[str, Any]) -> System | None:
    """The base model as it was trained on; None, and it is said, where it has changed or that cannot be told."""
    system = classify(str(row["path"]))
    if system.digest == row["digest"]:
        return system
    source = system.source
    then = base_check.as_trained_on(source, row["digest"]) if isinstance(source, ModelSource) else None
    if then is None:
        say(f"left out: the base model {row['path']} is not the one that was trained on, or nothing here tells")
        return None
    return system if then == source else replace(system, source=then, digest=then.as_input().digest)


def _last(steps: list[Step]) -> str | None:
    return steps[-1].name if steps else None


def _folder(row: dict[str, Any] | None, what: str) -> System | None:
    if row is None:
        return None
    path = Path(row["path"])
    with suppress(UserError):  # a file of it was changed
        if manifests.digest_at(path) == row["digest"]:
            return classify(str(path))
    say(f"left out: {what} {path} ({row['digest'][:12]}) is not where it was, or has changed")
    return None


def climb(steps: list[Step], task: EvalTask, out: Path, *, options: RunOptions) -> list[tuple[Step, Reading]]:
    """Judge every step into a report folder of its own under `out`; a step that stands there already is taken as it is."""
    readings = []
    for number, step in enumerate(steps, 1):
        place = out / f"{number}-{step.name}"
        reading = _standing(place, step, task)
        if reading is None:
            say(f"step {number} of {len(steps)}: {step.name} ({step.system.spec})")
            reading = _judge(step, task, place, options)
        else:
            say(f"step {number} of {len(steps)}: {step.name} stands already")
        readings.append((step, reading))
    return readings


def _standing(place: Path, step: Step, task: EvalTask) -> Reading | None:
    """The reading that an earlier call left; None where there is none, or it is of other bytes or another task."""
    if not manifests.is_finished(place):
        return None
    report = EvalReport.open(place)
    document = report.report()
    same = document["target"]["digest"] == step.system.digest and identity_of(document) == identity_of(
        planned(step.system, task).report
    )
    known = same and report.manifest.config.get("task") == canonical_task(task)
    if known and not answered(document):
        return None
    if not known or manifests.verify(place):
        say(f"{place} is of another system, task or data: judged again")
        return None
    return open_reading(report, name=step.name)


def _judge(step: Step, task: EvalTask, place: Path, options: RunOptions) -> Reading:
    place.parent.mkdir(parents=True, exist_ok=True)
    with _system(step) as system:
        evaluation = evaluate(system, task, out=place, options=options, name=step.name)
    report = write_report(place, evaluation, force=True)
    finish(evaluation)
    if why := unanswered(evaluation):
        raise InfrastructureError(f"step {step.name}: {why}", where=str(place))
    return open_reading(report, name=step.name)


@contextmanager
def _system(step: Step) -> Iterator[System]:
    """The step as something to ask: a GGUF behind llama.cpp's server, the others as they are (vLLM)."""
    if step.gguf is None:
        yield step.system
        return
    from tunegate.train.release.llama_cpp import serving

    with serving(step.gguf) as url:
        yield replace(step.system, spec=url)


def result_of(readings: list[tuple[Step, Reading]], task: EvalTask, *, alpha: float = 0.05) -> dict[str, Any]:
    """ladder.json: every step's score, every change with interval, McNemar and Holm, and what the largest shown drop is due to."""
    by_name = {step.name: reading for step, reading in readings}
    metric = task.primary
    changes = [_change(step, by_name[step.before], reading, metric, alpha) for step, reading in readings if step.before]
    for change, adjusted in zip(changes, holm([float(c["mcnemar_p"]) for c in changes]), strict=True):
        change["p_holm"] = adjusted
        change["verdict"] = _verdict(change, alpha)
    drops = sorted((c for c in changes if c["verdict"] == "drop"), key=lambda c: float(c["difference"]))
    first, last = readings[0], readings[-1]
    served = next((s for s in reversed(readings) if s[0].name != "gguf"), last)
    return {
        "schema_version": 1,
        "created": manifests.now(),
        "task": {"name": task.file.name, "digest": task.digest, "metric": metric, "n": len(task.rows)},
        "alpha": alpha,
        "steps": [
            {
                "name": step.name,
                "target": step.system.spec,
                "digest": step.system.digest,
                "report": reading.path,
                "size_bytes": step.system.size_bytes,
                "prompt_ids_digest": reading.report.get("prompt_ids_digest"),
                "outcomes": reading.report["outcomes"],
                **reading.report["metrics"][metric],
            }
            for step, reading in readings
        ],
        "changes": changes,
        "total": _change(served[0], first[1], served[1], metric, alpha) | {"from": first[0].name},
        "largest_drop": drops[0]["cause"] if drops else None,
    }


def _change(step: Step, before: Reading, after: Reading, metric: str, alpha: float) -> dict[str, Any]:
    differing, unknown = lock(before, after, allowed=("template",))
    paired = pair(before.rows, after.rows, metric)
    flips = flips_of(before.rows, after.rows)
    return {
        "from": step.before,
        "to": step.name,
        "cause": CAUSES.get(step.name, step.name),
        **describe(paired, alpha=alpha, margin=0.02),
        "detectable": detectable_difference(max(1, round(paired.n / paired.effect)), paired.spread, alpha=alpha)
        if paired.n
        else None,
        "same_prompt_tokens": None if "template" in unknown else "template" not in differing,
        "flips": [f for f in flips if f["direction"] == "broken"] + [f for f in flips if f["direction"] == "fixed"],
    }


def _verdict(change: dict[str, Any], alpha: float) -> str:
    """drop or gain where McNemar's test shows one, corrected for the number of steps (Holm); else none shown."""
    if change["p_holm"] >= 2 * alpha or change["difference"] == 0:
        return "none shown"
    return "drop" if change["difference"] < 0 else "gain"


def write(out: Path, document: dict[str, Any], steps: list[Step], task: EvalTask) -> Ladder:
    """Write ladder.json and the page into `out`, and last its manifest; the steps' reports in it verify by themselves."""
    from tunegate.evalkit.render import ladder_page

    write_json(out / "ladder.json", document)
    write_text(out / "ladder.html", ladder_page.render(document))
    inputs = [(step.gguf or step.system).as_input(step.name) for step in steps]
    facts = {
        "largest_drop": document["largest_drop"],
        "total": document["total"]["difference"],
        "n": document["task"]["n"],
    }
    manifests.write(out, KIND, inputs=inputs, config={"task": canonical_task(task)}, facts=facts)
    return Ladder(document=document, folder=out)


def ladder(release: Release, gguf: GgufExport | None, task: EvalTask, out: Path, *, options: RunOptions) -> Ladder:
    """All of it. Raises UserError for what is wrong with steps or task, InfrastructureError when an engine does not start."""
    steps = steps_of(release, gguf)
    readings = climb(steps, task, out, options=options)
    return write(out, result_of(readings, task), steps, task)
