"""`ft serve deploy`: options, planning, printing."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.artifacts import Release, Run
from tunegate.core.console import JsonOption, emit_json, out, say, warn
from tunegate.core.errors import UsageError
from tunegate.core.files import refuse_existing


class To(StrEnum):
    """Where to."""

    KUBERNETES = "kubernetes"
    KUBERAY = "kuberay"
    RAY = "ray"
    COMPOSE = "compose"
    SKY = "sky"


class Autoscale(StrEnum):
    """Who adds copies."""

    HPA = "hpa"
    KEDA = "keda"
    NONE = "none"


def deploy(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A release, a model folder, hub id or builtin:smollm2-135m.")],
    to: Annotated[To, typer.Option(help="Platform.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    gpu: Annotated[str, typer.Option(help="GPU[:COUNT] a copy; without a count the fewest that hold it.")] = "L4",
    name: Annotated[str | None, typer.Option(help="The model's name in requests; else that of its folder.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies at first, and at least.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Most copies.")] = 3,
    queue: Annotated[int, typer.Option(min=1, help="Waiting requests a copy before another is added.")] = 8,
    autoscale: Annotated[Autoscale, typer.Option(help="Kubernetes: what adds copies.")] = Autoscale.HPA,
    prometheus: Annotated[str | None, typer.Option(help="Kubernetes, KEDA: Prometheus' address.")] = None,
    max_model_len: Annotated[int, typer.Option(min=16, help="Tokens a request may take, prompt and answer.")] = 2048,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests computed together.")] = 64,
    image: Annotated[str | None, typer.Option(help="Container image, with its tag or digest.")] = None,
    volume: Annotated[str | None, typer.Option(help="Claim, path or bucket that holds the release.")] = None,
    secret: Annotated[str | None, typer.Option(help="Kubernetes: name of the secret with the key.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Ask vLLM's parser and the platform's own.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the files that serve TARGET on a platform; flags after -- go to vLLM. Nothing is contacted or started."""
    from tunegate.advisor.gpus import parse_hardware
    from tunegate.serve.base_check import refuse_other_bytes
    from tunegate.serve.cli import open_target
    from tunegate.serve.deploy import write
    from tunegate.serve.deploy.plan import DeployOptions, make_plan
    from tunegate.serve.preflight import checked_name

    refuse_existing(folder, force=force)
    card, count = parse_hardware(gpu, where="--gpu")
    if card.is_cpu:
        raise UsageError("these platforms are set up for GPUs", where="--gpu", hint="on a CPU: ft serve TARGET")
    opened = open_target(target)
    refuse_other_bytes(opened)
    options = DeployOptions(
        gpu=card, gpus=count if gpu.partition(":")[2] else None, replicas=replicas, max_replicas=max_replicas, queue=queue,
        max_model_len=max_model_len, max_num_seqs=max_num_seqs, image=image, volume=volume, secret=secret,
        autoscale=autoscale.value, extra=tuple(context.args), name=checked_name(name),
        **({"prometheus": prometheus} if prometheus else {}),
    )  # fmt: skip
    plan = make_plan(opened, options)
    source = opened.as_input("target") if isinstance(opened, Release | Run) else opened.as_input()
    written, checks = write.deploy(plan, to.value, folder, inputs=[source], force=force, check=check)
    for item in checks:
        if item.ok is None:
            warn(f"not checked by {item.by}: {item.note}")
    if not check:
        warn("nothing was checked: --no-check")
    if as_json:
        emit_json({"out": str(folder), "to": to.value, "name": plan.name, "model": plan.model, "gpu": card.name,
                   "gpus": plan.gpus, "memory_gb": plan.memory_gb, "flags": list(plan.flags),
                   "checks": [asdict(item) for item in checks], "digest": written.digest})  # fmt: skip
        return
    say(f"called {plan.name}; {plan.gpus} x {card.name} a copy: {plan.gpu_says}")
    for item in checks:
        if item.ok:
            say(f"checked: {item.of} by {item.by}")
    out().print(f"deployment: {folder} (read {folder}/README.md)", markup=False)
