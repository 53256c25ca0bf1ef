"""What a deployment is made of, before any format: the model, vLLM's flags, the GPUs it needs, how it grows and stops."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from tunegate.advisor.gpus import Gpu
from tunegate.core.artifacts import Release, Run
from tunegate.core.console import warn
from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import sha256_text
from tunegate.core.model_source import ModelSource
from tunegate.serve import preflight
from tunegate.serve.deploy.passed_on import check_passed_on
from tunegate.serve.machine_plan import GpuPlan, Need, plan_gpus
from tunegate.serve.middleware import EXIT_S, KEY_REQUIRED_VARIABLE, GuardSettings
from tunegate.serve.prompting.prompting import has_prompting
from tunegate.serve.served_model import Target, describe, has_adapter, name_of, weights_bytes
from tunegate.serve.tool_calls import tool_flags
from tunegate.serve.vllm_flags import MIDDLEWARE, length_of, need_of

MODELS = "/models"  # where a release is in a container
PORT = 8000
PARALLEL = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp"}
# Of the flags that we write: all others of them are texts and switches.
TYPES = {"max_model_len": int, "max_num_seqs": int, "tensor_parallel_size": int, "pipeline_parallel_size": int,
         "data_parallel_size": int, "gpu_memory_utilization": float}  # fmt: skip
COUNTS = (1, 2, 4, 8)  # GPUs a copy may take on one node
PRE_STOP_S = 15  # a load balancer takes so long to notice that an instance leaves
HOST_GB = 6.0  # memory beside the weights: vLLM's processes and pinned buffers (measured on the CPU: 4 GB)
LABEL = 47  # characters of a name: KubeRay takes no more for a RayService, whose parts are called after it
START_S = 900  # cold start with download, load and compilation: the start-up probe waits so long


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """replicas, max_replicas: copies, and the most there may be. queue: waiting requests a copy before another is added.

    volume: name of the claim or volume that holds the release. secret: name of the secret with the key `api-key`.
    prometheus: where the autoscaler asks. name: the model's in requests; None: its folder's. extra: vLLM flags passed on.
    """

    gpu: Gpu
    gpus: int | None = None
    name: str | None = None
    replicas: int = 1
    max_replicas: int = 3
    queue: int = 8
    max_model_len: int = 2048
    max_num_seqs: int = 64
    image: str | None = None
    volume: str | None = None
    secret: str | None = None
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    autoscale: str = "hpa"
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeployPlan:
    """A deployment. name: a DNS label. model: as requests name it. source: path in the container, or a hub id.

    flags: vLLM's, without host, port and middleware. memory_gb: of the host, 1e9 bytes. gpu_says: why so many GPUs.
    parsed: the flags as vLLM's own parser reads them, where it was asked.
    """

    name: str
    model: str
    source: str
    flags: tuple[str, ...]
    gpu: Gpu
    gpus: int
    gpu_says: str
    memory_gb: int
    options: DeployOptions
    guard: GuardSettings = field(default_factory=GuardSettings)
    parsed: dict[str, Any] | None = None

    @property
    def mounted(self) -> bool:
        """Whether the model is files that must be brought to the cluster; a hub id is fetched by vLLM."""
        return self.source.startswith(f"{MODELS}/")

    @property
    def secret(self) -> str:
        """The secret that holds the API key."""
        return self.options.secret or f"{self.name}-api-key"

    @property
    def volume(self) -> str:
        """The claim or volume that holds the release."""
        return self.options.volume or f"{self.name}-model"

    @property
    def server_flags(self) -> list[str]:
        """Everything after vLLM's module. All interfaces: in a container loopback would reach nobody, and the guard asks
        for the key on every route."""
        return [*self.flags, "--middleware", MIDDLEWARE, "--host", "0.0.0.0", "--port", str(PORT)]  # noqa: S104

    @property
    def environment(self) -> dict[str, str]:
        """The guard's settings and switches; never a key."""
        return {
            "PYTHONPATH": "/opt/tunegate",
            "TUNEGATE_PROBE_MODEL": self.model,
            KEY_REQUIRED_VARIABLE: "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **self.guard.as_environment(),
        }

    @property
    def grace_s(self) -> int:
        """Seconds from the signal to the kill: the pause before it, the drain, and the engine's end."""
        return math.ceil(PRE_STOP_S + self.guard.drain_s + EXIT_S + 5)


