"""Learn how fast this machine is from a log of its own: a factor per class and GPU, drawn towards 1 while points are few.

Stored per machine under the cache folder. A number faster than the hardware's limits is refused.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json, write_json
from tunegate.core.model_source import cache_folder
from tunegate.core.rows import read_jsonl

PRIOR_POINTS = 4.0  # as many points as the prior factor of 1 weighs


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a log says: class (train_tps or tpot), the median measured value in that class's unit, and its points."""

    kind: str
    value: float
    points: int


def store() -> Path:
    """Where this machine's factors are kept."""
    return cache_folder() / "calibration.json"


@cache
def _factors() -> dict[str, dict[str, Any]]:
    path = store()
    if not path.is_file():
        return {}
    try:
        document = read_json(path)
    except UserError:
        return {}
    return document if isinstance(document, dict) else {}


def factor(kind: str, gpu: str) -> float:
    """Measured over predicted of a class on a GPU, as calibrated; 1 when it never was."""
    return float(_factors().get(f"{kind}/{gpu}", {}).get("factor", 1.0))


def shrink(ratios: list[float]) -> float:
    """The geometric mean of measured / predicted, drawn towards 1: exp(sum(log r) / (n + PRIOR_POINTS))."""
    return math.exp(sum(math.log(r) for r in ratios) / (len(ratios) + PRIOR_POINTS))


def refuse_impossible(measured: float, predicted: float, peak: float, kind: str) -> None:
    """Raise UserError when a measurement beats the roofline (`peak`), or is a thousand times off the prediction."""
    if not (math.isfinite(measured) and measured > 0):
        raise UserError(f"not a measurement: {measured}", where=kind)
    faster = measured > peak if kind == "train_tps" else measured < peak
    if faster:
        raise UserError(
            f"{measured:.4g} is beyond the hardware's limit of {peak:.4g}",
            where=kind,
            hint="check units, model and --gpu",
        )
    if not 1e-3 < measured / predicted < 1e3:
        raise UserError(
            f"{measured:.4g} is a thousand times off the prediction {predicted:.4g}", where=kind, hint="check units"
        )


def save(kind: str, gpu: str, ratios: list[float]) -> float:
    """Add ratios to this machine's store and return the new factor."""
    path = store()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = dict(_factors())
    known = [float(r) for r in document.get(f"{kind}/{gpu}", {}).get("ratios", [])] + ratios
    value = shrink(known)
    document[f"{kind}/{gpu}"] = {"factor": value, "ratios": known[-50:]}
    write_json(path, document)
    _factors.cache_clear()
    return value


def read_log(path: Path) -> Reading:
    """A trainer's `metrics.jsonl` (`tokens_per_s`) or a vLLM benchmark's JSON (`mean_tpot_ms` or `median_tpot_ms`).

    Raises UserError when it is neither.
    """
    if path.suffix == ".jsonl":
        return _trainer_log(path)
    document = read_json(path)
    if isinstance(document, dict):
        for name in ("median_tpot_ms", "mean_tpot_ms", "tpot_ms"):
            if isinstance(document.get(name), int | float):
                return Reading(
                    kind="tpot", value=float(document[name]), points=max(1, int(document.get("completed", 1)))
                )
    raise UserError(
        "neither a trainer's metrics.jsonl nor a vLLM benchmark result",
        where=str(path),
        hint="needed: tokens_per_s or median_tpot_ms",
    )


def _trainer_log(path: Path) -> Reading:
    speeds = []
    for number, value in read_jsonl(path):
        speed = value.get("tokens_per_s") if isinstance(value, dict) else None
        if speed is None:
            continue
        if not isinstance(speed, int | float) or not math.isfinite(speed) or speed <= 0:
            raise UserError(
                f"tokens_per_s must be a positive number, found {json.dumps(speed)}", where=f"{path}:{number}"
            )
        speeds.append(float(speed))
    if not speeds:
        raise UserError("no tokens_per_s in this log", where=str(path))
    speeds.sort()
    return Reading(kind="train_tps", value=speeds[len(speeds) // 2], points=len(speeds))
