"""Architectures other than Llama, tiny and with their own chat templates: adapters, their merge, attention as it is served."""

import json
from importlib.resources import files

import pytest

from tunegate.core.artifacts import Dataset
from tunegate.core.commands import run as run_cli
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.cli import app
from tunegate.train.config import resolve as resolve_config
from tunegate.train.lora_targets import projections_of
from tunegate.train.release.merge import merge

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 1024, "head_dim": 16}  # fmt: skip
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Class of the config, what it has beside SHAPE, template, the token that ends a turn, the modules that LoRA adapts.
FAMILIES = {
    "phi3": ("Phi3Config", {}, "phi3", "<|end|>", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "qwen3": ("Qwen3Config", {}, "qwen3", "<|im_end|>", None),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16}, "gemma", "<end_of_turn>", None),
    "mixtral": ("MixtralConfig", MIXTURE, "llama3", "<|eot_id|>", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "gpt-oss": ("GptOssConfig", {**MIXTURE, "sliding_window": 64}, "gptoss", "<|return|>", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "gpt-neox": ("GPTNeoXConfig", {}, "llama3", "<|eot_id|>", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_auto_adjust_ff_dim": False},
             "lfm2_v2", "<|im_end|>", {"q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3"}),
}  # fmt: skip
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def make(makers, folder, config, extra, template, end):
    import torch
    import transformers

    text = (files("trl") / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = makers.tokenizer(text, ("<|im_start|>", "<think>", "</think>", end), end)
    tokenizer.bos_token = "<|im_start|>"
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    shape = getattr(transformers, config)(**{**SHAPE, **extra, **ids, "vocab_size": len(tokenizer)})
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model, dataset: Dataset, out, **changes):
    settings = {"model": str(model), "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                "validation_share": 0.1, "save_steps": 0, "rank": 4, "alpha": 8, "learning_rate": 5e-3, **changes}  # fmt: skip
    config = resolve_config([("test", settings)])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=False, force=False)


@pytest.fixture
def dataset(makers, tmp_path):
    rows = makers.rows(20)
    return makers.dataset(tmp_path / "data", rows[:14], rows[14:])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_trained_and_merged(makers, dataset, tmp_path, name):
    *made, adapted = FAMILIES[name]
    model = make(makers, tmp_path / "model", *made)
    run = train(model, dataset, tmp_path / "run")
    config = json.loads((run.path / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == (adapted or ALL)
    release = merge(run, resolve(str(model)), tmp_path / "release", force=False)
    assert release.manifest.facts["merge"]["same_next_token_share"] > 0.95


def seeing(name):
    """The config of a model that takes images too, whose files have other names than what is trained."""
    import transformers

    text = {**SHAPE, "vocab_size": 400}
    eyes = {"hidden_size": 32, "intermediate_size": 64}
    if name == "gemma3":
        eyes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        text |= {"query_pre_attn_scalar": 16, "sliding_window": 64}
        return transformers.Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4)
    text["layer_types"] = ["linear_attention", "full_attention"]
    return transformers.Qwen3_5Config(
        text_config=text, vision_config={**eyes, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("name", "template", "end"), [("gemma3", "gemma3", "<end_of_turn>"), ("qwen3.5", "qwen3", "<|im_end|>")]
)
def test_the_text_of_a_model_with_eyes_is_adapted_and_merged(makers, dataset, tmp_path, name, template, end, method):
    """Gemma 3 from 4B on, and Qwen3.5, come as such: nothing is laid on the tower, and the release has the base's own names."""
    import torch
    import transformers
    from safetensors.torch import load_file

    text = (files("trl") / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = makers.tokenizer(text, ("<|im_start|>", "<think>", "</think>", end), end)
    tokenizer.bos_token = "<|im_start|>"
    shape = seeing(name)
    for part in (shape, shape.text_config):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = 0, tokenizer.eos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    model = tmp_path / "model"
    transformers.AutoModelForImageTextToText.from_config(shape).save_pretrained(model)
    tokenizer.save_pretrained(model)
    run = train(model, dataset, tmp_path / "run", method=method)
    assert not any("vis" in key for key in load_file(run.path / "adapter_model.safetensors"))
    release = merge(run, resolve(str(model)), tmp_path / "release", force=False)
    before, after = load_file(model / "model.safetensors"), load_file(release.path / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key].to(after[key].dtype), after[key])}
    assert changed
    assert not any("vis" in key for key in changed)
    assert release.manifest.facts["merge"]["unrounded_difference"] < 1e-3
    transformers.AutoModelForImageTextToText.from_pretrained(release.path)


def test_renamed_projections_and_those_it_lacks_are_said(makers, dataset, tmp_path, capsys):
    *made, _ = FAMILIES["gpt-neox"]
    train(make(makers, tmp_path / "m", *made), dataset, tmp_path / "run", targets=["q_proj", "o_proj"])
    said = " ".join(capsys.readouterr().err.split())
    assert "names of the projections: q_proj is query_key_value, o_proj is dense" in said
    *made, _ = FAMILIES["mixtral"]
    train(make(makers, tmp_path / "n", *made), dataset, tmp_path / "other")
    assert "not adapted, for the model has no such linear layers: gate_proj, up_proj, down_proj" in " ".join(
        capsys.readouterr().err.split()
    )


def test_where_no_projection_is_there_the_linear_layers_are_named(makers, dataset, tmp_path):
    *made, _ = FAMILIES["gpt-neox"]
    model = make(makers, tmp_path / "m", "GPTNeoXConfig", *made[1:])
    with pytest.raises(UserError, match="no module called 'up'") as caught:
        train(model, dataset, tmp_path / "run", targets=["up"])
    assert "dense" in caught.value.hint


def test_capped_scores_are_capped_in_training(makers, dataset, tmp_path):
    """Gemma 2: transformers' SDPA leaves the cap out and says nothing; the engine serves with it."""
    import torch
    from transformers import AutoModelForCausalLM

    *made, _ = FAMILIES["gemma2"]
    model = make(
        makers,
        tmp_path / "m",
        made[0],
        {**made[1], "attn_logit_softcapping": 0.02, "initializer_range": 0.5},
        *made[2:],
    )
    ids = torch.arange(2, 40).unsqueeze(0)
    eager, sdpa = (
        AutoModelForCausalLM.from_pretrained(model, attn_implementation=kind)(input_ids=ids).logits
        for kind in ("eager", "sdpa")
    )
    assert not torch.allclose(eager, sdpa, atol=1e-2), "the two differ, or this test shows nothing"
    assert train(model, dataset, tmp_path / "run", method="full").manifest.facts["attention"] == "eager"
    plain = make(
        makers, tmp_path / "p", made[0], {**made[1], "attn_logit_softcapping": None, "sliding_window": 64}, *made[2:]
    )
    assert train(plain, dataset, tmp_path / "other", method="full").manifest.facts["attention"] == "sdpa"


def test_token_ids_beyond_the_embeddings_are_refused(makers, dataset, tmp_path):
    model = makers.model(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**config, "vocab_size": 100})).save_pretrained(model)
    with pytest.raises(
        UserError, match=r"the tokenizer makes the token id \d+, the model has embeddings for ids below 100"
    ):
        train(model, dataset, tmp_path / "run", method="full")


@pytest.mark.parametrize(
    ("wanted", "mixture", "counted"),
    [
        (("q_proj", "v_proj"), False, {"q_proj", "v_proj"}),
        (("qkv_proj", "down_proj"), False, {"q_proj", "k_proj", "v_proj", "down_proj"}),
        (("all-linear",), False, ALL),
        (("in_proj",), False, ALL),
        (("q_proj", "up_proj"), True, {"q_proj"}),
        (("up_proj",), True, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_the_forecast_counts_what_the_names_stand_for(wanted, mixture, counted):
    assert set(projections_of(wanted, mixture=mixture)) == counted


def test_a_models_own_names_pass_the_preflight(makers, dataset, tmp_path, capsys):
    """They were refused before the model was looked at: Phi-3 had no way to an adapter."""
    *made, _ = FAMILIES["phi3"]
    model = make(makers, tmp_path / "m", *made)
    words = [
        str(dataset.path),
        "--model",
        str(model),
        "--targets",
        "qkv_proj",
        "--out",
        str(tmp_path / "o"),
        "--dry-run",
        "--json",
    ]
    assert run_cli(app, prog="ft train", argv=words) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["memory_gb"]
