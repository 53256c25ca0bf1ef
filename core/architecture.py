"""The shape of a decoder-only transformer, read from its `config.json`, and what follows from it exactly.

Symbols (the same in every formula of the advisor): L layers, h hidden size, I feed-forward size, n_h query heads,
n_kv key-value heads, d head dimension, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.files import read_json
from tunegate.core.methods import ALL_LINEAR

_PLAIN_MLP = (
    "gpt_neox", "mpt", "opt", "bloom", "falcon", "phi", "gpt2", "gptj", "codegen", "starcoder2", "gpt_bigcode", "nemotron",
    "apertus", "arcee", "persimmon",
)  # fmt: skip
_LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "opt")
_TIED = (
    "gemma", "gemma2", "gemma3", "gemma3_text", "mpt", "opt", "gpt2", "gpt_bigcode", "bloom", "falcon", "starcoder2",
    "cohere", "cohere2",
)  # fmt: skip
# Keys of layers that are no attention with a feed-forward beside it: state spaces, convolutions, mixtures every other layer.
_OTHER_LAYERS = (
    "attn_layer_period", "linear_num_value_heads", "conv_L_cache", "state_size", "ssm_cfg", "interleave_moe_layer_step",
    "hybrid_override_pattern", "mamba_d_state", "ffn_config",
)  # fmt: skip
_QKV_BIAS = ("qwen", "qwen2", "qwen2_moe", "qwen2_5")
_QK_NORM = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2", "olmo3", "exaone4", "hunyuan_v1_dense")
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
# Every how many layers one sees all, where the configuration does not say (transformers 5.19, configuration_*.py).
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
# What Gemma-3's files leave out (transformers 5.19, models/gemma3/configuration_gemma3.py).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208, "sliding_window": 4096,
        "max_position_embeddings": 131_072,
    },
}  # fmt: skip
_MOST = 10**8  # of any number of a configuration
_MOST_PARAMS = 10**14
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
# Families that keep several projections in one matrix (transformers 5.19, modeling_*.py; the last of the first by their own
# code), so that one adapter lies on all of them.
_FUSED_QKV = (
    "phi3", "gpt_neox", "falcon", "mpt", "bloom", "gpt2", "gpt_bigcode", "codegen", "persimmon", "qwen", "chatglm",
)  # fmt: skip
_FUSED_GATE_UP = ("phi3", "glm", "glm4", "chatglm")
_PARTS = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}  # fmt: skip
# What families that are not named as Llama call them (train/lora_targets.py has the same the other way round).
_OWN_NAMES = {
    "query_key_value": ("qkv_proj",), "c_attn": ("qkv_proj",), "Wqkv": ("qkv_proj",), "dense": ("o_proj",), "out_proj": ("o_proj",),
    "c_proj": ("o_proj", "down_proj"), "dense_h_to_4h": ("up_proj",), "c_fc": ("up_proj",), "fc1": ("up_proj",), "fc_in": ("up_proj",),
    "w1": ("gate_proj",), "w3": ("up_proj",), "w2": ("down_proj",), "dense_4h_to_h": ("down_proj",), "fc2": ("down_proj",),
    "fc_out": ("down_proj",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of one model.

    hidden, ffn, vocab: widths. gated: SwiGLU-type feed-forward (three matrices) rather than two. tied: the output
    matrix is the embedding. experts, experts_per_token: 1 when dense; `ffn` is then one expert's width.
    shared_ffn: width of the expert that every token passes through, 0 for none. learned_positions: rows of a table of
    position embeddings.
    sliding_window: tokens a windowed layer looks back, None when every layer sees all. full_attention_layers: layers
    that see all (only meaningful with a window). context: most tokens of prompt and answer, None where it is not known.
    exact: False for a shape interpolated from a parameter count. fused: which of qkv_proj and gate_up_proj are one matrix.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    tied: bool = False
    experts: int = 1
    experts_per_token: int = 1
    shared_ffn: int = 0
    learned_positions: int = 0
    sliding_window: int | None = None
    full_attention_layers: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    context: int | None = None
    exact: bool = True
    fused: tuple[str, ...] = ()

    def beyond(self, tokens: float) -> str:
        """Why so many tokens of prompt and answer do not go into the model, in words; empty where they do."""
        if self.context is None or tokens <= self.context:
            return ""
        return f"{math.ceil(tokens):,} tokens are more than the model's context of {self.context:,}"

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together (values have the same)."""
        return self.kv_heads * self.head_dim

    @cached_property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear module of one layer, of one expert where there are several. Several projections in
        one matrix (`fused`) are one module, whose outputs are the sum of theirs."""
        h, q, kv = self.hidden, self.q_width, self.kv_width
        outputs = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": h}
        outputs |= {"gate_proj": self.ffn} if self.gated else {}
        outputs |= {"up_proj": self.ffn, "down_proj": h}
        inputs = {"o_proj": q, "down_proj": self.ffn}
        shapes: dict[str, tuple[int, int]] = {}
        for part, width in outputs.items():
            name = self._module(part)
            shapes[name] = (inputs.get(name, h), shapes.get(name, (0, 0))[1] + width)
        return shapes

    @cached_property
    def linear_params(self) -> int:
        """Parameters in the linear modules of all layers: what 4-bit quantization reaches."""
        routed = sum(a * b * self._copies(name) for name, (a, b) in self.linear_shapes.items())
        return self.layers * (routed + self._shared_params)

    @cached_property
    def active_linear_params(self) -> int:
        """The part of `linear_params` that one token passes through (fewer than all in a mixture of experts)."""
        per_token = {name: (self.experts_per_token if name in _MLP else 1) for name in self.linear_shapes}
        routed = sum(a * b * per_token[name] for name, (a, b) in self.linear_shapes.items())
        return self.layers * (routed + self._shared_params)

    @property
    def embedding_params(self) -> int:
        """Input embedding, plus the output matrix when it is its own."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @cached_property
    def params(self) -> int:
        """All parameters: embeddings, linear modules, routers, biases, norms."""
        small = self.norms_per_layer * self.hidden
        small += (self.q_width + 2 * self.kv_width) if self.qkv_bias else 0
        small += 2 * self.head_dim if self.qk_norm else 0
        small += self.hidden * self.experts if self.experts > 1 else 0
        small += self.hidden if self.shared_ffn else 0  # the shared expert's gate
        small += self.learned_positions * self.hidden // self.layers
        return self.embedding_params + self.linear_params + self.layers * small + self.hidden

    @cached_property
    def compute_params(self) -> int:
        """Parameters multiplied for one token: active linear modules and the output matrix."""
        return self.active_linear_params + self.vocab * self.hidden

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> float:
        """Bytes of keys and values that one token adds in all layers: 2 * L * n_kv * d * bytes."""
        return 2.0 * self.layers * self.kv_width * bytes_per_value

    def kv_tokens(self, context: float) -> float:
        """Tokens of cache that a context of this length keeps, averaged over layers (less with a sliding window)."""
        if self.sliding_window is None or context <= self.sliding_window:
            return context
        full = self.full_attention_layers / self.layers
        return full * context + (1.0 - full) * self.sliding_window

    def lora_params(self, rank: int, targets: Iterable[str] = ALL_LINEAR) -> int:
        """Trainable parameters of LoRA: rank * (inputs + outputs) of each target module (arXiv 2106.09685, section 4).

        Raises UserError for a target this architecture does not have.
        """
        shapes = self.linear_shapes
        chosen = dict.fromkeys(name for target in targets for name in self._modules(target))
        return self.layers * sum(rank * sum(shapes[n]) * self._copies(n) for n in chosen)

    def _modules(self, target: str) -> list[str]:
        """The modules that a target names, by Llama's name or its own."""
        own = _OWN_NAMES.get(target, (target,)) if self.fused or not self.gated else (target,)
        found = [name for name in map(self._module, own) if name in self.linear_shapes]
        if not found:
            hint = nearest(target, list(self.linear_shapes))
            raise UserError(f"no module {target!r} in this model", where="targets", hint=hint)
        return found

    def _module(self, projection: str) -> str:
        """The module that holds a projection. A plain feed-forward's first matrix stands for the gate too."""
        if projection == "gate_proj" and not self.gated:
            return "up_proj"
        whole = _PARTS.get(projection)
        return whole if whole in self.fused else projection

    @property
    def _shared_params(self) -> int:
        return (3 if self.gated else 2) * self.hidden * self.shared_ffn

    def _copies(self, name: str) -> int:
        return self.experts if name in _MLP else 1


