"""A Compose file of a plan: one machine with Docker and NVIDIA's container toolkit."""

from typing import Any

from tunegate.serve.deploy.kubernetes import VLLM_IMAGE
from tunegate.serve.deploy.plan import PORT, START_S, DeployPlan
from tunegate.serve.vllm_flags import SERVER_MODULE

# vLLM's image has no curl.
HEALTH = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/health', timeout=4)"


def compose(plan: DeployPlan) -> dict[str, Any]:
    """The file. The key is a file outside, mounted as a secret; the port is open on this machine's loopback only."""
    gpus = {"driver": "nvidia", "count": plan.gpus, "capabilities": ["gpu"]}
    read_key = f'export TUNEGATE_API_KEY="$$(cat /run/secrets/api-key)"; exec python3 -m {SERVER_MODULE} "$$@"'
    service: dict[str, Any] = {
        "image": plan.options.image or VLLM_IMAGE,
        # Compose secrets are files; the guard takes its key from the environment.
        "entrypoint": ["/bin/sh", "-c", read_key, "vllm"],
        "command": [_literal(flag) for flag in plan.server_flags],
        "environment": {name: _literal(value) for name, value in plan.environment.items()},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "secrets": ["api-key"],
        "shm_size": "2gb",
        "volumes": ["./guard:/opt/tunegate:ro", *_volumes(plan)],
        "healthcheck": {
            "test": ["CMD", "python3", "-c", HEALTH],
            "interval": "10s",
            "timeout": "5s",
            "retries": 6,
            "start_period": f"{START_S}s",
        },
        "stop_grace_period": f"{plan.grace_s}s",
        "restart": "unless-stopped",
        "deploy": {"resources": {"limits": {"memory": f"{plan.memory_gb}g"}, "reservations": {"devices": [gpus]}}},
    }
    document = {
        "name": plan.name,
        "services": {"vllm": service},
        "secrets": {"api-key": {"file": "./api-key"}},
    }
    return document if plan.mounted else {**document, "volumes": {"cache": {}}}


def _literal(text: str) -> str:
    """Text as it is: Compose would put a variable of the host in the place of `$NAME`."""
    return text.replace("$", "$$")


def _volumes(plan: DeployPlan) -> list[str]:
    if plan.mounted:
        return [f"{plan.options.volume or './model'}:{plan.source}:ro"]
    return ["cache:/root/.cache"]
