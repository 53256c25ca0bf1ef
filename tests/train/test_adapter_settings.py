"""Adapters of other origin that are gone on from, modules trained whole, and what pads."""

import json
import shutil

import pytest

from tunegate.core.commands import run as run_cli
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.train import model_loading, sft
from tunegate.train.cli import app
from tunegate.train.config import resolve as resolve_config

pytestmark = pytest.mark.usefixtures("one_thread")

DOTTED = ["self_attn.q_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": r".*self_attn\.(q|v)_proj"}, {"target_modules": DOTTED}, {"lora_alpha": 22.5}, {}],
    ids=["regex", "dotted", "alpha", "plain"],
)
def test_an_adapter_of_other_origin_is_gone_on_from(tiny_model, tiny_dataset, tmp_path, capsys, changes):
    """PEFT loads all of them; what ours would name its modules does not matter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    own = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **changes})
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, own).save_pretrained(tmp_path / "adapter")
    words = [str(tiny_dataset.path), "--model", str(tiny_model), "--adapter", str(tmp_path / "adapter"), "--max-steps", "1",
             "--out", str(tmp_path / "run"), "--json"]  # fmt: skip
    assert run_cli(app, prog="ft train", argv=words) == 0, capsys.readouterr().err
    after = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    for key in ("target_modules", "lora_alpha", "r"):
        before = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[key]
        assert sorted(after[key]) == sorted(before) if isinstance(before, list) else after[key] == before


def test_a_fraction_is_an_alpha_and_a_whole_number_stays_one():
    assert [resolve_config([("t", {"alpha": a})])[0].alpha for a in (22.5, 8.0, "16")] == [22.5, 8, 16]
    assert isinstance(resolve_config([("t", {"alpha": 8.0})])[0].alpha, int)


def _train(model, dataset, out, **changes):
    settings = {"model": str(model), "max_steps": 1, "save_steps": 0, "rank": 4, "validation_share": 0.0, **changes}
    return sft.train(
        dataset, resolve(str(model)), resolve_config([("test", settings)])[0], out, resume=False, force=False
    )


@pytest.mark.parametrize(
    ("wanted", "whole"),
    [
        ("norm", {"model.norm"}),
        ("model.norm", {"model.norm"}),
        ("lm_head", {"lm_head"}),
        ("input_layernorm", {f"model.layers.{n}.input_layernorm" for n in range(2)}),
    ],
)
def test_only_the_modules_that_are_named_are_trained_whole(makers, tiny_dataset, tmp_path, wanted, whole):
    """PEFT goes by the end of a name: `norm` was every norm of every layer."""
    from safetensors.torch import load_file

    model = makers.model(tmp_path / "model", tied=False)
    run = _train(model, tiny_dataset, tmp_path / "run", modules_to_save=[wanted])
    saved = {key for key in load_file(run.path / "adapter_model.safetensors") if "lora_" not in key}
    assert saved == {f"base_model.model.{name}.weight" for name in whole}
    again = _train(model, tiny_dataset, tmp_path / "again", adapter=str(run.path))
    assert {key for key in load_file(again.path / "adapter_model.safetensors") if "lora_" not in key} == saved


def test_a_module_that_is_not_there_is_refused(tiny_model, tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="the model has no module called 'orm'") as caught:
        _train(tiny_model, tiny_dataset, tmp_path / "run", modules_to_save=["orm"])
    assert "norm" in caught.value.hint


@pytest.fixture
def no_end(tiny_model, tmp_path):
    """The tiny model with a tokenizer that names no end of sequence and nothing that pads."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    path = model / "tokenizer_config.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("eos_token", "pad_token")})
    )
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    return model


@pytest.mark.parametrize("fast", [True, False])
def test_a_stop_token_pads_where_nothing_else_does(no_end, tiny_dataset, tmp_path, fast):
    """It ended in an internal error."""
    assert model_loading.load_tokenizer(resolve(str(no_end))).pad_token == "<|im_end|>"
    _train(no_end, tiny_dataset, tmp_path / "run", fast_cpu=fast)


@pytest.mark.parametrize("ends", [None, 100_000])
def test_where_nothing_pads_it_is_said(no_end, ends):
    (no_end / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match=r"no end-of-sequence token|no token that ends a sequence"):
        model_loading.load_tokenizer(resolve(str(no_end)))
