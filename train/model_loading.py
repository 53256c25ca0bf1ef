"""Loading a base model for training: precision, 4-bit quantization, adapter."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tunegate.core.chat_template import default_template
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError, first_line, nearest
from tunegate.core.files import home_path
from tunegate.core.machine import bf16_flags
from tunegate.core.model_source import ModelSource, hint_of, quiet_transformers
from tunegate.train import adapters
from tunegate.train.config import TrainConfig
from tunegate.train.lora_targets import targets_of, towers_of


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
    """The model's fast tokenizer, with a padding token: its own, else the one that ends a sequence, else a stop token.

    Raises UserError when the folder has none, it is not a fast one (offsets are needed to mask answers), or nothing can pad.
    """
    quiet_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        problem = f"no tokenizer can be loaded: {first_line(error)}"
        raise UserError(problem, where=source.spec, hint=hint_of(error)) from error
    if not tokenizer.is_fast:
        raise UserError("the tokenizer has no fast version, which masking needs", where=source.spec)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or _stop_token(source, tokenizer)
    template = default_template(tokenizer.chat_template)
    tokenizer.chat_template = without_generation_tags(template) if template else None
    return tokenizer


def without_generation_tags(template: str) -> str:
    """The template with `{% generation %}`, a tag that only transformers knows, as a condition that always holds.

    It renders the same text, white space included, in every Jinja2; a release must not hold the tag.
    """
    template = re.sub(r"(\{%[-+]?\s*)generation\s*:?(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)


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


def _stop_token(source: ModelSource, tokenizer: Any) -> str:
    tokens = tokenizer.convert_ids_to_tokens(stop_ids(source, tokenizer))
    token = next((str(token) for token in tokens if token), None)
    if token is None:
        hint = "name an eos_token of its vocabulary in tokenizer_config.json"
        raise UserError("the tokenizer has no token that ends a sequence", where=source.spec, hint=hint)
    return token


def settled(config: TrainConfig) -> TrainConfig:
    """The same with the `dtype` that `auto` means on this machine: float32 on a processor without bfloat16."""
    if config.dtype != "auto":
        return config
    slow = pick_device(config) == "cpu" and not bf16_flags()
    return replace(config, dtype="float32" if slow else "bfloat16")


def arithmetic(config: TrainConfig) -> Any:
    """torch's dtype of the products, and of weights that are not trained."""
    import torch

    return torch.float32 if settled(config).dtype == "float32" else torch.bfloat16


def attention_of(architecture: Any) -> str | None:
    """The attention of transformers that computes what the engine serves. None: its own choice, SDPA where the model has it;
    `eager` where scores are capped (Gemma 2), which its SDPA silently leaves out and vLLM computes."""
    return "eager" if getattr(architecture, "attn_logit_softcapping", None) else None


def load_base(source: ModelSource, config: TrainConfig, device: str, attention: str | None = None) -> Any:
    """The base model: bf16 (or `dtype`) for lora, 4-bit NF4 with double quantization for qlora (Dettmers et al. 2023, section 3),
    fp32 for full (its weights are the optimizer's master copy; the arithmetic is bf16 by autocast). attention: by name;
    without one what `attention_of` says.

    Raises UserError when the model cannot be loaded.
    """
    quiet_transformers()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": torch.float32 if config.method == "full" else arithmetic(config)}
    if config.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arithmetic(config),
        )
        options["device_map"] = {"": device if device == "cpu" else int(os.environ.get("LOCAL_RANK", "0"))}
    try:
        shape = AutoConfig.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            revision=source.revision,
            attn_implementation=attention or attention_of(shape),
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        problem = f"the model cannot be loaded: {first_line(error)}"
        raise UserError(problem, where=source.spec, hint=hint_of(error)) from error
    model.config.use_cache = False
    return model


def with_adapter(model: Any, config: TrainConfig) -> Any:
    """Wrap the base with a fresh LoRA adapter whose weights are fp32, or with the one to go on from.

    Raises UserError for modules the base does not have and for an adapter that is of another kind or does not fit.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if not config.adapter:
        targets, whole = targets_of(model, config.targets), _whole_modules(model, config.modules_to_save)
    if config.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if config.adapter:
        wrapped = adapters.load(model, home_path(config.adapter))
    else:
        adapter = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets,
            exclude_modules="|".join(rf"{re.escape(tower)}\..*" for tower in towers_of(model)) or None,
            use_dora=config.use_dora,
            use_rslora=config.use_rslora,
            modules_to_save=whole or None,
            # One matrix is input embedding and output: both stay one, or the merged model would be wrong.
            ensure_weight_tying=bool(whole and model.config.tie_word_embeddings),
            task_type="CAUSAL_LM",
        )
        try:
            wrapped = get_peft_model(model, adapter, autocast_adapter_dtype=True)
        except ValueError as error:  # modules that PEFT does not adapt, such as Mamba's
            raise UserError(f"no adapter can be laid on this model: {first_line(error)}", where="targets") from None
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    say(f"adapter: {trainable:,} trainable parameters in fp32")
    return wrapped


def _whole_modules(model: Any, wanted: Iterable[str]) -> list[str]:
    """The modules to train whole, as PEFT takes them: it goes by the end of a name, so where `norm` would also be
    `input_layernorm`, by whole names. Raises UserError for a module that is not there."""
    names = [name for name, _ in model.named_modules()]
    found: list[str] = []
    for end in wanted:
        own = [name for name in names if f".{name}".endswith(f".{end}")]
        if not own:
            hint = nearest(end, sorted({name.rpartition(".")[2] for name in names} - {""}))
            raise UserError(f"the model has no module called {end!r}", where="modules_to_save", hint=hint)
        found += [end] if own == [name for name in names if name.endswith(end)] else own
    return found
