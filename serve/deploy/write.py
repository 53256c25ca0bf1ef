"""Writes a deployment folder: the file for its platform, what must lie beside it, a README; checked before it is kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Deployment
from tunegate.core.errors import UsageError
from tunegate.core.files import new_folder, write_text
from tunegate.core.manifest import Input
from tunegate.serve.deploy import checks, compose, kubernetes, ray, sky
from tunegate.serve.deploy.checks import Check
from tunegate.serve.deploy.guard import GUARD_FILES, guard_text
from tunegate.serve.deploy.names import check_names
from tunegate.serve.deploy.plan import DeployPlan
from tunegate.serve.deploy.readme import readme


@dataclass(frozen=True, kw_only=True)
class Platform:
    """file: its name. documents: what is in it. check: by the platform's own means. guarded: our guard asks for the key."""

    file: str
    documents: Callable[[DeployPlan], list[dict[str, Any]]]
    check: Callable[[list[dict[str, Any]], Path], list[Check]]
    guard_beside: bool = False
    by_ray: bool = False


class _Readable(yaml.SafeDumper):
    """YAML whose texts of several lines (the guard's modules, Ray's config in a RayService) are blocks, not escapes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _text)


def _check_ray_service(documents: list[dict[str, Any]], file: Path) -> list[Check]:
    """The RayService as Kubernetes sees it, and the text inside as Ray does."""
    inner = file.with_name(".serve_config.yaml")
    inner.write_text(documents[0]["spec"]["serveConfigV2"], encoding="utf-8")
    try:
        return [*checks.check_kubernetes(documents, file), checks.check_ray(inner)]
    finally:
        inner.unlink()


PLATFORMS = {
    "kubernetes": Platform(file="kubernetes.yaml", documents=kubernetes.manifests, check=checks.check_kubernetes),
    "kuberay": Platform(
        file="rayservice.yaml", documents=lambda p: [ray.ray_service(p)], check=_check_ray_service, by_ray=True
    ),
    "ray": Platform(
        file="serve_config.yaml", documents=lambda p: [ray.serve_config(p)], check=lambda _, f: [checks.check_ray(f)], by_ray=True
    ),
    "compose": Platform(
        file="compose.yaml", documents=lambda p: [compose.compose(p)], check=lambda _, f: [checks.check_compose(f)], guard_beside=True
    ),
    "sky": Platform(
        file="service.yaml", documents=lambda p: [sky.service(p)], check=lambda _, f: [checks.check_sky(f)], guard_beside=True
    ),
}  # fmt: skip


def deploy(
    plan: DeployPlan, to: str, out: Path, *, inputs: list[Input], force: bool, check: bool = True
) -> tuple[Deployment, list[Check]]:
    """Write the folder for platform `to` and give what was checked.

    Raises UsageError for kuberay without an image and for a name that the platform cannot have, UserError with the first
    thing that vLLM or the platform refuses; then nothing is written.
    """
    platform = PLATFORMS[to]
    if to == "kuberay" and not plan.options.image:
        raise UsageError(
            "KubeRay needs an image with Ray and vLLM", where="--image",
            hint=f"rayproject/ray-llm with Ray {ray.RAY_VERSION}, by its full tag or digest",
        )  # fmt: skip
    check_names(plan.options, to)
    done: list[Check] = []
    if check or (platform.by_ray and plan.options.extra):  # Ray's file holds values, not words
        read, parsed = checks.read_engine_flags(plan, for_ray=platform.by_ray)
        plan, done = replace(plan, parsed=parsed), [read] if check else []
    with new_folder(out, force=force) as folder:
        file = folder / platform.file
        documents = platform.documents(plan)
        write_text(file, yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=120))
        if platform.guard_beside:
            for name in GUARD_FILES:
                place = folder / "guard" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, guard_text(name))
        if to == "compose":  # Compose reads the secret's file when it checks; the user puts the key there
            (folder / "api-key").touch()
        done += platform.check(documents, file) if check else []
        if to == "compose":
            (folder / "api-key").unlink()
        write_text(folder / "README.md", readme(plan, to, platform.file))
        manifests.write(
            folder,
            Deployment.kind,
            inputs=inputs,
            config={"to": to, "flags": list(plan.flags), "gpu": plan.gpu.name, "gpus": plan.gpus,
                    "replicas": plan.options.replicas, "max_replicas": plan.options.max_replicas},
            facts={"checks": [asdict(c) for c in done], "model": plan.model},
        )  # fmt: skip
    return Deployment.open(out), done
