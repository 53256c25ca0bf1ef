"""The six things that can be made, and the three LoRA presets."""

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["prompt", "few_shot", "rag", "lora", "qlora", "full"]
METHODS: tuple[str, ...] = get_args(Method)
TRAINED: tuple[str, ...] = ("lora", "qlora", "full")
# An answer of the advisor and an arm of a bake-off: an adapter trained and served with retrieved passages. It is made by
# `ft train --method lora --docs DOCUMENTS`.
RAG_LORA = "rag_lora"
RECOMMENDATION_VERSION = 1  # schema_version of recommendation.yaml
WEIGHTLESS: tuple[str, ...] = ("prompt", "few_shot", "rag")

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A LoRA setting by name. rank r, alpha (the update is scaled by alpha / r), target modules, learning rate."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    learning_rate: float


PRESETS: dict[str, Preset] = {
    "conservative": Preset(rank=4, alpha=8, targets=("q_proj", "v_proj"), learning_rate=1e-4),
    "recommended": Preset(rank=16, alpha=32, targets=ALL_LINEAR, learning_rate=2e-4),
    "aggressive": Preset(rank=64, alpha=128, targets=ALL_LINEAR, learning_rate=3e-4),
}
