import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.advisor.models import find, known_models
from tunegate.core.architecture import Architecture, from_config, from_folder
from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR

LLAMA_31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_llama_31_8b_counts_are_exact():
    a = from_config(LLAMA_31_8B)
    trainable = a.lora_params(16, ALL_LINEAR)
    assert a.params == 8_030_261_248
    assert trainable == 41_943_040
    assert a.params + trainable == 8_072_204_288
    assert a.kv_bytes_per_token() == 131_072


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("SmolLM2-135M", 0.134515), ("Llama-3.2-3B", 3.21275), ("Qwen2.5-7B", 7.615617), ("Qwen3-8B", 8.190735),
        ("Mistral-7B-v0.1", 7.241732), ("Mixtral-8x7B", 46.702793), ("Gemma-2-9B", 9.241706), ("Qwen3-30B-A3B", 30.532122),
        ("Llama-2-70B", 68.976648), ("bloomz-7b1", 7.069), ("Falcon-7B", 6.9217),
    ],
)  # fmt: skip
def test_known_models_have_their_published_size(name, billions):
    assert known_models()[name].architecture.params / 1e9 == pytest.approx(billions, rel=2e-3)


def test_peft_config_of_the_litgpt_table():
    """LitGPT prints 4,194,304 trainable parameters for r=8 on q and v of Llama-2-7B."""
    assert find("Llama-2-7B").architecture.lora_params(8, ("q_proj", "v_proj")) == 4_194_304


def test_experts_multiply_adapters_and_not_work():
    a = find("Mixtral-8x7B").architecture
    assert a.active_linear_params < a.linear_params / 3
    assert a.lora_params(8, ("up_proj",)) == 8 * a.lora_params(1, ("up_proj",)) == 32 * 8 * 8 * (4096 + 14336)


def test_window_limits_the_cache():
    a = find("Mistral-7B-v0.1").architecture
    assert a.kv_tokens(32_768) == 4096
    assert find("Mistral-7B-v0.3").architecture.kv_tokens(32_768) == 32_768


def test_sliding_window_switched_off_and_layer_types():
    assert from_config({**LLAMA_31_8B, "sliding_window": 4096, "use_sliding_window": False}).sliding_window is None
    mixed = from_config(
        {**LLAMA_31_8B, "sliding_window": 1024, "layer_types": ["full_attention", "sliding_attention"] * 16}
    )
    assert mixed.kv_tokens(9216) == pytest.approx(0.5 * 9216 + 0.5 * 1024)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"), ({"kv_lora_rank": 512}, "latent"), ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"), ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused(change, word):
    with pytest.raises(UserError, match=word):
        from_config({**LLAMA_31_8B, **change})


def test_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA_31_8B, "model_type": "gemma3"}))
    assert from_folder(tmp_path).layers == 32
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError):
        from_folder(tmp_path)


def test_unknown_target_offers_the_nearest():
    with pytest.raises(UserError, match="q_prj") as error:
        from_config(LLAMA_31_8B).lora_params(8, ("q_prj",))
    assert "q_proj" in str(error.value.hint)


@settings(max_examples=50, deadline=None)
@given(
    layers=st.integers(1, 100), heads=st.integers(1, 64), group=st.integers(1, 8), dim=st.sampled_from([32, 64, 128]),
    ffn=st.integers(64, 30_000), vocab=st.integers(100, 260_000), rank=st.integers(1, 256), tied=st.booleans(),
)  # fmt: skip
def test_counts_are_consistent(layers, heads, group, dim, ffn, vocab, rank, tied):
    a = Architecture(
        layers=layers,
        hidden=heads * dim,
        ffn=ffn,
        heads=heads * group,
        kv_heads=heads,
        head_dim=dim,
        vocab=vocab,
        tied=tied,
    )
    assert 0 < a.linear_params + a.embedding_params < a.params
    assert a.lora_params(2 * rank) == 2 * a.lora_params(rank)
    assert a.compute_params <= a.linear_params + vocab * a.hidden


SMALL = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
EXACT = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 16}, "gemma2": {"head_dim": 16}, "gemma3_text": {"head_dim": 16},
    "phi3": {"pad_token_id": 0}, "mixtral": {"num_local_experts": 4}, "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}, "granite": {}, "arcee": {},
}  # fmt: skip
NEAR = {
    "olmo2": {},
    "starcoder2": {},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 8},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8},
}
OWN_NAMES = ("gpt2", "falcon")


@pytest.mark.parametrize(("kind", "more"), [*EXACT.items(), *NEAR.items()])
def test_parameters_are_what_transformers_builds(tmp_path, kind, more):
    """Exact for the families in use; biases are left out, which these tiny widths make larger than they are."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**(SMALL if kind not in OWN_NAMES else {"vocab_size": 1000}), **more})
    with torch.device("meta"):
        truth = AutoModelForCausalLM.from_config(config).num_parameters()
    config.save_pretrained(tmp_path)
    found = from_folder(tmp_path).params
    assert found == truth if kind in EXACT else found == pytest.approx(truth, rel=0.012)


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": "x"}, {"num_key_value_heads": -1}, {"num_key_value_heads": 5}, {"num_attention_heads": 2.5}, {"vocab_size": True},
        {"layer_types": ["linear_attention"]}, {"mamba_d_state": 16}, {"kv_lora_rank": 512}, {"is_encoder_decoder": True}, {"hidden_size": 0},
    ],
)  # fmt: skip
def test_a_shape_that_does_not_hold_is_refused(changes):
    with pytest.raises(UserError):
        from_config({**LLAMA_31_8B, **changes})
