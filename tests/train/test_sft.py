"""`sft.train` on a tiny model: each method, what the Run folder holds, reproducibility, divergence."""

import json

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.errors import ExitCode, UserError
from tunegate.core.model_source import resolve
from tunegate.core.rows import read_rows
from tunegate.serve.prompting.prompting import Prompting
from tunegate.train import saving, sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.release.merge import merge
from tunegate.train.watch import TrainingDivergedError
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.1,
         "save_steps": 0, "rank": 4, "alpha": 8, "seed": 3}  # fmt: skip


def train(model, dataset, out, *, force=False, **changes) -> Run:
    config = resolve_config([("test", {"model": str(model), **SHORT, **changes})])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=False, force=force)


def metrics(run: Run, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.fixture
def seen(monkeypatch):
    """The trainer as it is when the weights are saved."""
    found = {}
    save = saving.save

    def look(folder, work, trainer, *rest, **named):
        import torch

        found["four_bit"] = sum(
            name.endswith("base_layer") and module.weight.dtype == torch.uint8
            for name, module in trainer.model.named_modules()
        )
        found["trainable"] = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
        save(folder, work, trainer, *rest, **named)

    monkeypatch.setattr(saving, "save", look)
    return found


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_each_method_writes_a_run_that_opens(tiny_model, tiny_dataset, tmp_path, seen, method):
    import torch
    from safetensors.torch import load_file

    run = train(tiny_model, tiny_dataset, tmp_path / "run", method=method)
    assert manifest.verify(run.path) == []
    assert (run.method, run.base) == (method, str(tiny_model))
    names = {p.name for p in run.path.rglob("*")}
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".pth", ".pickle"))]
    assert {"config.yaml", "metrics.jsonl", "tokenizer.json", "chat_template.jinja", "probe.json"} <= names
    assert len(metrics(run, "loss")) == 3
    assert len(metrics(run, "eval_loss")) == 1
    assert run.manifest.facts["mask"]["rows"] == 22
    assert run.manifest.facts["validation_rows"] == 2
    assert not working_folder(run.path).exists()
    assert seen["trainable"] == {torch.float32}
    weights = load_file(run.path / ("model.safetensors" if method == "full" else "adapter_model.safetensors"))
    assert {w.dtype for w in weights.values()} == {torch.bfloat16 if method == "full" else torch.float32}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert seen["four_bit"] == (2 * len(linear) if method == "qlora" else 0)
    if method != "full":
        assert {n.split(".")[-3] for n in weights} == linear
        adapter = json.loads((run.path / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(tiny_model.resolve())
        assert any(float(w.abs().max()) > 0 for n, w in weights.items() if "lora_B" in n)


def test_an_adapter_is_trained_and_released_with_the_passages_of_its_documents(tiny_model, tiny_dataset, tmp_path):
    """rag_lora: what training saw before each question is what the server will put there, in the release as well."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "sums.md").write_text("A sum of two equal numbers is twice the number.")
    (docs / "boats.md").write_text("Boats have sails.")
    plain = train(tiny_model, tiny_dataset, tmp_path / "plain")
    found = train(tiny_model, tiny_dataset, tmp_path / "run", docs=str(docs), k=1, passage_tokens=60)
    assert found.manifest.facts["retrieval"] == {"passages": 2, "embedder": "builtin:minilm", "k": 1}
    assert [i.role for i in found.manifest.inputs] == ["dataset", "base_model", "documents", "documents", "embedder"]
    assert found.manifest.facts["mask"]["tokens"] > 1.2 * plain.manifest.facts["mask"]["tokens"]
    assert found.manifest.facts["mask"]["label_tokens"] == plain.manifest.facts["mask"]["label_tokens"]
    seen = json.loads((found.path / "probe.json").read_text())["prompts"][0]["messages"]
    asked = next(read_rows(tiny_dataset.train_path)).prompt
    assert Prompting.load(found.path).apply(asked, room=1000).messages == seen
    assert "twice the number" in seen[0]["content"]
    release = merge(found, resolve(str(tiny_model)), tmp_path / "release", force=False)
    assert Prompting.load(release.path).apply(asked, room=1000).messages == seen
    assert manifest.verify(release.path) == []


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_model, tiny_dataset, tmp_path):
    first = train(tiny_model, tiny_dataset, tmp_path / "a", dropout=0.1)
    again = train(tiny_model, tiny_dataset, tmp_path / "b", dropout=0.1)
    other = train(tiny_model, tiny_dataset, tmp_path / "c", dropout=0.1, seed=4)
    weights = "adapter_model.safetensors"
    assert metrics(first, "loss") == metrics(again, "loss") != metrics(other, "loss")
    assert (first.path / weights).read_bytes() == (again.path / weights).read_bytes()


def test_four_rows_can_be_learnt_by_heart(tiny_model, makers, tmp_path):
    rows = makers.rows(4)
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    run = train(tiny_model, dataset, tmp_path / "run", method="full", max_steps=90, learning_rate=1e-2,
                per_device_train_batch_size=4, validation_share=0.0, lr_scheduler_type="constant")  # fmt: skip
    found = metrics(run, "loss")
    assert found[0] > 4
    assert found[-1] < 0.05
    assert run.manifest.facts["validation_loss"] is None


def test_the_learnt_loss_is_the_same_with_and_without_the_fast_cpu_path(tiny_model, tiny_dataset, tmp_path):
    fast = train(tiny_model, tiny_dataset, tmp_path / "fast", fast_cpu=True)
    plain = train(tiny_model, tiny_dataset, tmp_path / "plain", fast_cpu=False)
    assert fast.manifest.facts["attention"] == "tunegate_rows"
    assert plain.manifest.facts["attention"] == "sdpa"
    assert metrics(fast, "loss") == pytest.approx(metrics(plain, "loss"), abs=0.02)
    assert fast.manifest.facts["validation_loss"] == pytest.approx(plain.manifest.facts["validation_loss"], abs=0.02)


def test_gradient_accumulation_weighs_tokens_and_not_batches(tiny_model, makers, tmp_path):
    rows = makers.rows(4)
    rows[0]["messages"][1]["content"] = "a much longer answer than those of the others, forty tokens or more of it"
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    shape = {"max_steps": 1, "validation_share": 0.0, "method": "full"}
    whole = train(tiny_model, dataset, tmp_path / "whole", per_device_train_batch_size=4, **shape)
    parts = train(tiny_model, dataset, tmp_path / "parts", per_device_train_batch_size=1,
                  gradient_accumulation_steps=4, **shape)  # fmt: skip
    assert metrics(parts, "loss") == pytest.approx(metrics(whole, "loss"), abs=0.01)
    assert metrics(parts, "grad_norm") == pytest.approx(metrics(whole, "grad_norm"), rel=0.02)


def test_a_loss_that_is_not_a_number_stops_before_it_touches_the_weights(poisoned_model, makers, tmp_path, monkeypatch):
    import torch
    from transformers import TrainerCallback

    rows = makers.rows(6)
    rows[4]["messages"][0]["content"] = "a tilde ~ here"
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    kept = {}
    make = sft.make_trainer

    class Snapshot(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            kept["before"] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            kept["model"] = model

    def with_snapshot(**options):
        return make(**{**options, "callbacks": [*options["callbacks"], Snapshot()]})

    monkeypatch.setattr(sft, "make_trainer", with_snapshot)
    with pytest.raises(TrainingDivergedError, match=r"nan at step \d; rows r4") as caught:
        train(poisoned_model, dataset, tmp_path / "run", max_steps=6, per_device_train_batch_size=1, validation_share=0)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert not (tmp_path / "run").exists()
    now = dict(kept["model"].named_parameters())
    assert kept["before"]
    assert all(torch.equal(now[n], p) and bool(p.isfinite().all()) for n, p in kept["before"].items())


def test_targets_that_the_model_does_not_have_are_refused(tiny_model, tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="no module called 'qproj'") as caught:
        train(tiny_model, tiny_dataset, tmp_path / "run", targets=["qproj"])
    assert "q_proj" in caught.value.hint


def test_the_last_line_of_progress_tells_the_last_steps_loss(tiny_model, tiny_dataset, tmp_path, capsys):
    run = train(tiny_model, tiny_dataset, tmp_path / "run")
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: 3/3")]
    assert f"loss {metrics(run, 'loss')[-1]:.4f}" in last
    assert " left" not in last
