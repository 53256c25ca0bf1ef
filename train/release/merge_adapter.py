"""An adapter's arithmetic, one tensor at a time: what each of the base's tensors becomes.

LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W + s B A with s = alpha / r, or alpha / sqrt(r) for rsLoRA
(Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2). DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): that, each output
row scaled to the norm m. All in fp32.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.serve.served_model import ADAPTER
from tunegate.train.adapters import WEIGHTS
from tunegate.train.release.tensor_files import Spec, TensorFiles

PREFIX = "base_model.model."
# What changes the arithmetic in ways that are not merged here.
UNMERGED = (
    "fan_in_fan_out", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "lora_bias",
)  # fmt: skip
# Starts that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change the base's own weights in memory.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Update:
    """A low-rank change of one tensor. names: of A (r, in) and B (out, r) in the adapter's file, and of the magnitudes (out)
    for DoRA. embedding: A and B are those of an embedding, whose change is (B A)^T."""

    a: str
    b: str
    magnitude: str | None
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter read from its folder. updates: by the base's tensor name. whole: tensors that stand in its file whole
    (modules_to_save, resized embeddings), by the base's tensor name. named: what the base's files, whose names these are, call a
    tensor of the model."""

    files: TensorFiles
    updates: dict[str, Update]
    whole: dict[str, str]
    named: Callable[[str], str]

    def changed(self) -> set[str]:
        """Names of the base's tensors that change."""
        return {*self.updates, *self.whole}

    def shape(self, name: str, base: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor `name` after the adapter; more rows than the base's where tokens were added."""
        return self.files.specs[self.whole[name]].shape if name in self.whole else base

    def apply(self, name: str, weight: Any) -> Any:
        """The tensor `name`, the files' or the model's, after the adapter, fp32; weight: the base's, any float type (not looked at
        where the adapter's file has the module whole)."""
        import torch

        name = self.named(name)
        merged = (self.files.read(self.whole[name]) if name in self.whole else weight).float()
        update = self.updates.get(name)
        if update is None:
            return merged
        a, b = self.files.read(update.a).float(), self.files.read(update.b).float()
        if update.embedding:
            return merged + update.scale * (b @ a).T
        merged = torch.addmm(merged, b, a, alpha=update.scale)
        if update.magnitude is not None:
            norm = torch.linalg.norm(merged, dim=1)
            merged *= (self.files.read(update.magnitude).float() / norm)[:, None]
        return merged


def read(folder: Path, base: dict[str, Spec], named: Callable[[str], str] = str) -> Adapter:
    """Read an adapter and lay it on the base's tensors. named: what the base's files call a tensor of the model.

    Raises UserError for kinds that are not merged (named), for a tensor the base does not have, and for shapes that do
    not fit.
    """
    config = read_json(folder / ADAPTER)
    _check_kind(config, folder / ADAPTER)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"no {WEIGHTS}: an adapter in another format (a pickle) is not read",
            where=str(folder),
            hint="save it with PEFT's safe_serialization",
        )
    files = TensorFiles(folder / WEIGHTS)
    known = {**base}
    if HEAD not in known and EMBEDDING in known:  # tied: the output matrix is the embedding
        known[HEAD] = known[EMBEDDING]
    updates: dict[str, Update] = {}
    whole: dict[str, str] = {}
    for key in files.specs:
        module, part = _target(key)
        name = named(module)
        if part == "whole":
            whole[name] = key
        elif part in ("A", "embedding_A"):
            updates[name] = _update(key, module, files, config, embedding=part == "embedding_A")
        elif part == "unknown":
            raise UserError(f"the adapter's tensor {key} is of a kind that is not merged", where=str(folder / WEIGHTS))
    for name in (*updates, *whole):
        if name not in known:
            raise UserError(
                f"the adapter changes {name}, which the base's files do not have under that name",
                where=str(folder / WEIGHTS),
                hint="serve base and adapter: ft merge --keep-adapter",
            )
    _check_shapes(updates, files, known, folder / WEIGHTS)
    return Adapter(files, updates, whole, named)


def _check_kind(config: dict[str, Any], where: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"the adapter is of kind {config.get('peft_type')}; LoRA, DoRA and rsLoRA are merged", where=str(where)
        )
    for key in UNMERGED:
        if config.get(key):
            raise UserError(
                f"the adapter uses {key}, which is not merged", where=str(where), hint="ft merge --keep-adapter"
            )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise UserError(
            f"the adapter began from {start}, which changes the base's own weights: merging it would double that",
            where=str(where),
            hint="save it converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)",
        )


def _target(key: str) -> tuple[str, str]:
    """(the base's tensor, which part of the update), from a name in the adapter's file."""
    path = key.removeprefix(PREFIX)
    patterns = {
        r"(.+)\.lora_A\.weight": "A", r"(.+)\.lora_B\.weight": "B", r"(.+)\.lora_magnitude_vector(\.weight)?": "magnitude",
        r"(.+)\.lora_embedding_A": "embedding_A", r"(.+)\.lora_embedding_B": "embedding_B",
    }  # fmt: skip
    for pattern, part in patterns.items():
        if found := re.fullmatch(pattern, path):
            return f"{found[1]}.weight", part
    if "lora_" in path or "token_adapter" in path:
        return path, "unknown"
    if ".original_module." in path:  # the base's own, beside the module that was trained in its place
        return path, "base"
    # a module saved whole; PEFT writes it under the module's own name, and an embedding also under its place in the wrapper
    return re.sub(r"\.(base_layer|modules_to_save\.default|modules_to_save)\.", ".", path), "whole"


def _update(key: str, name: str, files: TensorFiles, config: dict[str, Any], *, embedding: bool) -> Update:
    module = name.removesuffix(".weight")
    b = key.replace("lora_embedding_A", "lora_embedding_B") if embedding else key.replace(".lora_A.", ".lora_B.")
    rank = files.specs[key].shape[0]
    alpha = float(_for_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    stem = key.removesuffix(".lora_A.weight")
    magnitudes = (f"{stem}.lora_magnitude_vector", f"{stem}.lora_magnitude_vector.weight")
    magnitude = next((m for m in magnitudes if m in files.specs), None)
    if embedding and config.get("use_dora"):
        raise UserError(
            f"the adapter uses DoRA on the embedding {module}, which is not merged",
            where=str(files.place),
            hint="train without it, or leave embed_tokens out of the targets",
        )
    if b not in files.specs or (config.get("use_dora") and magnitude is None):
        raise UserError(f"the adapter's tensors for {module} are not all there", where=str(files.place))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Update(a=key, b=b, magnitude=magnitude, scale=scale, embedding=embedding)


def _for_module(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)


def _check_shapes(updates: dict[str, Update], files: TensorFiles, known: dict[str, Spec], where: Path) -> None:
    for name, update in updates.items():
        inputs, outputs = files.specs[update.a].shape[1], files.specs[update.b].shape[0]
        shape = (inputs, outputs) if update.embedding else (outputs, inputs)
        if shape != known[name].shape or files.specs[update.b].shape[1] != files.specs[update.a].shape[0]:
            raise UserError(
                f"the adapter's change of {name} is for a shape of {shape}, the base's is {known[name].shape}",
                where=str(where),
                hint="it was trained on another base",
            )
