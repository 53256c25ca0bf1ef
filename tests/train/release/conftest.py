"""What the tests of merging share: an adapter of any kind on a small model, as a finished run."""

import json
import shutil
from pathlib import Path

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.chat_template import probe_digest, template_digest
from tunegate.core.model_source import resolve

PROMPTS = ("What is 7 plus 7?", "What is the capital of France?", '{"x": 1}', "system user assistant")


def make_run(base: Path, out: Path, *, size: float = 0.05, method: str = "lora", prepare=None, **options) -> Run:
    """A run whose adapter's weights are random, of standard deviation `size` around where PEFT starts them. options: of PEFT's
    LoraConfig. prepare: called with the base in memory before the adapter is laid on it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(str(base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if prepare is not None:
        prepare(model)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    wrapped = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(7)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + torch.randn_like(parameter, dtype=torch.float32) * size
    out.mkdir(parents=True)
    wrapped.save_pretrained(out)
    (out / "README.md").unlink()
    tokenizer.save_pretrained(out)
    prompts = [{"messages": [], "tools": None, "ids": tokenizer(text)["input_ids"]} for text in PROMPTS]
    (out / "probe.json").write_text(json.dumps({"prompts": prompts}))
    facts = {"method": method, "base": str(base), "base_name": base.name, "license": None,
             "template_digest": template_digest(tokenizer), "probe_digest": probe_digest(tokenizer)}  # fmt: skip
    manifest.write(out, "run", inputs=[source.as_input()], config={}, facts=facts)
    return Run.open(out)


@pytest.fixture
def adapter_run(tiny_model, tmp_path):
    """Makes a run with an adapter of a kind: `adapter_run(name, use_dora=True)`; on the tiny model, or on `base`."""

    def make(name, *, base=None, **options):
        return make_run(base or tiny_model, tmp_path / name, **options)

    return make


@pytest.fixture
def own_base(tiny_model, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "own-base")
