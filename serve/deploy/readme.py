"""The README beside a deployment's files: what to do, in order, and what is not in the files."""

from tunegate.serve.deploy.kubernetes import ADAPTED, WAITING
from tunegate.serve.deploy.plan import MODELS, DeployPlan


def readme(plan: DeployPlan, to: str, file: str) -> str:
    """Markdown: GPUs and why, the model's way there, the key, the start, the test."""
    steps = {"kubernetes": _kubernetes, "kuberay": _kuberay, "ray": _ray, "compose": _compose, "sky": _sky}[to](
        plan, file
    )
    lines = [f"# {plan.model} on {to}", "", f"{plan.gpus} x {plan.gpu.name} a copy ({plan.gpu_says}), "
             f"{plan.options.replicas} to {plan.options.max_replicas} copies, {plan.memory_gb} GB of memory each.", ""]  # fmt: skip
    lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    lines += [
        "",
        "No file here holds a secret. What was checked, and by what, is in `manifest.json` under `checks`; where that is empty, nothing was.",
        "",
    ]
    return "\n".join(lines)


def _secret(plan: DeployPlan) -> str:
    token = "" if plan.mounted else " --from-file=hf-token=FILE` (the last only for a gated model)"
    return (
        f'The key, without a line end, which would make Prometheus\' header invalid: `printf %s "$(cat FILE)" | kubectl create '
        f"secret generic {plan.secret} --from-file=api-key=/dev/stdin{token or '`'}"
    )


def _nodes(plan: DeployPlan, where: str) -> str:
    return (
        f"The pods take any NVIDIA GPU, and were sized for {plan.gpu.name}. Where the cluster has other kinds, add "
        f"`nodeSelector: {{nvidia.com/gpu.product: NAME}}` to {where} (`kubectl get nodes -L nvidia.com/gpu.product` names "
        "them, where NVIDIA's feature discovery runs)."
    )


def _claim(plan: DeployPlan) -> list[str]:
    if not plan.mounted:
        return [f"The model {plan.source} is fetched from the hub by the server."]
    return [
        f"The release must lie in the root of the volume claim `{plan.volume}` (it is mounted at {MODELS}/{plan.name})."
    ]


def _kubernetes(plan: DeployPlan, file: str) -> list[str]:
    scaled = {
        "hpa": f"The autoscaler asks prometheus-adapter for `{ADAPTED}`: give it a rule that renames `{WAITING}` to that.",
        "keda": f"KEDA must be installed; it asks {plan.options.prometheus} (--prometheus) for `{WAITING}`.",
        "none": "Nothing scales it: --autoscale hpa or keda.",
    }[plan.options.autoscale]
    return [
        *_claim(plan),
        _secret(plan),
        _nodes(plan, "the Deployment's pod"),
        f"`kubectl apply -f {file}`; the ServiceMonitor needs the Prometheus operator.",
        scaled,
        f"`kubectl port-forward service/{plan.name} 8000:80`, then `ft loadtest http://127.0.0.1:8000/v1 --data eval.jsonl --out load/`",
    ]


def _kuberay(plan: DeployPlan, file: str) -> list[str]:
    nodes = _nodes(plan, "the worker group's pod")
    return [*_claim(plan), nodes, f"`kubectl apply -f {file}` where the KubeRay operator runs.", *_no_key()]


def _ray(plan: DeployPlan, file: str) -> list[str]:
    place = [f"The release must lie at {plan.source} on every node."] if plan.mounted else []
    return [*place, f"`serve deploy {file}` on the head of a Ray cluster with ray[llm].", *_no_key()]


def _no_key() -> list[str]:
    return [
        "Ray's own HTTP ingress asks for no key: keep it inside the cluster, behind a gateway that does.",
        "When a copy dies, Ray ends its requests with an error and repeats none: clients must retry (ft eval does).",
        "ray[llm] brings the vLLM it was built with: a flag that is newer than that is refused when the replica starts.",
    ]


def _compose(plan: DeployPlan, file: str) -> list[str]:
    place = (
        [f"The release: `./model` beside this file, or another --volume; it is mounted at {plan.source}."]
        if plan.mounted
        else []
    )
    return [
        *place,
        "The key: `umask 077; openssl rand -hex 24 | tr -d '\\n' > api-key` beside this file.",
        f"`docker compose -f {file} up -d`; it listens on this machine's loopback, port 8000.",
    ]


def _sky(plan: DeployPlan, file: str) -> list[str]:
    place = (
        [f"The release: `./model` beside this file, or a bucket by --volume; it is mounted at {plan.source}."]
        if plan.mounted
        else []
    )
    return [
        *place,
        f"`TUNEGATE_API_KEY=... sky serve up {file} --secret TUNEGATE_API_KEY` in this folder.",
    ]