def make_plan(target: Target, options: DeployOptions) -> DeployPlan:
    """A plan for `target`. Raises UserError for what cannot be deployed as it is, or does not fit 8 of the GPU."""
    if has_adapter(target) or isinstance(target, Run) or (isinstance(target, Release) and has_prompting(target.path)):
        raise UserError(
            f"{describe(target)} is not a model by itself",
            hint="merge it first (ft merge RUN --out RELEASE), then deploy the release",
        )
    if options.max_replicas < options.replicas:
        raise UsageError("--max-replicas is below --replicas", where="--max-replicas")
    model = options.name or name_of(target)
    name = dns_label(model)
    hub = isinstance(target, ModelSource) and target.kind == "hub"
    source = str(target.location) if isinstance(target, ModelSource) and hub else f"{MODELS}/{name}"
    check_passed_on(options.extra, None if hub else source)
    length = length_of(target, options.max_model_len, options.extra)
    need = need_of(target, length, options.max_num_seqs)
    sized = _sized(need, options)
    _check_sizes(sized, options)
    flags = ["--model", source, "--served-model-name", model, "--max-model-len", str(length),
             "--max-num-seqs", str(options.max_num_seqs), "--generation-config", "vllm", "--enable-prefix-caching"]  # fmt: skip
    if isinstance(target, ModelSource) and target.revision:
        flags += ["--revision", target.revision]
    return DeployPlan(
        name=name,
        model=model,
        source=source,
        flags=(*flags, *tool_flags(target, options.extra), *sized.flags(), *options.extra),
        gpu=options.gpu,
        gpus=sized.tensor * sized.pipeline * sized.data,
        gpu_says=sized.says,
        memory_gb=_host_gb(target, need),
        options=options,
    )


def _host_gb(target: Target, need: Need | None) -> int:
    """Memory of the host a copy, 1e9 bytes: weights and a fifth, and HOST_GB. Warns where the weights are not known."""
    weights_gb = need.weights_gb if need else weights_bytes(target) / 1e9
    if not weights_gb:
        warn(
            f"the model's size is not known here: the files give a copy {HOST_GB:.0f} GB of memory; add 1.2 times its weights to that"
        )
    return math.ceil(1.2 * weights_gb + HOST_GB)


def _sized(need: Need | None, options: DeployOptions) -> GpuPlan:
    """How a copy lies on GPUs, from the advisor's memory need; the fewest that hold it."""
    if need is None:
        count = options.gpus or 1
        return GpuPlan(
            tensor=count, pipeline=1, data=1, share=0.9, says=f"{count} GPU: the model's size is not known here"
        )
    last: UserError | None = None
    for count in (options.gpus,) if options.gpus else COUNTS:
        try:
            return plan_gpus(need, options.gpu.memory_gb, count)
        except UserError as error:
            last = error
    assert last is not None
    raise last


def _check_sizes(sized: GpuPlan, options: DeployOptions) -> None:
    """The user's own parallel sizes, with the planned ones, take the GPUs that the files reserve. Raises UsageError."""
    asked, planned = 1, sized.tensor * sized.pipeline * sized.data
    for name, short in PARALLEL.items():
        own = preflight.flag(options.extra, name) or preflight.flag(options.extra, short)
        value = own or preflight.flag(tuple(sized.flags()), name) or "1"
        asked *= int(value) if value.isdecimal() else 1  # vLLM's parser refuses what is no number
    if asked != planned:
        raise UsageError(
            f"the parallel sizes take {asked} GPUs a copy, the files would reserve {planned}",
            where="--",
            hint=f"--gpu {options.gpu.name}:{asked}, and every size that is not 1",
        )


def dns_label(text: str) -> str:
    """A name as Kubernetes takes it (RFC 1123 label): lower-case letters, digits and dashes, at most LABEL. One that is none
    yet ends in six digits of its SHA-256, so that names that differ in what is lost stay apart."""
    label = re.sub(r"[^a-z0-9]+", "-", text.rsplit("/", 1)[-1].lower()).strip("-")
    label = label if label and label[0].isalpha() else f"model-{label}"
    if label == text and len(label) <= LABEL:
        return label
    return f"{label[: LABEL - 7].strip('-')}-{sha256_text(text)[:6]}"


def engine_kwargs(plan: DeployPlan) -> dict[str, Any]:
    """vLLM's flags as keyword arguments of its engine: as its own parser read them, else those we write ourselves, whose
    types are known. Raises UserError where flags are passed on that it did not read."""
    if plan.parsed is not None:
        return plan.parsed
    if plan.options.extra:
        raise UserError(
            f"{plan.options.extra[0]}: only vLLM's own parser knows the types of its flags, and it cannot be run here",
            where="--", hint="install vLLM, or leave them out and add them to engine_kwargs in the file by hand",
        )  # fmt: skip
    found: dict[str, Any] = {}
    words = list(plan.flags)
    while words:
        key = words.pop(0).removeprefix("--").replace("-", "_")
        switch = not words or words[0].startswith("--")
        found[key] = True if switch else TYPES.get(key, str)(words.pop(0))
    return found
