"""Training defects of other programs, by their number in docs/training.md: each test fails on what they do."""

import json
import math

import pytest

from tunegate.core import machine
from tunegate.core.chat_template import render_ids
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource, resolve
from tunegate.train import loss, sft, watch
from tunegate.train.config import resolve as resolve_config
from tunegate.train.examples import Example
from tunegate.train.model_loading import load_tokenizer, without_generation_tags
from tunegate.train.packing import collate, token_counts
from tunegate.train.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.0,
         "save_steps": 0, "rank": 4, "alpha": 8, "seed": 3}  # fmt: skip
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train(model, dataset, out, **changes):
    config = resolve_config([("test", {"model": str(model), **SHORT, **changes})])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=False, force=False)


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.path / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def examples():
    return [Example(id=f"e{i}", input_ids=[5, 6, 7, 8, 1], labels=[-100, -100, 7, 8, 1]) for i in range(3)]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_t3_rows_projected_to_the_vocabulary_are_the_label_rows(tiny_model, examples, side_by_side):
    import contextlib

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa")
    projected = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: projected.append(inputs[0].shape[0]))
    batch = collate(examples, pad=1, side_by_side=side_by_side)
    batch.pop("cu_seq_lens_q", None)
    _, count = loss.answer_loss(model, batch, contextlib.nullcontext())
    assert projected == [9] == [int(count)] == [token_counts(batch)[1]]


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_what_a_family_does_to_its_logits_is_in_the_loss(family):
    """Gemma 2 caps them with a tanh, Granite divides them: a loss from the bare output matrix is another one."""
    import contextlib

    import torch
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
             "num_key_value_heads": 1, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    if family == "gemma2":
        config = transformers.Gemma2Config(**shape, final_logit_softcapping=0.5, attn_implementation="eager")
    else:
        del shape["head_dim"]
        config = transformers.GraniteConfig(**shape, logits_scaling=7.0, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.nn.init.normal_(model.lm_head.weight, 0.0, 1.0)
    rows = [Example(id=str(n), input_ids=[3, 4, 5, 6, 7][:n], labels=[-100, -100, 5, 6, 7][:n]) for n in (5, 4)]
    batch = collate(rows, pad=0, side_by_side=False)
    with torch.no_grad():
        total, count = loss.answer_loss(model, batch, contextlib.nullcontext())
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        bare = model.lm_head(model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state)
    of = torch.nn.functional.cross_entropy
    labels = batch["labels"][:, 1:].flatten()
    wanted, without = (of(x[:, :-1].flatten(0, 1), labels, ignore_index=-100) for x in (logits, bare))
    assert float(total / count) == pytest.approx(float(wanted), rel=1e-5)
    assert float(total / count) != pytest.approx(float(without), rel=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_t4_t5_a_loss_that_is_no_number_stops_with_the_rows(value):
    with pytest.raises(watch.TrainingDivergedError, match=r"the loss is (nan|inf) at step 7; rows a, b"):
        watch.check_loss(value, 7, ["a", "b"])


def settled():
    made = Progress()
    for _ in range(watch.WARM):
        made.step(0.5, 1.0)
    return made


@pytest.mark.parametrize(
    ("value", "norm", "says"),
    [(0.5, math.nan, "gradients are not finite"), (0.5, math.inf, "gradients are not finite"),
     (9.0, 1.0, r"loss jumped to 9 \(median of the steps before: 0.5\)"), (0.5, 101.0, "gradient norm jumped to 101")],
)  # fmt: skip
def test_t5_gradients_and_spikes_stop_before_the_update(value, norm, says):
    rows = [f"r{i}" for i in range(10)]
    with pytest.raises(watch.TrainingDivergedError, match=says) as caught:
        watch.check_step(settled(), value, norm, 9, rows, factor=5.0, vocabulary=300)
    assert "r7 and 2 more" in caught.value.message


def test_t5_a_hard_row_is_no_spike_and_a_start_has_none():
    watch.check_step(settled(), 4.0, 90.0, 9, [], factor=5.0, vocabulary=300)
    watch.check_step(Progress(), 50.0, 1e4, 1, [], factor=5.0, vocabulary=300)
    watch.check_step(settled(), 50.0, 1e4, 9, [], factor=0.0, vocabulary=300)
    learnt = Progress()
    for _ in range(watch.WARM):
        learnt.step(0.002, 0.004)
    watch.check_step(learnt, 0.6, 0.5, 9, [], factor=5.0, vocabulary=300, clip=1.0)  # is not even clipped


def test_a_validation_loss_that_is_no_number_stops_the_run_and_is_never_the_best():
    for value in (math.nan, math.inf):
        with pytest.raises(watch.TrainingDivergedError, match=f"validation loss is {value} after step 5"):
            watch.check_validation(value, 5)
    watch.check_validation(2.0, 5)


def test_t5_a_spike_in_training_leaves_the_weights_as_the_step_before_left_them(
    tiny_model, makers, tmp_path, monkeypatch
):
    """Step 10 meets rows of a wholly different kind after nine that were learnt by heart."""
    import torch

    kept, seen = {}, watch.check_step

    def looking(progress, value, norm, step, rows, **options):
        value = 40.0 if step == 10 else value
        seen(progress, value, norm, step, rows, **options)

    make = sft.make_trainer

    def with_snapshot(**options):
        from transformers import TrainerCallback

        class Snapshot(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **_):
                kept["model"] = model
                kept["before"] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

        return make(**{**options, "callbacks": [*options["callbacks"], Snapshot()]})

    monkeypatch.setattr(watch, "check_step", looking)
    monkeypatch.setattr(sft, "make_trainer", with_snapshot)
    dataset = makers.dataset(tmp_path / "data", makers.rows(4), makers.rows(2, 50))
    with pytest.raises(watch.TrainingDivergedError, match=r"jumped to 40 .* at step 10; rows r\d, r\d"):
        train(tiny_model, dataset, tmp_path / "run", max_steps=12)
    now = dict(kept["model"].named_parameters())
    assert all(torch.equal(now[n], p) for n, p in kept["before"].items())


def test_t6_the_validation_loss_in_the_log_does_not_depend_on_the_batch(tiny_model, makers, tmp_path):
    """Untrained weights (a rate of nearly nothing), so that only the evaluation's batch differs."""
    rows = makers.rows(16)
    for i in range(0, 16, 3):
        rows[i]["messages"][1]["content"] = "a much longer answer " * 4
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    found = [
        train(tiny_model, dataset, tmp_path / f"b{size}", per_device_train_batch_size=size, learning_rate=1e-12,
              max_steps=1, validation_share=0.6, dtype="float32").manifest.facts["validation_loss"]
        for size in (1, 2, 9)
    ]  # fmt: skip
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_what_fills_a_row_is_neither_learnt_nor_counted(examples):
    batch = collate([*examples, Example(id="e8", input_ids=[*range(8)], labels=[*range(8)])], pad=1, side_by_side=True)
    assert batch["input_ids"].shape == (1, 32)
    assert batch["input_ids"][0, 5:8].tolist() == [1, 1, 1]
    learnt = [i for i, label in enumerate(batch["labels"][0].tolist()) if label != -100]
    assert learnt == [2, 3, 4, 10, 11, 12, 18, 19, 20, *range(25, 32)]
    assert token_counts(batch) == (23, 16)
    assert batch["cu_seq_lens_q"].tolist() == [0, 8, 16, 24, 32]


def test_t9_rows_side_by_side_carry_no_mask_and_no_cache(tiny_model, examples, monkeypatch):
    """Both traps: an all-ones mask or `use_cache=True` makes transformers let rows see their neighbours."""
    import contextlib
    from types import SimpleNamespace

    import torch

    given, head = {}, torch.nn.Identity()

    def model(**inputs):
        given.update(inputs)
        return SimpleNamespace(logits=head(torch.zeros(1, 32, 16)))

    model.get_output_embeddings = lambda: head
    batch = collate(examples, pad=1, side_by_side=True)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[*range(8)] * 4]
    assert batch["cu_seq_lens_q"].tolist() == [0, 8, 16, 24, 32]
    loss.answer_loss(model, batch, contextlib.nullcontext())
    assert given["use_cache"] is False
    assert "attention_mask" not in given


def test_t9_the_plain_library_does_leak_with_a_mask_of_ones(tiny_model, examples):
    """The trap itself, so that the test above is known to guard against something."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa").eval()
    batch = collate(examples, pad=1, side_by_side=True)
    ids, positions = batch["input_ids"], batch["position_ids"]
    with torch.no_grad():
        alone = model(ids[:, :5]).logits
        clean = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 8:13]
        masked = model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits[:, 8:13]
    assert torch.allclose(clean, alone, atol=1e-5)
    assert not torch.allclose(masked, alone, atol=1e-3)


def test_t11_qlora_adapters_are_fp32_and_small_steps_move_them(tiny_model, tiny_dataset, tmp_path):
    """In bf16 most entries would stand still at 2e-5."""
    one, two = (train(tiny_model, tiny_dataset, tmp_path / str(n), method="qlora", max_steps=n, learning_rate=2e-5,
                      lr_scheduler_type="constant", warmup_ratio=0.0) for n in (2, 3))  # fmt: skip
    before, after = weights(one), weights(two)
    pairs = [(before[n], after[n]) for n in before if "lora_A" in n]
    moved = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    assert moved > 0.95
    assert two.manifest.facts["trained_dtype"] == ["float32"]


def test_t12_the_frozen_weights_are_bf16_and_recorded(tiny_model, tiny_dataset, tmp_path):
    lora = train(tiny_model, tiny_dataset, tmp_path / "lora", max_steps=1, dtype="bfloat16").manifest.facts
    full = train(tiny_model, tiny_dataset, tmp_path / "full", max_steps=1, method="full").manifest.facts
    assert (lora["frozen_dtype"], lora["trained_dtype"]) == (["bfloat16"], ["float32"])
    assert (full["frozen_dtype"], full["trained_dtype"]) == ([], ["float32"])


@pytest.mark.parametrize(("flags", "dtype"), [({"avx2"}, "float32"), ({"avx512_bf16"}, "bfloat16")])
def test_auto_is_float32_where_the_processor_has_no_bfloat16(
    tiny_model, tiny_dataset, tmp_path, monkeypatch, flags, dtype
):
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    made = train(tiny_model, tiny_dataset, tmp_path / "lora", max_steps=1, device="cpu")
    assert made.manifest.facts["frozen_dtype"] == [dtype]
    assert made.manifest.config["dtype"] == dtype


def test_t14_padding_with_the_end_token_does_not_hide_the_end_token(tiny_model, makers):
    from tunegate.core.rows import parse_row
    from tunegate.train import examples as made

    tokenizer = load_tokenizer(resolve(str(tiny_model)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = makers.rows(3)
    rows[0]["messages"][1]["content"] = "longer " * 5
    parsed = [parse_row(row, "rows.jsonl", 1) for row in rows]
    kept, _ = made.build(parsed, tokenizer, [tokenizer.eos_token_id], max_length=200, max_left_out_share=0)
    labels = collate(kept, pad=tokenizer.pad_token_id, side_by_side=False)["labels"]
    for row in labels.tolist():
        learnt = [label for label in row if label != -100]
        assert learnt[-1] == tokenizer.eos_token_id
        assert learnt.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_t16_lora_on_tied_matrices_is_refused_before_anything_is_loaded(name):
    with pytest.raises(UserError, match=f"no LoRA on {name}") as caught:
        resolve_config([("a.yaml", {"targets": ["q_proj", name]})])
    assert caught.value.hint == f"--modules-to-save {name}"


def test_t18_the_ids_of_a_probe_text_stand_in_the_manifest(tiny_model, tiny_dataset, tmp_path):
    from tunegate.core.chat_template import PROBE

    run = train(tiny_model, tiny_dataset, tmp_path / "run", max_steps=1)
    assert run.manifest.facts["mask"]["probe_ids"] == render_ids(
        load_tokenizer(ModelSource(str(run.path), "folder", str(run.path), "run")), PROBE
    )


def test_r13_no_generation_tag_is_left_and_the_text_is_the_same(makers):
    import jinja2

    tagged = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}  {%- generation -%}  {{ m.content }}"
        "<|im_end|>  {%- endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    plain = without_generation_tags(tagged)
    assert "generation" not in plain
    wanted = makers.tokenizer(tagged).apply_chat_template(messages, tokenize=False)
    assert makers.tokenizer(plain).apply_chat_template(messages, tokenize=False) == wanted
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert environment.from_string(plain).render(messages=messages) == wanted


def test_r13_a_run_is_saved_without_the_tag(tiny_model, tiny_dataset, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "chat_template.jinja"
    text = path.read_text()
    path.write_text(text.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"))
    assert "generation %}" in path.read_text()
    run = train(tmp_path / "model", tiny_dataset, tmp_path / "run", max_steps=1)
    assert "generation %}" not in (run.path / "chat_template.jinja").read_text()


def test_r15_r16_no_pickle_in_a_checkpoint_or_run_beyond_torch_states_and_a_card_from_facts(
    tiny_model, tiny_dataset, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(sft.shutil, "rmtree", lambda path, **_: kept.append(path))
    run = train(tiny_model, tiny_dataset, tmp_path / "run", save_steps=2, validation_share=0.1)
    checkpoint = kept[-1] / "checkpoint-2"
    import torch

    for path in checkpoint.iterdir():
        assert path.suffix not in (".bin", ".pkl", ".pickle")
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
    card = (run.path / "README.md").read_text()
    front = json.loads(json.dumps(__import__("yaml").safe_load(card.split("---")[1])))
    assert front == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["tunegate", "lora"]}
    assert f"validation loss per answer token: {run.manifest.facts['validation_loss']:.4f}" in card


def test_r16_the_licence_of_the_base_and_its_duties_go_with_the_run(tiny_model, tiny_dataset, tmp_path):
    import shutil

    base = tmp_path / "Llama-3.2-tiny"
    shutil.copytree(tiny_model, base)
    (base / "README.md").write_text("---\nlicense: llama3.2\n---\n# card\n")
    (base / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n")
    run = train(base, tiny_dataset, tmp_path / "run", max_steps=1)
    assert run.manifest.facts["license"] == "llama3.2"
    assert "Built with Llama." in (run.path / "README.md").read_text()
    assert "license: llama3.2" in (run.path / "README.md").read_text()
    assert "Llama 3.2 Community License" in (run.path / "NOTICE").read_text()
    assert (run.path / "LICENSE").read_text().startswith("LLAMA 3.2")


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("targets", [LINEAR, ("q_proj", "v_proj")])
def test_the_adapter_has_the_parameters_that_the_advisor_predicts(tiny_model, tiny_dataset, tmp_path, rank, targets):
    from tunegate.core.architecture import from_folder

    run = train(tiny_model, tiny_dataset, tmp_path / "run", max_steps=1, rank=rank, targets=list(targets))
    predicted = from_folder(tiny_model).lora_params(rank, targets)
    assert run.manifest.facts["trainable_params"] == predicted == sum(w.numel() for w in weights(run).values())


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"use_dora": True}, "use_dora"), ({"use_rslora": True}, "use_rslora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
     ({"targets": "all-linear"}, "target_modules"), ({"method": "qlora", "use_dora": True}, "use_dora")],
)  # fmt: skip
def test_the_kinds_of_adapter_are_trained_and_load_again(tiny_model, tiny_dataset, tmp_path, changes, key):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = train(tiny_model, tiny_dataset, tmp_path / "run", **changes)
    assert json.loads((run.path / "adapter_config.json").read_text())[key]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = base(ids).logits.clone()
        after = PeftModel.from_pretrained(base, run.path)(ids).logits
    assert not torch.allclose(before, after)


def test_training_goes_on_from_an_adapter(tiny_model, tiny_dataset, makers, tmp_path):
    import torch

    first = train(tiny_model, tiny_dataset, tmp_path / "first", max_steps=6, learning_rate=5e-3)
    second = train(
        tiny_model, tiny_dataset, tmp_path / "second", adapter=str(first.path), learning_rate=1e-12, max_steps=1
    )
    one, two = weights(first), weights(second)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert [i.role for i in second.manifest.inputs] == ["dataset", "base_model", "adapter"]
    other = makers.model(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="trained on other weights"):
        train(other, tiny_dataset, tmp_path / "third", adapter=str(first.path))


def test_rows_learnt_by_heart_are_answered_word_for_word(tiny_model, makers, tmp_path):
    """The whole chain: mask, end token, update, save, load, prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = makers.rows(4)
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    run = train(tiny_model, dataset, tmp_path / "run", method="full", max_steps=160, learning_rate=5e-3,
                per_device_train_batch_size=4, lr_scheduler_type="constant")  # fmt: skip
    tokenizer = load_tokenizer(resolve(str(run.path)))
    model = AutoModelForCausalLM.from_pretrained(run.path, dtype=torch.float32)
    for row in rows:
        ids = render_ids(tokenizer, row["messages"][:1], generate=True)
        found = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, attention_mask=torch.ones(1, len(ids)),
                               pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        assert tokenizer.decode(found[0, len(ids) :]) == row["messages"][1]["content"] + tokenizer.eos_token
