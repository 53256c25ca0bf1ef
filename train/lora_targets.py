"""Which modules of a model LoRA adapts: the projections that a preset names, under the names that the architecture gives them."""

import re
from collections.abc import Iterable
from typing import Any

from tunegate.core.console import say
from tunegate.core.errors import UserError, nearest
from tunegate.core.methods import ALL_LINEAR, ATTENTION

# Llama's names of the projections, and what other architectures call them (transformers 5, `models/*/modeling_*.py`): several in
# one matrix (Phi-3, GLM-4, GPT-NeoX, Falcon, GPT-2), other words (Phi, LFM2, StarCoder2).
OTHER_NAMES = {
    "q_proj": ("qkv_proj", "query_key_value", "c_attn", "Wqkv"),
    "k_proj": ("qkv_proj", "query_key_value", "c_attn", "Wqkv"),
    "v_proj": ("qkv_proj", "query_key_value", "c_attn", "Wqkv"),
    "o_proj": ("dense", "out_proj", "c_proj"),
    "gate_proj": ("gate_up_proj", "w1", "fc1", "c_fc", "dense_h_to_4h"),
    "up_proj": ("gate_up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h"),
    "down_proj": ("w2", "fc2", "c_proj", "dense_4h_to_h"),
}
_TOWER = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision|embed_audio)$"
)


def targets_of(model: Any, wanted: Iterable[str]) -> list[str] | str:
    """The names of linear layers to adapt, as PEFT takes them; what was taken for what is said.

    A projection that the model has none of is left out and said (the experts of a mixture are one tensor, no linear layers).
    Raises UserError for a name that is no projection, or when nothing is left.
    """
    wanted = list(wanted)
    if "all-linear" in wanted:
        return "all-linear"
    towers = towers_of(model)
    inside = [(name, module) for name, module in model.named_modules() if not is_within(name, towers)]
    names = {name.rpartition(".")[2] for name, module in inside if _is_linear(module)}
    known = {name.rpartition(".")[2] for name, _ in inside} - {""}
    found: dict[str, str] = {}
    lacking = []
    for name in wanted:
        other = name if name in known else next((n for n in OTHER_NAMES.get(name, ()) if n in names), None)
        if other is not None:
            found[name] = other
        elif name in ALL_LINEAR:
            lacking.append(name)
        else:
            raise UserError(
                f"the model has no module called {name!r}", where="targets", hint=nearest(name, sorted(known))
            )
    if not found:
        raise UserError(
            f"the model has no module called {wanted[0]!r}",
            where="targets",
            hint=f"--targets all-linear, or some of its linear layers: {', '.join(sorted(names)[:12])}",
        )
    if renamed := [f"{name} is {other}" for name, other in found.items() if name != other]:
        say(f"this architecture's names of the projections: {', '.join(renamed)}")
    if lacking:
        say(f"not adapted, for the model has no such linear layers: {', '.join(lacking)}")
    return list(dict.fromkeys(found.values()))


def projections_of(wanted: Iterable[str], *, mixture: bool) -> tuple[str, ...]:
    """The same in Llama's names, for the advisor's count: what a model's own names stand for. Names that stand for nothing here
    are left out (the model decides on them); all projections where none is left. mixture: its experts are not adapted."""
    wanted = set(wanted)
    found = [name for name in ALL_LINEAR if wanted & {name, *OTHER_NAMES[name]}] or list(ALL_LINEAR)
    return tuple(name for name in found if not mixture or name in ATTENTION) or ATTENTION


def towers_of(model: Any) -> list[str]:
    """Modules for images and sound, which rows of text never reach: no adapter is laid on them."""
    return [name for name, _ in model.named_modules() if _TOWER.search(name)]


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module's name is one of these, or that of a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_linear(module: Any) -> bool:
    """A linear layer, a 4-bit one too, or GPT-2's `Conv1D`, which is one."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)
