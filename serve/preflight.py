"""What would make vLLM's start fail, found in milliseconds before it: flags, weight files, template, cache, memory."""

import json
import math
import os
import resource
from pathlib import Path

import psutil

from tunegate.core import machine, weight_files
from tunegate.core import manifest as manifests
from tunegate.core.console import warn
from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.machine import memory_gb
from tunegate.core.model_source import ModelSource
from tunegate.serve.machine_plan import GIB, Need
from tunegate.serve.served_model import Target, config_of, folder_of, template_of, weights_bytes

# Flags that are ours: past the key rule, the instance id or the middleware there is no way round.
OWN = {
    "--host": "--host", "--port": "--port", "--api-key": "TUNEGATE_API_KEY or --api-key-file", "--uds": None,
    "--ssl-keyfile": "--tls-key", "--ssl-certfile": "--tls-cert", "--config": None, "--model": "TARGET",
    "--served-model-name": "--name", "--lora-modules": "--adapter NAME=RUN", "--root-path": None,
}  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def checked_name(name: str | None) -> str | None:
    """A model's name as given. Raises UsageError for one that a request or a command line could not hold."""
    if name is not None and (not name.strip() or name.startswith("-") or any(c.isspace() or c == "," for c in name)):
        raise UsageError(f"{name!r} cannot be a model's name", where="--name", hint="letters, digits, . _ - and /")
    return name


def flag(extra: tuple[str, ...], name: str) -> str | None:
    """The value of a flag among those passed on (`""` for a switch); None when it is not there. `_` and `-` are one."""
    for index, word in enumerate(extra):
        head, equals, value = word.partition("=")
        if head.startswith("-") and head.replace("_", "-") == name:
            following = extra[index + 1] if index + 1 < len(extra) else ""
            return value if equals else "" if following.startswith("--") else following
    return None


def length_passed_on(extra: tuple[str, ...]) -> int | None:
    """Tokens of a `--max-model-len` behind the dashes, which vLLM takes before ours; None where there is none, or a word
    that vLLM works out by itself (auto, 8k)."""
    found = flag(extra, "--max-model-len")
    return int(found) if found is not None and found.isdecimal() else None


def check_numbers(**options: float | None) -> None:
    """Refuse infinity and NaN, which no report and no timer takes. Raises UsageError."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{value} is no number to use here", where=f"--{name.replace('_', '-')}")


def check_flags(extra: tuple[str, ...]) -> None:
    """Refuse flags that are ours, and values vLLM would refuse after its imports. Raises UsageError."""
    if extra and not extra[0].startswith("-"):
        raise UsageError(f"{extra[0]!r} is no flag", hint="one TARGET; vLLM's flags come after --")
    for word in extra:
        head = word.partition("=")[0].replace("_", "-")
        for name, instead in OWN.items():
            # argparse takes an abbreviation for the flag; --ho would be --host.
            if head == name or (len(head) > 3 and name.startswith(head)):
                hint = f"use {instead}" if instead else "it cannot be changed here"
                raise UsageError(f"{word.partition('=')[0]} is not passed on to vLLM", where="--", hint=hint)
    dtype = flag(extra, "--dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: no such type", where="--", hint=nearest(dtype, list(DTYPES)))
    if flag(extra, "--trust-remote-code") is not None:
        warn("--trust-remote-code runs Python code from the model's folder")
    template = flag(extra, "--chat-template")
    if template:
        _check_template(Path(template), None)


def check_files(target: Target, extra: tuple[str, ...]) -> None:
    """Weight files there and whole, the template compiles, the quantization is the model's own. Raises UserError."""
    folder = folder_of(target)
    if folder is None:
        return
    shards = weight_files.indexed(folder) or sorted(p.name for p in folder.glob("*.safetensors") if p.name[0] != ".")
    if not shards and not list(folder.glob("*.bin")) and not list(folder.glob("*.pt")):
        raise UserError("there is no weight file (*.safetensors)", where=str(folder), hint=_mend(target))
    for name in shards:
        weight_files.read_header(folder / name, hint=_mend(target))
    tokenizer = folder if isinstance(target, ModelSource) else target.path
    if not any((place / name).is_file() for place in (tokenizer, folder) for name in TOKENIZERS):
        raise UserError("there is no tokenizer (tokenizer.json)", where=str(tokenizer), hint=_mend(target))
    found = template_of(target)
    if found is not None:
        _check_template(*found)
    asked = flag(extra, "--quantization") or flag(extra, "-q")
    own = (config_of(target).get("quantization_config") or {}).get("quant_method")
    if asked and own is None and asked in ("awq", "gptq", "compressed-tensors", "awq_marlin", "gptq_marlin"):
        raise UserError(
            f"--quantization {asked}, but the model's weights are not quantized",
            where=str(folder / "config.json"),
            hint="leave --quantization out; ft quantize makes a quantized release",
        )
    if asked and own and not asked.startswith(own) and not own.startswith(asked):
        raise UserError(
            f"--quantization {asked}, but the model's weights are {own}",
            where=str(folder / "config.json"),
            hint="leave --quantization out: it is read from the release",
        )


