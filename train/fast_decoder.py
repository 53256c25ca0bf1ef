"""Decoder layers of the Llama kind (Llama, Mistral, Qwen2, SmolLM2), computed with fewer and larger operations: training
a LoRA adapter on the CPU. A 4-bit base is made whole a product at a time, in the forward pass and again in the backward.

Same function as the unpatched layer: queries, keys and values come out of one product, gate and up out of another, all
arithmetic is in the base's precision without autocast's casts, and queries and keys are rotated together. Adapter
weights stay fp32 parameters and are rounded where they are used, as autocast does.

Shapes: S positions of all rows side by side, D hidden, H query heads, K key-value heads, E head size, F feed-forward.
"""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.train import fast_ops
from tunegate.train.fast_attention import attention as attention_of

FAMILIES = ("llama", "mistral", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Product:
    """Linear layers that read the same input, as one product. modules: PEFT's LoRA layers or plain linear ones.

    wide: their weights with room for the adapters' B beside them (sum of outputs, input + sum of r). The modules' own are
    views of it; where they are trained it is a copy in the precision of the products. shared: it is a workspace of all products
    of one shape, because the weights are 4-bit or a copy of each would cost as much again (trained, and fp32 both).
    bias: (sum of outputs), or None.
    """

    modules: Sequence[Any]
    sizes: list[int]
    wide: Any
    shared: bool
    trained: bool
    bias: Any

    def __call__(self, x: Any) -> Any:
        """(S, input) -> (S, sum of outputs)."""
        x = x.to(self.wide.dtype)
        if self.trained:
            matrices, biases = [m.weight for m in self.modules], [m.bias for m in self.modules if m.bias is not None]
            return fast_ops.trained_linear(x, self, [*matrices, *biases])
        places, scales, adapters = [], [], []
        start = 0
        for module, size in zip(self.modules, self.sizes, strict=True):
            if hasattr(module, "lora_A"):
                name = module.active_adapters[0]
                places.append((start, start + size))
                scales.append(float(module.scaling[name]))
                adapters += [module.lora_A[name].weight, module.lora_B[name].weight]
            start += size
        return fast_ops.lora_linear(x, self, self.bias, places, scales, adapters)

    def filled(self, ups: Sequence[Any], places: Sequence[tuple[int, int]], *, again: bool = False) -> Any:
        """See `fast_ops.Weights`. Two threads may write one `wide` at once: the same numbers."""
        if again and not self.shared:
            return self.wide
        width = _base(self.modules[0]).in_features
        if self.shared or self.trained:
            _write(self.wide[:, :width], [_base(m).weight for m in self.modules])
        column = width
        for up, (start, end) in zip(ups, places, strict=True):
            self.wide[start:end, column : column + up.shape[1]] = up
            column += up.shape[1]
        return self.wide


def _write(wide: Any, weights: Sequence[Any]) -> None:
    start = 0
    for weight in weights:
        plain = _unpacked(weight) if hasattr(weight, "quant_state") else weight.detach()
        wide[start : start + len(plain)] = plain
        start += len(plain)


def speed_up(model: Any, arithmetic: Any) -> bool:
    """Patch every decoder layer of a LoRA model, or of one that is trained whole; False, with nothing touched, where one is
    not of the known kind. arithmetic: torch's dtype of products with trained weights; frozen ones have their own.

    The model must be fed rows side by side (`cpu_attention`). Weights, names and what is saved stay as they are.
    Modules trained whole (`modules_to_save`) are fp32, a tied embedding makes all that enters the layers so: not covered.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(getattr(base, "model", None), "layers", None)
    whole = any(c.modules_to_save for c in getattr(model, "peft_config", {}).values())
    trained = not hasattr(model, "peft_config")
    if layers is None or whole or base.config.model_type not in FAMILIES:
        return False
    if not all(_known(layer, trained) for layer in layers):
        return False
    workspaces: dict[Any, Any] = {}
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        together = (
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        )
        layer.fast = tuple(_product(modules, workspaces, arithmetic if trained else None) for modules in together)
        layer.forward = types.MethodType(_forward, layer)
    return True


def _known(layer: Any, trained: bool) -> bool:
    """Whether a layer has the parts this file computes, and adapters without dropout, DoRA, bias or a second adapter."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    names = ((attention, ("q_proj", "k_proj", "v_proj", "o_proj")), (mlp, ("gate_proj", "up_proj", "down_proj")))
    modules = [getattr(part, name, None) for part, part_names in names for name in part_names]
    if any(module is None for module in modules) or hasattr(attention, "q_norm"):
        return False
    if type(getattr(mlp, "act_fn", None)).__name__ not in ("SiLU", "SiLUActivation"):
        return False
    if len({_base(m).bias is None for m in modules[:3]}) > 1 or _base(modules[4]).bias is not None:
        return False
    return all(_plain(module, trained) for module in modules)


def _plain(module: Any, trained: bool) -> bool:
    import torch

    base = _base(module)
    packed = type(base).__name__ == "Linear4bit" and getattr(base.weight, "quant_state", None) is not None
    if type(base) is not torch.nn.Linear and not packed:
        return False
    if not hasattr(module, "lora_A"):
        return bool(module.weight.requires_grad) == trained
    if len(module.lora_A) != 1 or module.merged or any(getattr(module, "use_dora", {}).values()):
        return False
    name = next(iter(module.lora_A))
    dropout = getattr(module.lora_dropout[name], "p", 0.0) if name in module.lora_dropout else 0.0
    biased = module.lora_B[name].bias is not None or module.lora_A[name].bias is not None
    return not dropout and not biased and not _base(module).weight.requires_grad


def _base(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _product(modules: Sequence[Any], workspaces: dict[Any, Any], arithmetic: Any) -> Product:
    """Stack the weights of modules. Frozen ones become views of the stack, so that memory is used once; of trained ones
    (arithmetic: the precision they are multiplied in) it is a copy, 2 bytes a weight beside 16 of training; 4-bit ones stay
    as they are. workspaces: by shape."""
    import torch

    bases = [_base(m) for m in modules]
    sizes = [b.out_features for b in bases]
    ranks = [m.lora_A[m.active_adapters[0]].out_features for m in modules if hasattr(m, "lora_A")]
    bias = torch.cat([b.bias.data for b in bases]) if bases[0].bias is not None else None
    width, packed = bases[0].in_features, hasattr(bases[0].weight, "quant_state")
    dtype = arithmetic or (bases[0].weight.quant_state.dtype if packed else bases[0].weight.dtype)
    shared = packed or arithmetic == bases[0].weight.dtype
    made, key = workspaces if shared else {}, (*sizes, width, *ranks)
    if key not in made:
        made[key] = torch.zeros((sum(sizes), width + sum(ranks)), dtype=dtype)
    wide = made[key]
    if not shared and not arithmetic:
        _write(wide[:, :width], [b.weight for b in bases])
        for base, part in zip(bases, wide[:, :width].split(sizes), strict=True):
            base.weight.data = part
    return Product(modules=modules, sizes=sizes, wide=wide, shared=shared, trained=arithmetic is not None, bias=bias)


def _unpacked(weight: Any) -> Any:
    """A 4-bit weight (output, input) in the precision it is multiplied in."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def _forward(
    layer: Any, hidden_states: Any, attention_mask: Any = None, position_embeddings: Any = None, cu_seq_lens_q: Any = None,
    **_: Any,
) -> Any:  # fmt: skip
    """hidden_states (1, S, D) -> (1, S, D)."""
    import torch

    read, write, widen, narrow = layer.fast
    attention = layer.self_attn
    size = attention.head_dim
    with torch.autocast(hidden_states.device.type, enabled=False):
        x = hidden_states[0]
        qkv = read(_normed(x, layer.input_layernorm))  # x may be fp32 (of a 4-bit base), products are not
        keys = attention.k_proj.out_features // size
        queries = attention.q_proj.out_features // size
        cos, sin = (part[0].to(qkv.dtype).unsqueeze(1) for part in position_embeddings)  # (S, 1, E)
        bounds = [0, x.shape[0]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
        mixed = attention_of(qkv, cos, sin, bounds, queries, keys, attention.scaling)
        x = x + write(mixed)
        x = x + narrow(fast_ops.gated(widen(_normed(x, layer.post_attention_layernorm))))
    return x.unsqueeze(0)


def _normed(x: Any, norm: Any) -> Any:
    return fast_ops.rms_norm(x, norm.weight, norm.variance_epsilon)
