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

NEEDED = (
    "id", "kind", "model", "params_B", "method", "quant", "seq_len_or_in_len", "out_len", "batch_or_concurrency",
    "grad_ckpt", "optimizer", "gpu", "n_gpus", "value", "unit",
)  # fmt: skip
GIB = 1.073741824
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

    def tokens(self, column: str) -> float:
        """A length in tokens. Raises NotPredictedError when the row does not state one."""
        text = self.row.get(column, "")
        value = number(text.lstrip("s<=~ "))
        if value is None or value <= 0:
            raise NotPredictedError(f"{column} is not stated ({text!r})")
        return value

    def batch(self) -> int:
        """Sequences at a time (micro-batch in training). Raises NotPredictedError when the row does not state it."""
        text = self.row.get("batch_or_concurrency", "")
        found = re.fullmatch(r"(?:micro |gbs\d+ mbs)?(\d+)", text.lower())
        if not found or int(found.group(1)) < 1:
            raise NotPredictedError(f"batch is not stated ({text!r})")
        return int(found.group(1))


def parse(row: Record) -> Case:
    """Check one row. Raises NotPredictedError with the reason for what cannot be predicted."""
    value = number(row["value"])
    if value is None:
        raise NotPredictedError(f"no number was measured ({row['value'] or 'empty'})")
    if not 0 < value < 1e9:
        raise NotPredictedError(f"not a possible measurement: {value:g}")
    try:
        model = find_or_typical(row["model"], number(row["params_B"]))
        gpu = find_gpu("A100-40GB" if row["gpu"] == "A100" else row["gpu"])  # no size stated: the smaller, slower one
    except UserError as error:
        raise NotPredictedError(error.message) from None
    count = 1.0 if not row["n_gpus"].strip() else number(row["n_gpus"])
    if count is None or count < 1 or count != int(count):
        raise NotPredictedError(f"not a number of GPUs: {row['n_gpus']!r}")
    size = number(row["params_B"])
    if size is not None and not 0 < size < MOST_PARAMS_B:
        raise NotPredictedError(f"not a possible size: {size:g}B")
    scale = GIB if row["unit"].startswith("GiB") else 1.0
    return Case(row=row, kind=row["kind"], value=value * scale, model=model, gpu=gpu, n_gpus=int(count))


def quantization(case: Case) -> str:
    """The weight format that the `quant` column names, as a key of WEIGHT_BITS."""
    text = case.row["quant"].lower()
    patterns: Iterable[tuple[str, str]] = (
        (r"nf4-dq", "nf4-dq"), (r"nf4|bnb 4bit|bnb-4bit", "nf4"), (r"fp4-dq", "nf4-dq"), (r"bnb.fp4", "nf4"),
        (r"int8", "int8"), (r"gptq|int4", "gptq"), (r"awq|w4", "awq"), (r"fp4|nvfp4", "fp4"), (r"fp8", "fp8"),
        (r"q4_k_m", "q4_k_m"), (r"bf16|fp16|^f16|float16", "bf16"), (r"fp32", "fp32"),
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
    rank = re.search(r"r(?:ank)?\s*=?\s*(\d+)", text.split("lora", 1)[-1])
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
    for name in ("unsloth", "litgpt", "torchtune"):
        if name in case.text:
            return _torchtune_flags(case) if name == "torchtune" else name
    if method(case) == "full" and "hf trainer" in case.text:  # full tuning with HF's Trainer there means DeepSpeed
        return "deepspeed"
    return "pretraining" if "pretrain" in case.text or "megatron" in case.text else "hf"


def _torchtune_flags(case: Case) -> str:
    """Its table of flags is cumulative: the loss is chunked only from that line on, compiled from the line before."""
    flag = case.row.get("notes", "").lower().partition("cumulative:")[2].partition(";")[0].strip(" +")
    if flag.startswith(("baseline", "packed", "packing")):
        return "torchtune-eager"
    return "torchtune-compiled" if flag.startswith("compile") else "torchtune"


def checkpointing(case: Case) -> bool:
    """Whether activations are recomputed; a recipe's default is yes."""
    text = case.row["grad_ckpt"].lower()
    if text.startswith(("yes", "recipe")):
        return True
    if text.startswith("no"):
        return False
    raise NotPredictedError("gradient checkpointing is not stated")
