"""Eval items that the system was trained on: the training data is read from the lineage of the Run or Release.

Rules are those of `ft data leakage`; the metric `leakage` counts the items whose normalised text stands in the training data.
"""

from pathlib import Path
from typing import Any

from tunegate.core.artifacts import datasets_behind
from tunegate.core.console import warn
from tunegate.core.rows import Row, read_rows
from tunegate.evalkit.system import System
from tunegate.evalkit.task import EvalTask

METRICS = {"leakage": "normalized", "leakage_exact": "exact", "leakage_ngram": "ngram", "leakage_near": "near"}
NAMED = 100  # items listed in the report


def leakage_of(system: System, task: EvalTask) -> dict[str, Any] | None:
    """`metrics` {name: items}, `items` by rule, `train` (where from), `partial`; None where no training data is known.

    Training data is that of the lineage's Dataset folders, found by path and digest, and the task's own `train`. partial: a folder
    of the lineage could not be read, so there may be more.
    """
    from tunegate.train.data.leakage import leakage

    of_lineage, partial = _of_lineage(system)
    files = [*of_lineage, *([task.file.train] if task.file.train else [])]
    if not files:
        return None
    train: list[Row] = [row for file in files for row in read_rows(file)]
    found = leakage(train, task.rows)
    items = [{"id": hit.eval_row.id, "rule": hit.rule, "train_id": hit.train_row.id} for hit in found.hits[:NAMED]]
    metrics = {name: int(found.counts[rule]) for name, rule in METRICS.items()}
    if metrics["leakage"]:
        warn(
            f"{metrics['leakage']} of {len(task.rows)} items stand in the training data: {items[0]['id']!r} and others"
        )
    return {
        "metrics": metrics,
        "items": items,
        "train": [str(file) for file in files],
        "train_rows": len(train),
        "partial": partial,
    }


def _of_lineage(system: System) -> tuple[list[Path], bool]:
    """(train.jsonl of each Dataset that the system was made from and that can be read, whether others cannot)."""
    behind = datasets_behind((system.as_input("system"),))
    for path, dataset, why in behind:
        if dataset is None:
            warn(f"the training data {path} {why}, so leakage from it is not measured")
    files = [found.dataset.train_path for found in behind if found.dataset is not None]
    return files, len(files) < len(behind)
