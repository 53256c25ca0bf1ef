"""Before any work: is this model one that can be quantized so, with which group size, and do memory and disk hold it?"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.architecture import from_config
from tunegate.core.artifacts import Release
from tunegate.core.console import say
from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.files import need_disk, read_json
from tunegate.core.machine import gpus
from tunegate.train.release.prove_model import need_memory

GROUP_SIZES = (128, 64, 32)
# Layers narrower than this lose visibly more at 4 bits, so they get the smallest group.
NARROW = 1024
# Classes llm-compressor 0.14 has layer mappings for (its modifiers/transform/awq/mappings.py) and vLLM serves as W4A16.
LLMCOMPRESSOR = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Cohere", "Cohere2", "Granite", "Olmo2", "Olmo3", "Exaone4")  # fmt: skip
# AutoAWQ 0.2.9's own table (awq/models/auto.py), of those that transformers 4.51.3 has.
AUTOAWQ = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Cohere")
CLIP_OUTPUTS = 64
BACKENDS = {"llmcompressor": LLMCOMPRESSOR, "autoawq": AUTOAWQ}
# Options that mean nothing to a scheme, and to AutoAWQ, whose search and rounding are its own.
UNREAD: dict[str, tuple[str, ...]] = {
    "awq": (),
    "fp8": ("group_size", "symmetric", "search", "grid", "rounding"),
    "w8a8": ("group_size", "symmetric", "search", "grid"),
}
UNREAD_BY_AUTOAWQ = ("search", "grid", "rounding")
# What is quantized: AWQ W4A16 (4-bit weights), fp8 (weights and activations, 8 bits), W8A8 (int8 weights and activations).
SCHEMES = ("awq", "fp8", "w8a8")
BYTES_PER_WEIGHT = {"awq": 0.6, "fp8": 1.01, "w8a8": 1.01}


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """One quantization. rows: calibration rows, from the training part only. symmetric: no zero points.

    search: `gram` (errors at the linear layers, from the second moment of their inputs) or `module` (llm-compressor's
    own: errors at the parent module, several times slower). grid: candidates for the scale's exponent. rounding: `gptq`
    (each column's rounding error is made up for in the columns after it: Frantar et al. 2022, arXiv 2210.17323) or
    `nearest` (faster, loses more). proof_rows: held-out answers that are scored before and after.
    """

    backend: str = "llmcompressor"
    scheme: str = "awq"
    rows: int = 128
    group_size: int | None = None
    symmetric: bool = False
    search: str = "gram"
    grid: int = 20
    rounding: str = "gptq"
    seed: int = 0
    proof_rows: int = 16


def passes(config: QuantizeConfig) -> int:
    """How often the worker goes through the layers."""
    return 2 if config.rounding == "gptq" and config.backend == "llmcompressor" else 1


def check_config(config: QuantizeConfig, given: Collection[str] = ()) -> None:
    """Refuse choices that do not go together. given: options that were named, whatever their value. Raises UsageError."""
    choices = {
        "backend": tuple(BACKENDS),
        "scheme": SCHEMES,
        "search": ("gram", "module"),
        "rounding": ("gptq", "nearest"),
    }
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise UsageError(f"unknown {name} {value!r}", hint=nearest(value, list(known)))
    if config.backend == "autoawq" and config.scheme != "awq":
        raise UsageError("--backend autoawq makes AWQ only", hint=f"--backend llmcompressor --scheme {config.scheme}")
    if config.backend == "autoawq" and config.symmetric:
        raise UsageError("AutoAWQ's format always has zero points", hint="--backend llmcompressor --symmetric")
    by_backend = UNREAD_BY_AUTOAWQ if config.backend == "autoawq" else ()
    changed = [spec.name for spec in dataclasses.fields(config) if getattr(config, spec.name) != spec.default]
    for name in (n for n in (*UNREAD[config.scheme], *by_backend) if n in (*given, *changed)):
        reader = "--backend autoawq" if name in by_backend else f"--scheme {config.scheme}"
        where = "--" + name.replace("_", "-")
        raise UsageError(f"means nothing to {reader}", where=where, hint="leave it out")


def check_release(release: Release, config: QuantizeConfig) -> tuple[dict[str, Any], int | None]:
    """(the model's config, group size; None where a scale is a whole row's).

    Raises UserError for a release that is quantized already or holds an adapter only, an architecture the backend has no
    mappings for, and a group size that does not divide.
    """
    if release.quantization != "none":
        raise UserError(f"the release is quantized already ({release.quantization})", where=str(release.path))
    if release.manifest.facts.get("adapter"):
        raise UserError(
            "the release is an adapter on its base: there are no merged weights to quantize",
            where=str(release.path),
            hint="ft merge without --keep-adapter",
        )
    shape = read_json(release.path / "config.json")
    architecture = (shape.get("architectures") or ["unknown"])[0]
    known = BACKENDS[config.backend]
    if architecture.removesuffix("ForCausalLM") not in known:
        raise UserError(
            f"AWQ has no layer mappings for {architecture} in {config.backend}"
            if config.scheme == "awq"
            else f"{architecture} is not among the architectures that are quantized here",
            where=str(release.path),
            hint=f"known: {', '.join(known)}; serve the merged release in bf16",
        )
    if config.backend == "autoawq":
        _check_clipping(shape)
    return shape, pick_group_size(shape, config.group_size) if config.scheme == "awq" else None


def _check_clipping(shape: dict[str, Any]) -> None:
    """AutoAWQ's clip search takes outputs 64 at a time (awq/quantize/quantizer.py, _compute_best_clip); it fails after the
    first layer's search where they do not divide. Raises UserError."""
    odd = {name: outputs for name, (_, outputs) in from_config(shape).linear_shapes.items() if outputs % CLIP_OUTPUTS}
    if odd:
        raise UserError(
            f"AutoAWQ needs layer outputs that are multiples of {CLIP_OUTPUTS}; "
            + ", ".join(f"{name} has {outputs}" for name, outputs in odd.items()),
            hint="--backend llmcompressor",
        )


def pick_group_size(shape: dict[str, Any], wanted: int | None) -> int:
    """Weights that share one scale: the largest of 128, 64, 32 that divides every layer's inputs; 32 for narrow models.

    vLLM's kernels take these three, inputs and outputs that are multiples of 32, and an even number of groups. Raises
    UserError when `wanted`, or every candidate, does not fit.
    """
    hidden, ffn = int(shape["hidden_size"]), int(shape["intermediate_size"])
    heads = int(shape["num_attention_heads"])
    inputs = {hidden, ffn, heads * int(shape.get("head_dim") or hidden // heads)}
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in inputs)]
    if wanted is not None:
        if wanted not in GROUP_SIZES or wanted not in fitting:
            raise UserError(
                f"group size {wanted} does not fit layer widths {sorted(inputs)}",
                where="--group-size",
                hint=f"possible here: {', '.join(map(str, fitting)) or 'none'}",
            )
        return wanted
    if not fitting:
        raise UserError(
            f"no group size of {GROUP_SIZES} divides the layer widths {sorted(inputs)}", hint="serve in bf16"
        )
    return fitting[-1] if hidden < NARROW else fitting[0]


def check_room(shape: dict[str, Any], config: QuantizeConfig, tokens: int, out: Path, scratch: Path) -> None:
    """Say what memory and disk are needed; raises InfrastructureError where they are not there.

    The model in bf16, the calibration tokens' activations at two layers and at the widest one, and for `gptq` and `gram` a
    second moment of the widest inputs in fp32 with its inverse.
    """
    model = from_config(shape)
    activations = tokens * (4 * model.hidden + 2 * model.ffn) * 2
    moments = 0 if config.scheme == "fp8" else 3 * 4 * max(model.hidden, model.ffn) ** 2
    memory = int(model.params * 2 + activations + moments + 1e9)  # 1e9: Python, torch and the quantizer's own libraries
    disk = int(model.linear_params * BYTES_PER_WEIGHT[config.scheme] + (model.params - model.linear_params) * 2)
    say(f"quantizing takes about {memory / 1e9:.1f} GB of memory and {disk / 1e9:.2f} GB of disk")
    need_memory(memory, "quantizing")
    for place in (out.parent, scratch):
        need_disk(place, disk, "the quantized model", "choose another place")
    if config.scheme == "fp8" and not gpus():
        say(
            "fp8 is for CUDA (compute capability 8.9 and later): this machine has no GPU to serve it on; w8a8 serves on CPUs"
        )
