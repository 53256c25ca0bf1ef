"""A SkyPilot service of a plan: copies on rented GPUs, replaced when they fail."""

import shlex
from typing import Any

from tunegate.advisor.launch import SKY_NAMES
from tunegate.core.errors import UserError
from tunegate.serve.deploy.plan import PORT, START_S, DeployPlan
from tunegate.serve.vllm_flags import SERVER_MODULE

VLLM = "vllm==0.32.0"


def service(plan: DeployPlan) -> dict[str, Any]:
    """The task for `sky serve up`. Raises UserError for a GPU that SkyPilot does not rent."""
    accelerator = SKY_NAMES.get(plan.gpu.name)
    if accelerator is None:
        raise UserError(
            f"{plan.gpu.name} is not rented through SkyPilot", where="--gpu", hint=f"known: {', '.join(SKY_NAMES)}"
        )
    document: dict[str, Any] = {
        "name": plan.name,
        "resources": {"accelerators": f"{accelerator}:{plan.gpus}", "memory": f"{plan.memory_gb}+", "ports": PORT,
                      "disk_size": 256},
        "file_mounts": {"/opt/tunegate": "./guard"},
        "envs": plan.environment,
        # A value is given when it is started: sky serve up service.yaml --secret TUNEGATE_API_KEY
        "secrets": {"TUNEGATE_API_KEY": None},
        "setup": f"pip install {VLLM}\n",
        "run": f"exec python3 -m {SERVER_MODULE} {shlex.join(plan.server_flags)}\n",
        "service": {
            "readiness_probe": {"path": "/health", "initial_delay_seconds": START_S, "timeout_seconds": 5},
            "replica_policy": _policy(plan),
        },
    }  # fmt: skip
    if plan.mounted:
        document["file_mounts"][plan.source] = plan.options.volume or "./model"
    return document


def _policy(plan: DeployPlan) -> dict[str, Any]:
    """SkyPilot grows by requests a second: a copy that computes `max_num_seqs` together, each for some 10 s."""
    return {
        "min_replicas": plan.options.replicas,
        "max_replicas": plan.options.max_replicas,
        "target_qps_per_replica": max(0.1, plan.options.max_num_seqs / 10.0),
    }
