"""Learn how fast this machine is from a log of its own: a factor per class and GPU, drawn towards 1 while points are few.

Stored per machine under the cache folder. A number faster than the hardware's limits is refused.
"""

import json
import math
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunegate.advisor import limits
from tunegate.advisor.errors import CPU_WIDEN, class_errors
from tunegate.advisor.gpus import Gpu
from tunegate.core import manifest
from tunegate.core.artifacts import LoadReport, Run, open_any
from tunegate.core.errors import UserError
from tunegate.core.files import read_json, sha256_file, write_json
from tunegate.core.measurements import LoadRecord, load_records
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import cache_folder
from tunegate.core.rows import read_jsonl

RUN_SPREAD = 0.15  # log units between two logs of one machine: assumed
CALIBRATED_WIDEN = 2.0  # of a machine's interval once it was calibrated: other models differ from the one that ran


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a training run says of itself, None where it does not: the base model's name, method, rows of a micro-batch,
    micro-batches a step, mean tokens of a row, processes that trained together (the speed logged is the sum of theirs).
    recomputes: activations, on a CPU and on a GPU."""

    model: str | None = None
    method: str | None = None
    batch: int | None = None
    accumulation: int = 1
    seq: int | None = None
    processes: int | None = None
    recomputes: tuple[bool, bool] = (False, True)

    def unasked(self, *, on_cpu: bool) -> dict[str, Any]:
        """Fields of a TrainQuestion that the command has no option for."""
        return {"accumulation": self.accumulation, "checkpointing": self.recomputes[not on_cpu]}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a log says: class (train_tps or tpot), the median measured value in that class's unit, its points, and the
    peak memory it recorded (1e9 bytes; None where it did not). load: the load it was measured under, where the log says.
    run: what the Run folder it lies in says of itself. log: its SHA-256."""

    kind: str
    value: float
    points: int
    log: str
    peak_memory_gb: float | None = None
    load: LoadRecord | None = None
    run: RunFacts = RunFacts()


def store() -> Path:
    """Where this machine's factors are kept."""
    return cache_folder() / "calibration.json"


@cache
def _factors() -> dict[str, dict[str, Any]]:
    """What was stored. Raises UserError for a file that somebody else wrote, or half of one: a silent 1 would be a lie."""
    path = store()
    if not path.is_file():
        return {}
    hint = "remove it and run ftadvise calibrate again"
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError("not a calibration: expected an object", where=str(path), hint=hint)
    for place, entry in document.items():
        ratios = entry.get("ratios", []) if isinstance(entry, dict) else None
        logs = entry.get("logs", []) if isinstance(entry, dict) else None
        numbers: list[Any] = [entry.get("factor"), *ratios] if isinstance(ratios, list) else [None]
        if not isinstance(logs, list) or not all(type(n) in (int, float) and 1e-6 < n < 1e6 for n in numbers):
            raise UserError(
                f"not a calibration: {place} needs a positive factor and ratios", where=str(path), hint=hint
            )
    return document


def factor(kind: str, gpu: str) -> float:
    """Measured over predicted of a class on a GPU, as calibrated; 1 when it never was."""
    return float(_factors().get(f"{kind}/{gpu}", {}).get("factor", 1.0))


def is_calibrated(kind: str, gpu: str) -> bool:
    """True when this machine has a log of that class for that GPU."""
    return f"{kind}/{gpu}" in _factors()


def corrected(kind: str, gpu: str) -> str:
    """By how much a class on a GPU is corrected, in words; empty where it never was."""
    own = is_calibrated(kind, gpu)
    return f"corrected by this machine's own log ({factor(kind, gpu):.2f} times)" if own else ""


def widening(kind: str, gpu: Gpu) -> float:
    """How much wider than back-tested an interval on this GPU is: no CPU row is in the back-test, a log narrows it."""
    if not gpu.is_cpu:
        return 1.0
    return CALIBRATED_WIDEN if is_calibrated(kind, gpu.name) else CPU_WIDEN


def prior_points(kind: str, gpu: Gpu) -> float:
    """How many logs the formula's own answer weighs: (spread between logs / spread of the formula's error)^2.

    The normal prior: 0.54 for training speed and 2.0 for time per token on a GPU; on a CPU, whose speed is a rough guess,
    0.008 and 0.03.
    """
    error = class_errors().get(kind)
    spread = (CPU_WIDEN if gpu.is_cpu else 1.0) * (error.half_width if error else math.log(2.0)) / 1.645
    return (RUN_SPREAD / spread) ** 2


def shrink(ratios: list[float], prior: float) -> float:
    """The geometric mean of measured / predicted, drawn towards 1: exp(sum(log r) / (n + prior))."""
    return math.exp(sum(math.log(r) for r in ratios) / (len(ratios) + prior))


