"""A SkyPilot task for what does not fit the user's machine: the GPU, its count, spot or not, and the `ft` command."""

import re
from pathlib import Path
from typing import Any

from tunegate.advisor.recommend import Recommendation
from tunegate.advisor.render import spread_words, train_section
from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import canonical_json, sha256_text, write_text

# SkyPilot's names (its catalog) of the GPUs of our table.
SKY_NAMES = {
    "T4": "T4", "L4": "L4", "A10G": "A10G", "RTX3090": "RTX3090", "RTX4090": "RTX4090", "L40S": "L40S",
    "A100-40GB": "A100", "A100-80GB": "A100-80GB", "H100-SXM": "H100", "H200": "H200", "B200": "B200", "MI300X": "MI300X",
}  # fmt: skip


KEPT = "/kept"  # a bucket mounted there outlives a spot machine
TASK_FILE, NAME = "sky.yaml", "tunegate-train"


def task(answer: Recommendation, recommendation: str, infra: str = "") -> dict[str, Any]:
    """The task as a mapping. infra: where, in SkyPilot's words (`kubernetes`, `aws`, `gcp/us-central1`); empty for the
    cheapest place it finds. Spot machines but on Kubernetes, with the run in a bucket, so that --resume finds it.

    Raises UserError when nothing is trained, or the machine is not one SkyPilot rents.
    """
    training = answer.chosen.training
    if training is None:
        raise UserError(f"{answer.chosen.method} trains nothing: there is nothing to launch", where="--launch")
    name = SKY_NAMES.get(training.gpu.name)
    if name is None:
        raise UserError(
            f"{training.gpu.name} is not rented through SkyPilot", where="--launch", hint="leave out --hardware"
        )
    cluster = infra.partition("/")[0] in ("kubernetes", "k8s")
    resources = {"accelerators": f"{name}:{training.gpus}", "use_spot": not cluster, "disk_size": 256}
    bucket = {"name": f"tunegate-{sha256_text(canonical_json(train_section(answer)[0]))[:12]}", "mode": "MOUNT_CACHED"}
    return {
        "name": NAME,
        "resources": resources if not infra else {"infra": infra, **resources},
        "workdir": ".",
        "file_mounts": {KEPT: bucket},
        "setup": "pip install 'tunegate[gpu]'",
        "run": _command(answer, recommendation),
    }


def _command(answer: Recommendation, recommendation: str) -> str:
    """Train, or go on where a machine was taken away."""
    words = f"ft train data/ --from {recommendation} --out {KEPT}/run{spread_words(answer)}"
    return f'if [ -d {KEPT}/.run.training ]; then set -- --resume; fi\n{words} "$@"\n'


def prepare(answer: Recommendation, kind: str, recommendation: Path | None) -> dict[str, Any]:
    """The task of `--launch KIND`; kind: `sky`, or `sky:INFRA`. Raises UsageError for another launcher, for an INFRA that
    is no word, or without --out; UserError for a file of the user's in the task's place."""
    launcher, colon, infra = kind.partition(":")
    if launcher != "sky":
        raise UsageError(f"unknown launcher {kind!r}", where="--launch", hint="known: sky, sky:INFRA")
    if colon and not re.fullmatch(r"[A-Za-z0-9][\w./-]*", infra):
        raise UsageError(f"not a place: {infra!r}", where="--launch", hint="for example sky:kubernetes or sky:aws")
    if recommendation is None or not recommendation.name:
        raise UsageError("--launch needs --out: the task runs that recommendation", where="--launch")
    path = recommendation.with_name(TASK_FILE)
    if path.is_file() and NAME not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            "is no task of ours, it is not replaced", where=str(path), hint="choose another folder for --out"
        )
    return task(answer, recommendation.name, infra)


def write_task(made: dict[str, Any], recommendation: Path) -> Path:
    """Write the task beside the recommendation."""
    import yaml

    path = recommendation.with_name(TASK_FILE)
    write_text(path, yaml.safe_dump(made, sort_keys=False))
    return path
