"""Attention for rows that stand side by side without padding, as plain matrix products: on the CPU about twice as fast
as the flash kernel for rows of a few hundred tokens, and no token is spent on padding.

Registered with transformers under the name `tunegate_rows`. The collator gives the boundaries as `cu_seq_lens_q`; each
row attends to itself only, causally. Shapes: B batch (1), H query heads, K key-value heads, S positions, D head size.
"""

import itertools
from functools import lru_cache
from typing import Any

NAME = "tunegate_rows"
# Memory of the score matrix grows with the square of the length; longer rows take torch's kernel.
LONGEST_DENSE = 1024
# Architectures (`model_type`) that take a registered attention and hand the boundaries on to it, each tested: others run their
# own (BLOOM, Falcon, GPT-J), drop the boundaries (StableLM, Nemotron), or carry a state from row to row (RWKV, xLSTM).
FAMILIES = frozenset({
    "apertus", "arcee", "bitnet", "cohere", "ernie4_5", "ernie4_5_moe", "exaone4", "flex_olmo", "gemma", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "jais2", "llama", "minimax_m2", "ministral3", "mistral",
    "mixtral", "nanochat", "olmo", "olmo2", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2",
})  # fmt: skip
# Settings that make it another attention, or one with dropout.
ODD = (
    "attn_logit_softcapping", "attention_chunk_size", "q_lora_rank", "attn_pdrop", "attention_dropout",
    "use_bidirectional_attention",
)  # fmt: skip


def supported(config: Any) -> bool:
    """Whether a model's attention is known to be plain and causal, so that this function computes the same thing."""
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    known = getattr(config, "model_type", None) in FAMILIES
    return (
        known and not sliding and kinds == {"full_attention"} and not any(getattr(config, name, None) for name in ODD)
    )


def register() -> None:
    """Make the function known to transformers; no mask is built for it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *args, **kwargs: None)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """query (1, H, S, D), key and value (1, K, S, D) -> output (1, S, H, D).

    Raises ValueError for a batch of more than one, a mask, or attention dropout: the caller mixed it up with padding.
    """
    if query.shape[0] != 1 or attention_mask is not None or dropout:
        raise ValueError("rows side by side need batch size 1, no mask and no attention dropout")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_rows(query[0], key[0], value[0], scale, cu_seq_lens_q)[None], None


def attend_rows(query: Any, key: Any, value: Any, scale: float, cu_seq_lens_q: Any = None) -> Any:
    """query (H, S, D), key and value (K, S, D) -> output (S, H, D). cu_seq_lens_q: row boundaries; None for one row."""
    import torch

    bounds = [0, query.shape[1]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    rows = [_row(query[:, a:b], key[:, a:b], value[:, a:b], scale) for a, b in itertools.pairwise(bounds)]
    return torch.cat(rows, dim=1).transpose(0, 1).contiguous()


def _row(query: Any, key: Any, value: Any, scale: float) -> Any:
    """One row, (H, L, D). The query heads that share a key-value head are stacked along the positions, so keys are not
    repeated."""
    import torch

    heads, length, size = query.shape
    shared = key.shape[0]
    if length > LONGEST_DENSE:
        whole = (part[None] for part in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*whole, is_causal=True, scale=scale, enable_gqa=True)[0]
    per = heads // shared
    stacked = query.reshape(shared, per * length, size)
    scores = torch.baddbmm(causal(length, per, query.dtype), stacked, key.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), value)
    return mixed.reshape(heads, length, size)


@lru_cache(maxsize=64)  # all layers of a batch ask for the same lengths
def causal(length: int, per: int, dtype: Any) -> Any:
    """(per * L, L): -inf above the diagonal, once for each of the `per` query heads that share a key-value head."""
    import torch

    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1).repeat(per, 1)