def refuse_impossible(measured: float, predicted: float, peak: float, kind: str) -> None:
    """Raise UserError when a measurement beats the roofline (`peak`), or is a thousand times off the prediction."""
    if not (math.isfinite(measured) and measured > 0):
        raise UserError(f"not a measurement: {measured}", where=kind)
    if limits.beats(kind, measured, peak):
        raise UserError(
            f"{measured:.4g} is beyond the hardware's limit of {peak:.4g}",
            where=kind,
            hint="check units, model and --gpu",
        )
    if not 1e-3 < measured / predicted < 1e3:
        raise UserError(
            f"{measured:.4g} is a thousand times off the prediction {predicted:.4g}", where=kind, hint="check units"
        )


def save(kind: str, gpu: Gpu, ratio: float, log: str) -> float:
    """Add the ratio of a log to this machine's store, in place of what the same log (by its SHA-256) said before, and return
    the new factor."""
    path = store()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = dict(_factors())
    place = f"{kind}/{gpu.name}"
    entry = document.get(place, {})
    ratios, logs = [float(r) for r in entry.get("ratios", [])], entry.get("logs", [])
    unnamed = [""] * (len(ratios) - len(logs))  # kept before logs were
    known = [(r, name) for r, name in zip(ratios, unnamed + logs, strict=False) if name != log] + [(ratio, log)]
    value = shrink([r for r, _ in known], prior_points(kind, gpu))
    document[place] = {
        "factor": value,
        "ratios": [r for r, _ in known[-50:]],
        "logs": [name for _, name in known[-50:]],
    }
    write_json(path, document)
    _factors.cache_clear()
    return value


def read_log(path: Path) -> Reading:
    """A Run folder or its `metrics.jsonl` (`tokens_per_s`), a LoadReport folder, or a vLLM benchmark's JSON
    (`median_tpot_ms`). Of a LoadReport the lightest stage is taken: the least of it is queueing.

    Raises UserError when it is none of them.
    """
    if path.is_dir():
        found = open_any(path)
        if isinstance(found, LoadReport):
            load = load_records(found)[0]
            return Reading(kind="tpot", value=load.tpot_ms, points=load.requests, load=load, log=found.digest)
        path = Run.open(path).path / "metrics.jsonl"
    if path.suffix == ".jsonl":
        return _trainer_log(path)
    document = read_json(path)
    if isinstance(document, dict):
        for name in ("median_tpot_ms", "mean_tpot_ms", "tpot_ms"):
            if document.get(name) is not None:
                (value,) = _positive(document, name, str(path))
                completed = _positive(document, "completed", str(path)) or [1.0]
                return Reading(kind="tpot", value=value, points=int(completed[0]), log=sha256_file(path))
    raise UserError(
        "neither a trainer's metrics.jsonl nor a vLLM benchmark result",
        where=str(path),
        hint="needed: tokens_per_s or median_tpot_ms",
    )


def _trainer_log(path: Path) -> Reading:
    run = _run_facts(path.parent)
    if run.method in WEIGHTLESS:
        told = f"this run is {run.method}: it trained nothing, and its speed is that of reading"
        raise UserError(told, where=str(path), hint="calibrate with a run of lora, qlora or full")
    speeds, peaks = [], []
    for number, value in read_jsonl(path):
        if not isinstance(value, dict):
            raise UserError("each line of a trainer's log is an object", where=f"{path}:{number}")
        speeds += _positive(value, "tokens_per_s", f"{path}:{number}")
        peaks += _positive(value, "peak_memory_gb", f"{path}:{number}")
    if not speeds:
        raise UserError("no tokens_per_s in this log", where=str(path))
    value = statistics.median(speeds)
    return Reading(
        kind="train_tps",
        value=value,
        points=len(speeds),
        log=sha256_file(path),
        peak_memory_gb=max(peaks, default=None),
        run=run,
    )


def _run_facts(folder: Path) -> RunFacts:
    """Of a finished Run folder; nothing of any other. Mean tokens of a row: those that were seen over the rows of all steps."""
    if not manifest.is_finished(folder):
        return RunFacts()
    found = manifest.read(folder)
    facts, config = found.facts, found.config
    batch, processes = config.get("per_device_train_batch_size"), facts.get("processes")
    accumulation, recomputes = config.get("gradient_accumulation_steps", 1), config.get("gradient_checkpointing")
    rows = (batch or 0) * accumulation * facts.get("steps", 0) * (processes or 1)
    by_itself = (facts.get("method") == "qlora" and not config.get("fast_cpu", True), True)
    return RunFacts(
        model=facts.get("base"),
        method=facts.get("method"),
        batch=batch,
        accumulation=accumulation,
        seq=max(1, round(facts["tokens"] / rows)) if rows and facts.get("tokens") else None,
        processes=processes,
        recomputes=by_itself if recomputes is None else (recomputes, recomputes),
    )


def _positive(line: dict[str, Any], name: str, where: str) -> list[float]:
    """The value of a key as a list of one, none where the line lacks it (an evaluation's line has no speed)."""
    value = line.get(name)
    if value is None:
        return []
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise UserError(f"{name} must be a positive number, found {json.dumps(value)}", where=where)
    return [float(value)]
