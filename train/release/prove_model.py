"""A model whose weights are given one module at a time, so that it answers in fp32 in whatever memory there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunegate.core.errors import InfrastructureError
from tunegate.core.model_source import quiet_transformers
from tunegate.serve.preflight import memory_limits
from tunegate.train.model_loading import attention_of

Source = Callable[[str], Any]  # a tensor's name -> its value, any float type


def fits(parameters: int) -> bool:
    """Whether the whole model in fp32 takes less than 40 % of the memory that is free now."""
    return parameters * 4 < 0.4 * min(memory_limits())


def need_memory(wanted: int, what: str) -> None:
    """Raises InfrastructureError when fewer than `wanted` bytes are free, or allowed to this process."""
    available, limit = memory_limits()
    if wanted > min(available, limit):
        raise InfrastructureError(
            f"{wanted / 1e9:.1f} GB of memory are needed for {what}, {min(available, limit) / 1e9:.1f} GB are there",
            hint="close what holds memory, or take a larger machine",
        )


def given(
    config: Path, source: Source, *, keep: bool, adapter: Path | None = None, vocabulary: int | None = None
) -> Any:
    """A causal model of the shape of `config`'s folder with weights from `source`, with an adapter of PEFT's on top.

    keep: weights stay once they were needed; else each module's are given back after it ran (DoRA's too, whose layers
    look at their base's weights). vocabulary: rows of the embedding, where tokens were added to the base's.
    """
    quiet_transformers()
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(config, trust_remote_code=False)
    if vocabulary is not None:
        shape.vocab_size = vocabulary
    if hasattr(shape, "quantization_config"):
        del shape.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            shape, attn_implementation=attention_of(shape), trust_remote_code=False
        )
    names = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        _without_memory(module)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    model.eval()
    _hook(model, names, source, keep=keep)
    return model


def _with_adapter(model: Any, folder: Path) -> Any:
    """PEFT's model, the adapter in fp32. PEFT casts an adapter to its base's type, and an adapter's file may hold base layers
    (embeddings) in bf16: they are left out the second time."""
    from peft import PeftModel
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    base = list(model.modules())
    wrapped = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True)
    for module in base:
        _without_memory(module)
    weights = {k: v for k, v in load_peft_weights(str(folder), device="cpu").items() if ".base_layer." not in k}
    set_peft_model_state_dict(wrapped, weights, low_cpu_mem_usage=True)
    return wrapped


def _without_memory(module: Any) -> None:
    """Its own parameters become fp32 CPU tensors whose elements are one zero: PEFT lays an adapter where its base is, and it
    has to be a place that computes."""
    import torch

    for key, parameter in list(module.named_parameters(recurse=False)):
        module._parameters[key] = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)


def _hook(model: Any, names: dict[int, str], source: Source, *, keep: bool) -> None:
    from peft.tuners.lora import LoraLayer

    inside = set()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            inside.add(id(module.base_layer))
            _on_call(module, [(module.base_layer, names[id(module.base_layer)])], source, keep=keep)
    for module in model.modules():
        if id(module) in names and id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
            _on_call(module, [(module, names[id(module)])], source, keep=keep)


def _on_call(module: Any, owners: list[tuple[Any, str]], source: Source, *, keep: bool) -> None:
    import torch

    empty = {(id(owner), key): p for owner, _ in owners for key, p in owner.named_parameters(recurse=False)}
    there: set[int] = set()

    def fill(*_: Any) -> None:
        for owner, name in owners:
            if id(owner) in there:
                continue
            for key, _ in list(owner.named_parameters(recurse=False)):
                value = source(f"{name}.{key}" if name else key).float()
                owner._parameters[key] = torch.nn.Parameter(value, requires_grad=False)
            there.add(id(owner))

    def drain(*_: Any) -> None:
        for owner, _name in owners:
            for key in list(owner._parameters):
                if owner._parameters[key] is not None:
                    owner._parameters[key] = empty[(id(owner), key)]
            there.discard(id(owner))

    module.register_forward_pre_hook(fill)
    if not keep:
        module.register_forward_hook(drain)