def check_on_cpu(target: Target, extra: tuple[str, ...]) -> None:
    """The weights are of a kind that this CPU computes with. Raises UserError for fp8 and 4 bits where it does not.

    Of fp8 vLLM 0.32 takes PyTorch's general product where the CPU has no instructions for it, which took 17 (256 rows) to 43
    times (one row) the time of bf16 (576 x 1536, `torch._scaled_mm`, Xeon with AMX); `--quantization fp8` ends in its loading:
    its build lacks the operator. Its build for processors without AVX-512 lacks the 4-bit one, and fails at the first request.
    """
    config = config_of(target).get("quantization_config") or {}
    groups = config.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, dict)]
    asked = flag(extra, "--quantization") or flag(extra, "-q")
    fp8 = asked == "fp8" or any(w.get("type") == "float" and w.get("num_bits") == 8 for w in weights)
    if fp8 and "amx_fp8" not in machine.cpu_flags():
        raise UserError(
            "fp8 weights are for GPUs (compute capability 8.9 and later): this CPU takes some 20 times as long as for bf16",
            where=str(folder_of(target)),
            hint="serve the merged release here, or quantize it for CPUs: ft quantize --scheme w8a8",
        )
    if machine.lacks_avx512() and read_quantization(target) == "awq":
        raise UserError(
            "vLLM serves 4-bit weights on processors with AVX-512 only, and this one has none",
            where=str(folder_of(target)),
            hint="serve the merged release here, quantize it with ft quantize --scheme w8a8, or ft export gguf for llama.cpp",
        )


def check_cache(need: Need, space_gib: float) -> None:
    """One request of full length fits the KV cache of `space_gib`. Raises UserError."""
    if need.cache_gb(1) * 1e9 > space_gib * GIB:
        fits = int(space_gib * GIB / need.architecture.kv_bytes_per_token(need.value_bytes))
        raise UserError(
            f"the KV cache of {space_gib:g} GiB is too small for one request of {need.tokens} tokens "
            f"({need.cache_gb(1) * 1e9 / GIB:.1f} GiB)",
            where=CACHE_VARIABLE,
            hint=f"--max-model-len {fits} at most, or raise {CACHE_VARIABLE}",
        )


def check_blocks(need: Need, extra: tuple[str, ...]) -> None:
    """`--num-gpu-blocks-override` leaves room for one request. Raises UserError."""
    blocks, size = flag(extra, "--num-gpu-blocks-override"), flag(extra, "--block-size") or "128"
    if blocks and blocks.isdigit() and size.isdigit() and int(blocks) * int(size) < need.tokens:
        raise UserError(
            f"{blocks} cache blocks of {size} tokens do not hold one request of {need.tokens} tokens",
            where="--num-gpu-blocks-override",
            hint=f"--max-model-len {int(blocks) * int(size)} at most, or more blocks",
        )


def check_rank(rank: int, extra: tuple[str, ...]) -> None:
    """`--max-lora-rank` holds the adapters. Raises UserError."""
    asked = flag(extra, "--max-lora-rank")
    if asked and asked.isdigit() and int(asked) < rank:
        raise UserError(
            f"--max-lora-rank {asked}, but the adapters need {rank}", where="--", hint="leave --max-lora-rank out"
        )


