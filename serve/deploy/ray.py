"""Ray Serve's config of a plan (`ray.serve.llm`), alone or inside KubeRay's RayService.

Ray starts vLLM's engine in its own replicas and answers HTTP itself: our guard is not in that path, so there is no key on
its routes. It listens inside the cluster; put a gateway that asks for a key before it.
"""

from typing import Any

import yaml

from tunegate.core.errors import UserError
from tunegate.serve.deploy.plan import DeployPlan, engine_kwargs

RAY_VERSION = "2.60.0"
# Ray's names (ray.util.accelerators) of the GPUs of our table: those that a node says of itself. Of A100-40G and A100-80G
# there is none unless somebody labels it.
RAY_NAMES = {
    "T4": "T4", "L4": "L4", "A10G": "A10G", "L40S": "L40S", "A100-40GB": "A100", "A100-80GB": "A100", "A100-PCIe-80GB": "A100",
    "H100-SXM": "H100", "H100-PCIe": "H100", "H200": "H200", "B200": "B200", "MI300X": "AMD-Instinct-MI300X-OAM",
}  # fmt: skip
FRONT_END = ("model", "served_model_name")  # said by model_loading_config


def serve_config(plan: DeployPlan) -> dict[str, Any]:
    """The file `serve deploy` takes. target_ongoing_requests is what a copy computes together, so that none waits.

    Raises UserError for several copies in one replica, and as `engine_kwargs`.
    """
    engine = {k: v for k, v in engine_kwargs(plan).items() if k not in FRONT_END}
    _check_one_copy(plan, engine)
    accelerator = RAY_NAMES.get(plan.gpu.name)
    llm: dict[str, Any] = {
        "model_loading_config": {"model_id": plan.model, "model_source": plan.source},
        **({"accelerator_type": accelerator} if accelerator else {}),
        "engine_kwargs": engine,
        "deployment_config": {
            "max_ongoing_requests": 2 * plan.options.max_num_seqs,
            "graceful_shutdown_timeout_s": plan.guard.drain_s,
            "autoscaling_config": {
                "min_replicas": plan.options.replicas,
                "max_replicas": plan.options.max_replicas,
                "target_ongoing_requests": plan.options.max_num_seqs,
                "downscale_delay_s": 600,
            },
        },
    }
    application = {
        "name": plan.name,
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm]},
    }
    # Inside a cluster's container loopback would reach nobody.
    return {"http_options": {"host": "0.0.0.0", "port": 8000}, "applications": [application]}  # noqa: S104


def _check_one_copy(plan: DeployPlan, engine: dict[str, Any]) -> None:
    """`build_openai_app` reserves the GPUs of tensor and pipeline parallelism alone (ray `vllm_models.py`, num_devices)."""
    copies = engine.get("data_parallel_size", 1)
    if copies > 1:
        raise UserError(
            f"{plan.gpus} x {plan.gpu.name} would be {copies} copies in one replica, and Ray reserves the GPUs of one",
            where="--gpu",
            hint=f"--gpu {plan.gpu.name}:{plan.gpus // copies} --replicas {plan.options.replicas * copies} "
            f"--max-replicas {plan.options.max_replicas * copies}",
        )


def ray_service(plan: DeployPlan) -> dict[str, Any]:
    """KubeRay's RayService: a head without GPUs, and a worker for each copy."""
    group = {
        "groupName": "gpu",
        "replicas": plan.options.replicas,
        "minReplicas": plan.options.replicas,
        "maxReplicas": plan.options.max_replicas,
        "rayStartParams": {},
        "template": {"spec": _pod(plan, "ray-worker", gpus=plan.gpus)},
    }
    head = {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": _pod(plan, "ray-head", gpus=0)}}
    cluster = {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "headGroupSpec": head,
        "workerGroupSpecs": [group],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": plan.name},
        "spec": {"serveConfigV2": yaml.safe_dump(serve_config(plan), sort_keys=False), "rayClusterConfig": cluster},
    }


def _pod(plan: DeployPlan, name: str, *, gpus: int) -> dict[str, Any]:
    memory = plan.memory_gb if gpus else 8
    amounts = {"cpu": str(2 + 2 * gpus), "memory": f"{memory}G", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container: dict[str, Any] = {
        "name": name,
        "image": plan.options.image,
        "resources": {"requests": amounts, "limits": dict(amounts)},
    }
    pod: dict[str, Any] = {"enableServiceLinks": False, "containers": [container]}  # see kubernetes.pod
    if plan.mounted:
        container["volumeMounts"] = [{"name": "model", "mountPath": plan.source, "readOnly": True}]
        claim = {"claimName": plan.volume, "readOnly": True}
        pod["volumes"] = [{"name": "model", "persistentVolumeClaim": claim}]
    else:
        token = {"name": plan.secret, "key": "hf-token", "optional": True}
        container["env"] = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}}]
    return pod
