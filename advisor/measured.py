"""Rows of `measured.csv` (or of a user's file of the same columns) as typed cases that the formulas can be asked about.

Nothing here knows a value: a row becomes the configuration that its columns describe, or says why it cannot.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunegate.advisor.facts import Record, number
from tunegate.advisor.gpus import Gpu, find_gpu
from tunegate.advisor.models import KnownModel, find_or_typical
from tunegate.core.architecture import Architecture
from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR

NEEDED = ("kind", "model", "gpu", "value")
COLUMNS = (
    "id", "kind", "model", "params_B", "method", "quant", "seq_len_or_in_len", "out_len", "batch_or_concurrency",
    "grad_ckpt", "optimizer", "gpu", "n_gpus", "value", "unit", "source_repo_or_paper", "source_path_or_table", "notes",
)  # fmt: skip
GIB = 1.073741824
# What a row's unit is in 1e9 bytes, in seconds.
MEMORY_UNITS = {
    "gb": 1.0, "gigabyte": 1.0, "gigabytes": 1.0, "gib": GIB, "mb": 1e-3, "mib": GIB / 1024.0, "tb": 1e3, "tib": GIB * 1024.0, "bytes": 1e-9, "b": 1e-9,
}  # fmt: skip
TIME_UNITS = {
    "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3, "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hr": 3600.0, "hrs": 3600.0,
    "hour": 3600.0, "hours": 3600.0,
}  # fmt: skip
IN_MS = ("ttft", "ttft_p99", "tpot")
RATE = re.compile(r"(?:/|\bper) ?(min|minute|h|hr|hour)\b")
LENGTH = re.compile(r"(\d+(?:\.\d+)?) ?k")
MOST_PARAMS_B = 1e5


class NotPredictedError(Exception):
    """Why a row has no prediction."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured row. value: in the unit of its class (GB, tok/s, ms, s)."""

    row: Record
    kind: str
    value: float
    model: KnownModel
    gpu: Gpu
    n_gpus: int

    @property
    def id(self) -> str:
        """The row's id."""
        return self.row["id"]

    @property
    def source(self) -> str:
        """The publication without its commit: what leave-one-source-out leaves out."""
        return self.row.get("source_repo_or_paper", "").partition("@")[0]

    @property
    def arch(self) -> Architecture:
        """The model's shape."""
        return self.model.architecture

    @property
    def text(self) -> str:
        """All free text of the row, lower case."""
        names = (
            "method",
            "quant",
            "optimizer",
            "unit",
            "notes",
            "source_repo_or_paper",
            "source_path_or_table",
            "seq_len_or_in_len",
        )
        return " ".join(self.row.get(name, "") for name in names).lower()

    @property
    def per_gpu(self) -> bool:
        """Whether the value is one GPU's, by the row's unit."""
        return bool(re.search(r"(?:/|\bper) ?gpu\b", self.row["unit"]))

    def tokens(self, column: str) -> float:
        """A length in tokens. Raises NotPredictedError when the row does not state one."""
        text = self.row.get(column, "")
        text = text.lower().lstrip("s<=~ ")
        thousands = LENGTH.fullmatch(text)
        value = 1024.0 * float(thousands[1]) if thousands else number(text)
        if value is None or value <= 0:
            raise NotPredictedError(f"{column} is not stated ({text!r})")
        return value

    def batch(self) -> int:
        """Sequences at a time (micro-batch in training). Raises NotPredictedError when the row does not state it."""
        text = self.row.get("batch_or_concurrency", "")
        found = re.fullmatch(r"(?:(?:micro|gbs\d+ mbs|m?bs|batch|b|c|concurrency)[ =]*)?(\d+)(?:\.0)?", text.lower())
        if not found or int(found.group(1)) < 1:
            raise NotPredictedError(f"batch is not stated ({text!r})")
        return int(found.group(1))


def normal(row: Record) -> Record:
    """A row with every column, those that it lacks empty; class and unit in lower case."""
    names = {name.lower(): name for name in COLUMNS}
    row = dict.fromkeys(COLUMNS, "") | {names.get(name.lower(), name): value for name, value in row.items()}
    return row | {"kind": row["kind"].lower(), "unit": row["unit"].strip().lower()}


def parse(row: Record) -> Case:
    """Check one row. Raises NotPredictedError with the reason for what cannot be predicted."""
    row = normal(row)
    value = number(row["value"].lstrip("~≈ "))
    if value is None:
        raise NotPredictedError(f"no number was measured ({row['value'] or 'empty'})")
    if not 0 < value < 1e9:
        raise NotPredictedError(f"not a possible measurement: {value:g}")
    many = re.match(r"(\d+) ?[x×] ?", row["gpu"])  # `8x H100`
    name = row["gpu"][many.end() :] if many else row["gpu"]
    try:
        model = find_or_typical(row["model"], number(row["params_B"].rstrip("bB ")))
        gpu = find_gpu("A100-40GB" if name == "A100" else name)  # no size stated: the smaller, slower one
    except UserError as error:
        raise NotPredictedError(error.message) from None
    count = number(row["n_gpus"]) if row["n_gpus"].strip() else float(many[1]) if many else 1.0
    if count is None or count < 1 or count != int(count):
        raise NotPredictedError(f"not a number of GPUs: {row['n_gpus']!r}")
    size = number(row["params_B"].rstrip("bB "))
    if size is not None and not 0 < size < MOST_PARAMS_B:
        raise NotPredictedError(f"not a possible size: {size:g}B")
    return Case(row=row, kind=row["kind"], value=value * _scale(row), model=model, gpu=gpu, n_gpus=int(count))