def from_config(config: Mapping[str, Any], *, where: str = "config.json") -> Architecture:
    """Read a transformers configuration.

    Raises UserError for encoder-decoders, latent attention (MLA) and configurations without the needed keys: for those
    the formulas do not hold.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    config = {**_DEFAULTS.get(str(config.get("model_type")), {}), **config}
    if config.get("is_encoder_decoder"):
        raise UserError("an encoder-decoder model: only decoder-only models are modelled", where=where)
    if config.get("kv_lora_rank"):
        raise UserError("multi-head latent attention is not modelled", where=where)
    if other := next((name for name in _OTHER_LAYERS if config.get(name)), None):
        raise UserError(f"layers that are not plain attention are not modelled ({other})", where=where)
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and (others := sorted({str(k) for k in kinds} - _ATTENTION)):
        raise UserError(f"layers that are not plain attention are not modelled ({others[0]})", where=where)
    kind = str(config.get("model_type", ""))
    hidden = _number(config, where, "hidden_size", "n_embd", "d_model")
    layers = _number(config, where, "num_hidden_layers", "n_layer", "n_layers")
    heads = _number(config, where, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _kv_heads(config, where, kind, heads)
    if heads % kv_heads:
        raise UserError(f"{heads} query heads cannot share {kv_heads} key-value heads", where=where)
    experts = _optional(config, where, "num_local_experts", "num_experts", "n_routed_experts") or 1
    routed = (_optional(config, where, "num_experts_per_tok") or 1) if experts > 1 else 1
    if routed > experts:
        raise UserError(f"num_experts_per_tok is {routed}, there are {experts} experts", where=where)
    ffn = _optional(config, where, "moe_intermediate_size") if experts > 1 else None
    window, full_layers = _window(config, where, layers)
    found = Architecture(
        layers=layers,
        hidden=hidden,
        ffn=ffn or _optional(config, where, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_optional(config, where, "head_dim") or max(1, hidden // heads),
        vocab=_number(config, where, "vocab_size"),
        gated=kind not in _PLAIN_MLP,
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
        experts=experts,
        experts_per_token=routed,
        shared_ffn=_shared_width(config, where, ffn or 0) if experts > 1 else 0,
        learned_positions=_positions(config, where) if kind in _LEARNED_POSITIONS else 0,
        sliding_window=window,
        full_attention_layers=full_layers,
        qkv_bias=bool(config.get("attention_bias", kind in _QKV_BIAS)),
        qk_norm=kind in _QK_NORM,
        norms_per_layer=4 if kind in _FOUR_NORMS else 2,
        context=_context(config, where),
        fused=(("qkv_proj",) if kind in _FUSED_QKV else ()) + (("gate_up_proj",) if kind in _FUSED_GATE_UP else ()),
    )
    if found.params > _MOST_PARAMS:
        raise UserError(f"{float(found.params):.3g} parameters: no such model", where=where)
    return found


def from_folder(folder: Path) -> Architecture:
    """Read `config.json` of a model folder. Raises UserError when there is none or it is not usable."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError("expected an object", where=str(path))
    return from_config(config, where=str(path))