def in_float32(target: Target, extra: tuple[str, ...]) -> bool:
    """Whether a CPU is to compute in float32: it has no bfloat16, the weights are not quantized and take at most half of
    the memory then. On such a processor (2 cores, AVX2, SmolLM2-135M) a prompt of 600 tokens took 17.4 s in bfloat16 and
    3.1 s in float32, 100 tokens one after the other 9.7 s and 11.7 s."""
    given = any(flag(extra, name) is not None for name in ("--dtype", "--quantization", "-q"))
    if given or machine.bf16_flags() or read_quantization(target) != "bf16":
        return False
    return 2 * weights_bytes(target) <= memory_limits()[1] / 2


def check_memory(
    target: Target, space_gib: float, available_bytes: float, limit_bytes: float, *, widened: int = 1
) -> None:
    """Weights and cache fit the memory of this machine (CPU). Raises UserError; warns when others hold it just now.
    widened: how many times its file's bytes a weight takes."""
    weights = widened * weights_bytes(target)
    needed = weights + space_gib * GIB
    if needed > limit_bytes:
        raise UserError(
            f"weights of {weights / 1e9:.1f} GB and a KV cache of {space_gib:g} GiB do not fit the memory allowed here, "
            f"{limit_bytes / 1e9:.1f} GB",
            where=str(folder_of(target)),
            hint=f"serve a quantized release (ft quantize), lower {CACHE_VARIABLE}, or raise the limit",
        )
    if needed > available_bytes:
        warn(f"{needed / 1e9:.1f} GB needed, {available_bytes / 1e9:.1f} GB free: the start may be killed for memory")


def memory_limits() -> tuple[float, float]:
    """(bytes free now, bytes this process may ever have): physical memory, container and ulimit taken together."""
    limit = memory_gb() * 1e9
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, float(soft))
    return float(psutil.virtual_memory().available), limit


def cache_space(planned_gib: int, extra: tuple[str, ...]) -> float:
    """GiB of KV cache on a CPU: the user's --kv-cache-memory-bytes or VLLM_CPU_KVCACHE_SPACE, else what was planned.

    Raises UserError.
    """
    given = flag(extra, "--kv-cache-memory-bytes")
    if given and given.isdigit():
        return int(given) / GIB
    text = os.environ.get(CACHE_VARIABLE, "")
    if not text:
        return float(planned_gib)
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{CACHE_VARIABLE} is {text!r}", where=CACHE_VARIABLE, hint="whole GiB, 1 or more")
    return float(text)


def _check_template(path: Path, text: str | None) -> None:
    """The template's syntax, by the sandbox that renders it. Raises UserError with its line."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if text is None:
        if not path.is_file():
            raise UserError("no such chat template", where=str(path), hint="give the path of a .jinja file")
        text = path.read_text(encoding="utf-8")
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.parse(text)
    except RecursionError:
        raise UserError(
            "the chat template is nested too deeply", where=str(path), hint="restore it; ft verify says what changed"
        ) from None
    except TemplateSyntaxError as error:
        if "generation" in str(error):  # transformers' own tag for the assistant's turns
            return
        line = f":{error.lineno}" if path.suffix == ".jinja" else ""
        raise UserError(
            f"the chat template is not valid: {error.message}",
            where=f"{path}{line}",
            hint="restore it; ft verify says what changed",
        ) from None


def _mend(target: Target) -> str:
    path = getattr(target, "path", None)
    says = f"ft verify {path} says what changed; " if path is not None and manifests.is_finished(path) else ""
    return f"{says}make or fetch it again"


def read_quantization(target: Target) -> str:
    """bf16, fp8 or awq, as the advisor names them, from the model's config."""
    config = config_of(target).get("quantization_config") or {}
    text = json.dumps(config)
    if not config:
        return "bf16"
    return "awq" if '"num_bits": 4' in text or '"bits": 4' in text or "4bit" in text else "fp8"
