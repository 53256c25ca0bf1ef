"""Decoder layers of the Llama kind (Llama, Mistral, Qwen2, SmolLM2), computed with fewer and larger operations: training
a LoRA adapter on the CPU. (Over a 4-bit base it was slower: dequantising costs more than is saved.)

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
from tunegate.train.cpu_attention import attend_rows

FAMILIES = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class Product:
    """Linear layers that read the same input, as one product. modules: PEFT's LoRA layers or plain linear ones.

    stacked: the frozen weights (sum of outputs, input), of which the modules' own weights are views. bias: (sum of
    outputs), or None.
    """

    modules: Sequence[Any]
    sizes: list[int]
    stacked: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        """(S, input) -> (S, sum of outputs)."""
        places, scales, adapters = [], [], []
        start = 0
        for module, size in zip(self.modules, self.sizes, strict=True):
            if hasattr(module, "lora_A"):
                name = module.active_adapters[0]
                places.append((start, start + size))
                scales.append(float(module.scaling[name]))
                adapters += [module.lora_A[name].weight, module.lora_B[name].weight]
            start += size
        return fast_ops.lora_linear(x, self.stacked, self.bias, places, scales, adapters)


def speed_up(model: Any) -> bool:
    """Patch every decoder layer of a LoRA model; False, with nothing touched, where one is not of the known kind.

    The model must be fed rows side by side (`cpu_attention`). Weights, names and what is saved stay as they are.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(getattr(base, "model", None), "layers", None)
    if layers is None or base.config.model_type not in FAMILIES or not all(map(_known, layers)):
        return False
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        layer.fast = (
            _product([attention.q_proj, attention.k_proj, attention.v_proj]),
            _product([attention.o_proj]),
            _product([mlp.gate_proj, mlp.up_proj]),
            _product([mlp.down_proj]),
        )
        layer.forward = types.MethodType(_forward, layer)
    return True


def _known(layer: Any) -> bool:
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
    return all(map(_plain, modules))


def _plain(module: Any) -> bool:
    import torch

    if type(_base(module)) is not torch.nn.Linear:
        return False
    if not hasattr(module, "lora_A"):
        return not module.weight.requires_grad
    if len(module.lora_A) != 1 or module.merged or any(getattr(module, "use_dora", {}).values()):
        return False
    name = next(iter(module.lora_A))
    dropout = getattr(module.lora_dropout[name], "p", 0.0) if name in module.lora_dropout else 0.0
    biased = module.lora_B[name].bias is not None or module.lora_A[name].bias is not None
    return not dropout and not biased and not _base(module).weight.requires_grad


def _base(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _product(modules: Sequence[Any]) -> Product:
    """Stack the frozen weights of modules; their own become views of the stack, so that memory is used once."""
    import torch

    bases = [_base(m) for m in modules]
    sizes = [b.out_features for b in bases]
    bias = torch.cat([b.bias.data for b in bases]) if bases[0].bias is not None else None
    if len(bases) == 1:
        return Product(modules, sizes, bases[0].weight.data, bias)
    stacked = torch.cat([b.weight.data for b in bases])
    for base, part in zip(bases, stacked.split(sizes), strict=True):
        base.weight.data = part
    return Product(modules, sizes, stacked, bias)


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
        qkv = read(_normed(x, layer.input_layernorm))
        keys = attention.k_proj.out_features // size
        queries = attention.q_proj.out_features // size
        heads = qkv.view(x.shape[0], queries + 2 * keys, size)
        cos, sin = (part[0].to(x.dtype).unsqueeze(1) for part in position_embeddings)  # (S, 1, E)
        turned = fast_ops.rotated(heads[:, : queries + keys], cos, sin).transpose(0, 1)
        mixed = attend_rows(
            turned[:queries],
            turned[queries:],
            heads[:, queries + keys :].transpose(0, 1),
            attention.scaling,
            cu_seq_lens_q,
        )  # (S, H, E)
        x = x + write(mixed.reshape(x.shape[0], queries * size))
        x = x + narrow(fast_ops.gated(widen(_normed(x, layer.post_attention_layernorm))))
    return x.unsqueeze(0)


def _normed(x: Any, norm: Any) -> Any:
    return fast_ops.rms_norm(x, norm.weight, norm.variance_epsilon)
