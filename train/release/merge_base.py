"""The base that an adapter is folded into: as it is, or as training saw it through NF4."""

import shutil
from pathlib import Path
from typing import Any

from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource
from tunegate.core.weight_files import indexed
from tunegate.train.lora_targets import is_within, towers_of
from tunegate.train.release import licences
from tunegate.train.release.merge_adapter import EMBEDDING, HEAD
from tunegate.train.release.prove_model import Source
from tunegate.train.release.tensor_files import WHOLE, TensorFiles

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def folder_of(base: ModelSource) -> Path:
    """The base's folder with its weights, of a hub id those that `weights_of` names, fetched. Raises UserError when it has none."""
    if base.path is not None:
        return base.path
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(base.location, revision=base.revision, allow_patterns=list(patterns)))

    try:
        place = fetch(WHOLE, "*.json", "*.jinja", *licences.LICENCE_FILES)
        if not (place / WHOLE).is_file():  # in shards, by an index; or under a name of its own
            fetch(*(indexed(place) or ["*.safetensors"]))
        return place
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the base cannot be fetched: {str(error).splitlines()[0]}", where=base.spec) from error


def copy_processors(base: Path, folder: Path) -> None:
    """What prepares images and sound for a base model that takes them; an engine that loads the release asks for it."""
    for name in PROCESSORS:
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)


def release_dtype(dtype: str) -> str:
    """Type of a release's tensor: the base's own where it has 16 bits; fp32 becomes bf16."""
    return "bfloat16" if dtype == "float32" else dtype


def original(files: TensorFiles, dtype: str = "bfloat16") -> Source:
    """The base's tensors as training had them: in the release's type, or fp32 as they are where `dtype`, the run's, is float32.
    An output matrix that has no tensor of its own is the embedding. Tensors that transformers names otherwise than their file, or
    puts together (the experts of a mixture), are taken from the whole model, which is loaded for them."""
    import torch

    loaded: dict[str, Any] = {}

    def read(name: str) -> Any:
        own = files.named(name)
        own = files.named(EMBEDDING) if name == HEAD and own not in files.specs else own
        if own not in files.specs and not loaded:
            loaded.update(_as_loaded(files.place))
        tensor = files.read(own) if own in files.specs else loaded[name]
        if dtype == "float32":
            return tensor
        return tensor.to(getattr(torch, release_dtype(str(tensor.dtype).removeprefix("torch."))))

    return read


def _as_loaded(folder: Path) -> dict[str, Any]:
    """Every tensor of a model folder by transformers' own names."""
    from transformers import AutoModelForCausalLM

    say("this architecture's files hold weights under other names than its model: it is loaded whole for the proof")
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False).state_dict())


def dequantized(files: TensorFiles, config: Path, dtype: str) -> Source:
    """The base as QLoRA trained on it: each linear layer's weights through NF4 with double quantization and back
    (Dettmers et al. 2023, arXiv 2305.14314, section 3), block 64, the output matrix left out, as transformers does it.

    dtype: the run's, in which the weights were when they were quantized and come back.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    through = {files.named(name) for name in linear_weights(config)}
    read = original(files, dtype)

    def given(name: str) -> Any:
        own = files.named(name)
        if own not in through:
            return read(name)
        tensor = (files.read(own) if own in files.specs else read(name)).to(getattr(torch, dtype)).contiguous()
        packed, state = quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
        return dequantize_4bit(packed, quant_state=state).reshape(tensor.shape)

    return given


def linear_weights(config: Path) -> set[str]:
    """Names of the weights of the model's linear layers; left out are its output matrix, and towers for images and sound, which
    training has not passed through: they stay as they are."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        shape = AutoConfig.from_pretrained(config, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=False)
    head, towers = model.get_output_embeddings(), towers_of(model)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not is_within(name, towers)
    }
