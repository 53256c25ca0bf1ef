"""The patched decoder layers compute what the unpatched ones do, and stand back where they do not know a layer."""

import copy

import pytest

from tunegate.train import cpu_attention, fast_decoder
from tunegate.train.examples import Example
from tunegate.train.loss import answer_loss
from tunegate.train.packing import NOT_FOR_THE_MODEL, collate

pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model_of(family, dtype, targets=TARGETS, **lora):
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    cpu_attention.register()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 200, "max_position_embeddings": 128}  # fmt: skip
    config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "mistral": transformers.MistralConfig,
              "qwen3": transformers.Qwen3Config, "gemma": transformers.GemmaConfig}[family](**shape)  # fmt: skip
    if family == "mistral":
        config.sliding_window = None
    config._attn_implementation = cpu_attention.NAME
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=cpu_attention.NAME)
    for parameter in base.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1)  # norms and biases that are not their neutral start
    made = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **lora))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.05)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made.train()


def batch():
    import random

    made = random.Random(0)
    rows = []
    for i, n in enumerate((17, 5, 30)):
        ids = [made.randrange(200) for _ in range(n)]
        rows.append(Example(id=str(i), input_ids=ids, labels=[-100] * (n // 2) + ids[n // 2 :]))
    return collate(rows, pad=0, side_by_side=True)


def loss_and_gradients(model, dtype):
    import torch

    model.zero_grad()
    total, count = answer_loss(model, batch(), torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16))
    (total / count).backward()
    return float((total / count).detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("targets", [TARGETS, ["q_proj", "v_proj"]])
def test_loss_and_gradients_are_those_of_the_unpatched_layers(family, targets):
    import torch

    plain = model_of(family, torch.float32, targets)
    fast = copy.deepcopy(plain)
    assert fast_decoder.speed_up(fast, None)
    expected, before = loss_and_gradients(plain, torch.float32)
    found, after = loss_and_gradients(fast, torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)
    assert set(before) == set(after)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_is_trained_whole_has_the_same_loss_and_gradients(family, dtype):
    import torch

    made = model_of(family, torch.float32).unload()
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    fast = copy.deepcopy(made)
    assert fast_decoder.speed_up(fast, getattr(torch, dtype))
    expected, before = loss_and_gradients(made, getattr(torch, dtype))
    found, after = loss_and_gradients(fast, getattr(torch, dtype))
    assert found == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 5e-3)
    assert set(before) == set(after) == {n for n, _ in made.named_parameters()}
    for name, gradient in before.items():
        assert after[name].dtype == torch.float32
        if dtype == "float32":
            torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)
    one, two = (torch.cat([g[name].flatten() for name in before]) for g in (before, after))
    assert float(torch.cosine_similarity(one, two, dim=0)) > 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_over_a_4_bit_base_it_is_the_same_and_the_base_stays_4_bit(tiny_model, dtype):
    import torch

    from tunegate.core.model_source import resolve
    from tunegate.train import model_loading
    from tunegate.train.config import resolve as resolve_config

    config = resolve_config([("test", {"model": str(tiny_model), "method": "qlora", "rank": 4, "dtype": dtype})])[0]
    cpu_attention.register()
    found = []
    for patched in (False, True):
        torch.manual_seed(0)
        base = model_loading.load_base(resolve(str(tiny_model)), config, "cpu", cpu_attention.NAME)
        made = model_loading.with_adapter(base, config).train()
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0.0, 0.05)
        assert not patched or fast_decoder.speed_up(made, None)
        found.append(loss_and_gradients(made, getattr(torch, dtype)))
        packed = [m.weight for n, m in made.named_modules() if n.endswith("proj.base_layer")]
        assert len(packed) == 14
        assert {w.dtype for w in packed} == {torch.uint8}
    (expected, before), (loss, after) = found
    assert loss == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 5e-3)
    assert set(before) == set(after)
    for name, gradient in before.items():
        if dtype == "float32":
            torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)
        else:
            assert float(torch.cosine_similarity(after[name].flatten(), gradient.flatten(), dim=0)) > 0.98


@pytest.mark.parametrize("longest_dense", [1024, 12])
def test_long_rows_take_torchs_attention_and_give_the_same(monkeypatch, longest_dense):
    import torch

    plain = model_of("llama", torch.float32)
    fast = copy.deepcopy(plain)
    assert fast_decoder.speed_up(fast, None)
    expected, before = loss_and_gradients(plain, torch.float32)
    monkeypatch.setattr(cpu_attention, "LONGEST_DENSE", longest_dense)
    found, after = loss_and_gradients(fast, torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)


def test_in_bf16_it_differs_by_rounding_alone():
    import torch

    plain = model_of("llama", torch.bfloat16)
    fast = copy.deepcopy(plain)
    assert fast_decoder.speed_up(fast, None)
    expected, before = loss_and_gradients(plain, torch.bfloat16)
    found, after = loss_and_gradients(fast, torch.bfloat16)
    assert found == pytest.approx(expected, rel=5e-3)
    cosine = [float(torch.cosine_similarity(before[n].flatten(), after[n].flatten(), dim=0)) for n in before]
    assert min(cosine) > 0.99


def test_weights_are_held_once_and_saved_as_before(tmp_path):
    import torch
    from safetensors.torch import load_file

    made = model_of("llama", torch.float32)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    assert fast_decoder.speed_up(made, None)
    after = made.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    layer = made.get_base_model().model.layers[0]
    stack = layer.fast[0].wide
    assert (
        layer.self_attn.q_proj.get_base_layer().weight.untyped_storage().data_ptr()
        == stack.untyped_storage().data_ptr()
    )
    made.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * 2 * len(TARGETS)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("qwen3", {}),
        ("gemma", {}),
        ("llama", {"lora_dropout": 0.1}),
        ("llama", {"use_dora": True}),
        ("llama", {"modules_to_save": ["lm_head"]}),
    ],
)
def test_layers_of_another_kind_are_left_alone(family, more):
    import torch

    made = model_of(family, torch.float32, **more)
    assert not fast_decoder.speed_up(made, None)
    assert not hasattr(made.get_base_model().model.layers[0], "fast")


def test_rows_do_not_see_each_other():
    import torch

    made = model_of("llama", torch.float32)
    assert fast_decoder.speed_up(made, None)
    together = batch()
    alone = collate(
        [Example(id="1", input_ids=together["input_ids"][0, 24:29].tolist(), labels=[-100] * 5)],
        pad=0,
        side_by_side=True,
    )
    base = made.get_base_model()
    with torch.no_grad():
        both, one = (
            base.model(**{k: v for k, v in b.items() if k not in NOT_FOR_THE_MODEL}, use_cache=False).last_hidden_state
            for b in (together, alone)
        )
    torch.testing.assert_close(both[:, 24:29], one[:, :5], rtol=1e-4, atol=1e-5)
