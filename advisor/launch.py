"""A SkyPilot task for what does not fit the user's machine: the GPU, its count, spot or not, and the `ft` command."""

from pathlib import Path
from typing import Any

from tunegate.advisor.recommend import Recommendation
from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import write_text

# SkyPilot's names (its catalog) of the GPUs of our table.
SKY_NAMES = {
    "T4": "T4", "L4": "L4", "A10G": "A10G", "RTX3090": "RTX3090", "RTX4090": "RTX4090", "L40S": "L40S",
    "A100-40GB": "A100", "A100-80GB": "A100-80GB", "H100-SXM": "H100", "H200": "H200", "B200": "B200", "MI300X": "MI300X",
}  # fmt: skip


def task(answer: Recommendation, recommendation: str) -> dict[str, Any]:
    """The task as a mapping. Raises UserError when nothing is trained, or the machine is not one SkyPilot rents."""
    training = answer.chosen.training
    if training is None:
        raise UserError(f"{answer.chosen.method} trains nothing: there is nothing to launch", where="--launch")
    name = SKY_NAMES.get(training.gpu.name)
    if name is None:
        raise UserError(
            f"{training.gpu.name} is not rented through SkyPilot", where="--launch", hint="leave out --hardware"
        )
    return {
        "name": "tunegate-train",
        "resources": {"accelerators": f"{name}:{training.gpus}", "use_spot": True, "disk_size": 256},
        "workdir": ".",
        "setup": "pip install 'tunegate[gpu]'",
        "run": f"ft train data/ --from {recommendation} --out run/ --resume",
    }


def write_task(answer: Recommendation, kind: str, recommendation: Path | None) -> Path:
    """Write `sky.yaml` beside the recommendation. Raises UsageError for another launcher or without --out."""
    import yaml

    if kind != "sky":
        raise UsageError(f"unknown launcher {kind!r}", where="--launch", hint="known: sky")
    if recommendation is None:
        raise UsageError("--launch needs --out: the task runs that recommendation", where="--launch")
    path = recommendation.with_name("sky.yaml")
    write_text(path, yaml.safe_dump(task(answer, recommendation.name), sort_keys=False))
    return path
