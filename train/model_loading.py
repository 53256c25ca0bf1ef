"""Loading a base model for training: precision, 4-bit quantization, adapter."""

import os
from typing import Any

from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.model_source import ModelSource, quiet_transformers
from tunegate.train.config import TrainConfig


def pick_device(config: TrainConfig) -> str:
    """`cuda` or `cpu`. Raises InfrastructureError when CUDA is asked for and not there."""
    import torch

    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise InfrastructureError(
            "no CUDA device is available", hint="--device cpu, or install the gpu extra on a CUDA machine"
        )
    return "cuda" if available and config.device != "cpu" else "cpu"


def load_tokenizer(source: ModelSource) -> Any:
    """The model's fast tokenizer, with a padding token.

    Raises UserError when the folder has none or it is not a fast one (offsets are needed to mask answers).
    """
    quiet_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer can be loaded: {_first_line(error)}", where=source.spec) from error
    if not tokenizer.is_fast:
        raise UserError("the tokenizer has no fast version, which masking needs", where=source.spec)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_ids(source: ModelSource, tokenizer: Any) -> list[int]:
    """Token ids that end generation: the generation config's, and the tokenizer's end of sequence."""
    from transformers import GenerationConfig

    ids: set[int] = set()
    try:
        declared = GenerationConfig.from_pretrained(source.location, revision=source.revision).eos_token_id
        ids |= {declared} if isinstance(declared, int) else set(declared or [])
    except OSError:
        pass
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise UserError("the model declares no end-of-sequence token", where=source.spec)
    return sorted(ids)


def load_base(source: ModelSource, config: TrainConfig, device: str, attention: str) -> Any:
    """The base model: bf16 for lora, 4-bit NF4 with double quantization for qlora (Dettmers et al. 2023, section 3),
    fp32 for full (its weights are the optimizer's master copy; the arithmetic is bf16 by autocast).

    Raises UserError when the model cannot be loaded.
    """
    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": torch.float32 if config.method == "full" else torch.bfloat16}
    if config.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": device if device == "cpu" else int(os.environ.get("LOCAL_RANK", "0"))}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.location, revision=source.revision, attn_implementation=attention, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"the model cannot be loaded: {_first_line(error)}", where=source.spec) from error
    model.config.use_cache = False
    return model


def with_adapter(model: Any, config: TrainConfig) -> Any:
    """Wrap the base with a fresh LoRA adapter whose weights are fp32. Raises UserError for targets it does not have."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [t for t in config.targets if t not in names and t != "all-linear"]
    if missing:
        from tunegate.core.errors import nearest

        raise UserError(
            f"the model has no module called {missing[0]!r}", where="targets", hint=nearest(missing[0], sorted(names))
        )
    if config.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets: Any = "all-linear" if "all-linear" in config.targets else list(config.targets)
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, adapter, autocast_adapter_dtype=True)
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    say(f"adapter: {trainable:,} trainable parameters in fp32")
    return wrapped


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