def _optional(config: Mapping[str, Any], where: str, *names: str) -> int | None:
    """The first of these keys that is given; null and 0 are as if it were not. Raises UserError for anything but a whole
    number of at least 0."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and len(set(map(str, value))) == 1:  # one width for each layer
            value = value[0]
        if value is None or value == 0:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
            return value
        shown = f"{value!r:.40}"
        raise UserError(f"{name} must be a positive whole number up to {_MOST:g}, found {shown}", where=where)
    return None


def _number(config: Mapping[str, Any], where: str, *names: str) -> int:
    if (found := _optional(config, where, *names)) is not None:
        return found
    if given := next((name for name in names if config.get(name) is not None), None):
        raise UserError(f"{given} must be a positive whole number, found {config[given]!r}", where=where)
    raise UserError(f"no {names[0]}: not the configuration of a decoder-only model", where=where)


def _kv_heads(config: Mapping[str, Any], where: str, kind: str, heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    older = _optional(config, where, "num_kv_heads") if kind == "falcon" else None
    return _optional(config, where, "num_key_value_heads") or older or heads


def _shared_width(config: Mapping[str, Any], where: str, expert: int) -> int:
    """Width of the experts that all tokens pass through, together."""
    own = _optional(config, where, "shared_expert_intermediate_size")
    return own or expert * (_optional(config, where, "n_shared_experts", "num_shared_experts") or 0)


def _positions(config: Mapping[str, Any], where: str) -> int:
    """Rows of the table of learned positions (OPT keeps two more)."""
    rows = _optional(config, where, "n_positions", "max_position_embeddings") or 1024
    return rows + (2 if config.get("model_type") == "opt" else 0)


def _context(config: Mapping[str, Any], where: str) -> int | None:
    """Most tokens of prompt and answer; more by the factor of YaRN, where it is set."""
    most = _optional(config, where, "max_position_embeddings", "n_positions", "max_seq_len")
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if most is None or not isinstance(rope, Mapping) or "yarn" not in (rope.get("rope_type"), rope.get("type")):
        return most
    factor, base = rope.get("factor"), _optional(rope, where, "original_max_position_embeddings") or most
    return max(most, int(factor * base)) if isinstance(factor, int | float) and 1 <= factor < 1e4 else most


def _window(config: Mapping[str, Any], where: str, layers: int) -> tuple[int | None, int]:
    """(sliding window or None, layers with full attention)."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds and len(kinds) != layers:
        raise UserError(f"layer_types names {len(kinds)} layers, num_hidden_layers is {layers}", where=where)
    window = _optional(config, where, "sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None, 0
    if isinstance(kinds, list) and kinds:
        return window, sum(1 for kind in kinds if kind == "full_attention")
    pattern = _optional(config, where, "sliding_window_pattern") or _FULL_EVERY.get(str(config.get("model_type")))
    return window, layers // pattern if pattern else 0
