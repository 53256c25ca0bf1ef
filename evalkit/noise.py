"""`ft eval noise`: the same system asked twice. What changes by itself is the noise that any comparison stands on."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunegate.core.errors import InfrastructureError, UsageError
from tunegate.core.statistics import wilson
from tunegate.evalkit.compare import flips_of
from tunegate.evalkit.evaluate import evaluate
from tunegate.evalkit.runner import RunOptions
from tunegate.evalkit.summary import judged
from tunegate.evalkit.system import classify
from tunegate.evalkit.task import load_task
from tunegate.serve.client import api_key


def measure_noise(
    target: str,
    task_path: Path,
    *,
    limit: int | None,
    options: RunOptions,
    model: str | None,
    key_file: Path | None,
    allow_python: bool,
) -> dict[str, Any]:
    """Ask every item twice, nothing cached: flip rate with interval, items whose outcome or text changed.

    Raises UsageError for recorded outputs and reports, which cannot be asked; InfrastructureError when no item was
    answered twice: nothing was measured then, and a rate of 0 would say that nothing changes.
    """
    system = classify(target, model=model)
    if system.kind in ("recorded", "report"):
        raise UsageError("noise needs something that can be asked twice", where=target)
    task = load_task(task_path, limit=limit, allow_python=allow_python)
    runs: list[Sequence[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for out in (Path(folder) / "run1", Path(folder) / "run2"):
            runs.append(evaluate(system, task, out=out, options=options, key=api_key(key_file)).reading.rows)
            if not judged(runs[-1]):
                raise _unanswered(runs[-1], target)
    first = {row["id"]: row for row in judged(runs[0])}
    both = [row for row in judged(runs[1]) if row["id"] in first]
    if not both:
        raise _unanswered([row for row in runs[1] if row["id"] in first], target)
    flips = flips_of(runs[0], runs[1])
    changed = [row["id"] for row in both if _said(row) != _said(first[row["id"]])]
    return {
        "n": len(both),
        "flips": len(flips),
        "flip_rate": asdict(wilson(len(flips), len(both))),
        "flaky": sorted(flip["id"] for flip in flips),
        "changed_texts": len(changed),
        "changed": sorted(changed),
        "infra_errors": [len(rows) - len(judged(rows)) for rows in runs],
    }


def _said(row: dict[str, Any]) -> list[Any]:
    """What an answer says and calls, without the calls' ids, which are other ones each time."""
    return [
        row["output"],
        [call.get("function", call) if isinstance(call, dict) else call for call in row["tool_calls"]],
    ]


def _unanswered(lost: Sequence[dict[str, Any]], target: str) -> InfrastructureError:
    return InfrastructureError(
        f"no item was answered twice, so nothing was measured; the first error: {lost[0]['error']}", where=target
    )
