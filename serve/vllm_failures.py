"""From the log of a server that did not start to a cause and a remedy, in words."""

import re
from dataclasses import dataclass
from pathlib import Path

from tunegate.core.errors import InfrastructureError, TunegateError, UserError


@dataclass(frozen=True)
class Cause:
    """A pattern in vLLM's log, what it means, what to do, and whose error it is: UserError for an option, a name or a file
    that the user gave."""

    pattern: str
    says: str
    remedy: str
    kind: type[TunegateError] = InfrastructureError


# The beginning of a line that reports an error: vLLM's process and level before it, where it has them. A module named in a
# warning is one that vLLM does without.
ERROR_LINE = r"(?m)^(?:\([^)\n]*\) *)?(?:ERROR [^\]\n]*\] *)?"
CAUSES = (
    Cause(r"Address already in use", "the port is taken", "choose another --port"),
    Cause(r"larger than the available KV cache memory|No available memory for the cache blocks|needed.*larger than the maximum number of tokens", "the KV cache is too small for one request", "lower --max-model-len, or give more memory (VLLM_CPU_KVCACHE_SPACE, --gpu-memory-utilization)"),
    Cause(r"CUDA out of memory|OutOfMemoryError|Free memory on device .* is less than", "the GPU's memory is not enough", "quantize the release, lower --max-model-len, or use a larger GPU"),
    Cause(r"Not enough allocatable memory|not enough memory|Cannot allocate memory|MemoryError", "the machine's memory is not enough", "lower VLLM_CPU_KVCACHE_SPACE, or serve a quantized release"),
    Cause(r"No such file or directory: '([^']*\.safetensors)'|[Ee]rror.*safetensors|Cannot find any model weights|SafetensorError", "a weight file is missing or damaged", "ft verify on the folder says which"),
    Cause(r"Quantization method specified in the model config \(([^)]*)\) does not match", "the quantization asked for is not the one in the model's config", "leave --quantization out: it is read from the release", UserError),
    Cause(r"Unknown quantization method|is not supported.*quantization|quantization method .* not supported", "vLLM does not know this quantization here", "serve the merged bf16 release"),
    Cause(r"Following weights were not initialized from checkpoint: \{?'?([\w.]+)", "the weight files do not hold all the model's weights", "ft verify on the folder says what changed; make or fetch it again"),
    Cause(r"Couldn't instantiate the backend tokenizer|Can't load tokenizer|is not a valid tokenizer", "the tokenizer is missing or damaged", "ft verify on the folder says what changed"),
    Cause(r"(attention heads \(\d+\) must be divisible by tensor parallel size \(\d+\))", "the model cannot be split over so many devices", "choose a --tensor-parallel-size that divides its heads", UserError),
    Cause(r"LoRA rank (\d+) is greater than max_lora_rank", "the adapter's rank is above --max-lora-rank", "raise --max-lora-rank, or merge the adapter", UserError),
    Cause(r"TemplateSyntaxError|chat template.*(?:invalid|not exist)|appears path-like, but doesn't exist", "the chat template is not valid", "ft verify on the folder; restore chat_template.jinja", UserError),
    Cause(r"User-specified max_model_len \((\d+)\) is greater", "--max-model-len is longer than the model's context", "lower --max-model-len", UserError),
    Cause(r"unrecognized arguments: (.*)", "vLLM does not know a flag that was passed on", "see the flags of vllm serve", UserError),
    Cause(r"(?m)^(?:\S+\.py|vllm[ \w]*): error: (.{1,300})", "vLLM refuses a flag that was passed on", "see the flags of vllm serve", UserError),
    Cause(r"TUNEGATE_API_KEY is empty", "a key is required here and there is none", "set TUNEGATE_API_KEY or --api-key-file", UserError),
    Cause(r"does not exist or is not a valid|Repository Not Found|is not a local folder and is not a valid model identifier", "there is no such model", "check the name or the folder", UserError),
    Cause(ERROR_LINE + r"ModuleNotFoundError: No module named '([\w.]+)'", "a Python module that it needs is missing", "install it in the environment that vLLM runs in"),
    Cause(r"Model architectures \[(.*?)\] (?:are not supported|failed to be inspected)", "vLLM does not know this architecture", "ft doctor shows the versions installed"),
)  # fmt: skip


# What vLLM says in the end whatever the cause was.
LED_TO = ("RuntimeError: Engine core initialization failed", "Exception: WorkerProc initialization failed")


def explain(log: Path, code: int | None) -> TunegateError:
    """The error for a server that ended with `code` (None: still running, but not ready in time): UserError where the user
    must mend it, else InfrastructureError."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    for cause in CAUSES:
        found = re.search(cause.pattern, text)
        if found:
            detail = f" ({found.group(1)})" if found.groups() and found.group(1) else ""
            return cause.kind(f"vLLM did not start: {cause.says}{detail}", hint=f"{cause.remedy}; log: {log}")
    if code in (-9, 137):
        return InfrastructureError(
            "vLLM was killed while it started, probably for memory",
            hint=f"lower VLLM_CPU_KVCACHE_SPACE or serve a quantized release; log: {log}",
        )
    if code is None:
        return InfrastructureError("vLLM was not ready in time", hint=f"raise --start-timeout; log: {log}")
    last = _last_error(text)
    return InfrastructureError(f"vLLM did not start (exit code {code}): {last[:300]}", hint=f"log: {log}")


def _last_error(text: str) -> str:
    """The last line that names an error, without the process and time before it: the root one, not those it led to."""
    found = "no message"
    for line in text.splitlines():
        plain = re.sub(r"^(\([^)]*\)\s*)?((ERROR|INFO|WARNING)\s[^\]]*\]\s*)?", "", line).strip()
        if re.match(r"(\w+\.)*\w*(Error|Exception)\b.*:|Value error, ", plain) and not plain.startswith(LED_TO):
            found = plain
    return found