def _scale(row: Record) -> float:
    """What turns the row's unit into that of its class; 1 for no unit, for the class's own and for those that `predict`
    reads. Raises NotPredictedError for a unit of memory or time that is not known."""
    kind, unit = row["kind"], row["unit"]
    if not unit or unit.startswith("min/1000"):
        return 1.0
    timed = kind in (*IN_MS, "train_time", "train_wall")
    if "mem" not in kind and not timed:
        rate = RATE.search(unit)
        return 1.0 / TIME_UNITS[rate[1]] if rate else 1.0
    known = TIME_UNITS if timed else MEMORY_UNITS
    scale = next((known[word] for word in re.findall("[a-zµμ]+", unit) if word in known), None)
    if scale is None:
        raise NotPredictedError(f"unknown unit {unit!r}")
    return 1e3 * scale if kind in IN_MS else scale


def quantization(case: Case) -> str:
    """The weight format that the `quant` column names, as a key of WEIGHT_BITS; where it is empty, the method's own: 4-bit
    for QLoRA, else 16 bits."""
    text = case.row["quant"].lower()
    if not text:
        return "nf4" if "qlora" in case.row["method"].lower() else "bf16"
    patterns: Iterable[tuple[str, str]] = (
        (r"nf4-dq", "nf4-dq"), (r"nf4|bnb 4bit|bnb-4bit", "nf4"), (r"fp4-dq", "nf4-dq"), (r"bnb.fp4", "nf4"),
        (r"int8|w8a8|8-?bit|q8_0", "int8"), (r"gptq|int4", "gptq"), (r"awq|w4", "awq"), (r"fp4|nvfp4", "fp4"),
        (r"fp8", "fp8"), (r"q4_", "q4_k_m"), (r"bf16|fp16|^f16|float16|16-?bit|^half|^none", "bf16"),
        (r"fp32|32-?bit|float32", "fp32"), (r"4-?bit", "nf4" if "lora" in case.row["method"].lower() else "awq"),
    )  # fmt: skip
    if "unspecified" in text:
        raise NotPredictedError("precision is not stated")
    if "awq" in text and "int4" in text:
        return "awq"
    for pattern, name in patterns:
        if re.search(pattern, text):
            return name
    raise NotPredictedError(f"unknown precision {text!r}")


def trainable_params(case: Case) -> int:
    """LoRA parameters: stated in the notes, else from the rank and targets stated there, else rank 8 on all linear."""
    text = case.text
    if found := re.search(r"trainable=([\d,]+)", text):
        return int(found.group(1).replace(",", ""))
    rank = re.search(r"(?<![a-z0-9])r(?:ank)?\s*=?\s*(\d+)", text.split("lora", 1)[-1])
    return case.arch.lora_params(int(rank.group(1)) if rank else 8, ALL_LINEAR)


def method(case: Case) -> str:
    """lora, qlora or full. Raises NotPredictedError for methods that are not modelled."""
    text = case.row["method"].lower()
    if "offload" in case.text:
        raise NotPredictedError("CPU offload is not modelled")
    if "qlora" in text:
        return "qlora"
    if "lora" in text:
        return "lora"
    if "full" in text:
        return "full"
    if "trainable=" in case.text:  # another adapter method whose size is stated: its memory and work are LoRA's
        return "lora"
    raise NotPredictedError(f"method {text!r} is not modelled")


def software(case: Case) -> str:
    """The training program, from the row's own text."""
    for name in ("unsloth", "litgpt", "torchtune", "llm-foundry"):
        if name in case.text:
            return _torchtune_flags(case) if name == "torchtune" else name
    by_trainer = "hf trainer" in case.row["optimizer"].lower() and "fsdp" not in case.text
    if method(case) == "full" and (by_trainer or "deepspeed" in case.text):  # Qwen's: HF's Trainer with DeepSpeed
        return "deepspeed"
    return "pretraining" if "pretrain" in case.text or "megatron" in case.text else "hf"


def whole_copies(case: Case) -> bool:
    """Whether each of several GPUs holds all weights: plain data parallelism, and ZeRO below its third stage."""
    return bool(re.search(r"\bddp\b|zero-?[12]\b", case.text))


def _torchtune_flags(case: Case) -> str:
    """Its table of flags is cumulative: the loss is chunked only from that line on, compiled from the line before."""
    flag = case.row.get("notes", "").lower().partition("cumulative:")[2].partition(";")[0].strip(" +")
    if flag.startswith(("baseline", "packed", "packing")):
        return "torchtune-eager"
    return "torchtune-compiled" if flag.startswith("compile") else "torchtune"


def checkpointing(case: Case) -> bool:
    """Whether activations are recomputed; a recipe's default is yes."""
    text = case.row["grad_ckpt"].lower()
    if text.startswith(("yes", "recipe", "true", "on", "full")) or text in ("1", "1.0", "y"):
        return True
    if text.startswith(("no", "false", "off")) or text in ("0", "0.0", "n"):
        return False
    raise NotPredictedError("gradient checkpointing is not stated")
