"""The forecast of a run in several processes, each with a GPU of its own or a part of the CPU."""

import dataclasses
import json

import pytest

from tunegate.advisor.estimates import TrainQuestion
from tunegate.advisor.estimates import train as estimate
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.core.commands import run as run_command
from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR
from tunegate.core.model_source import ModelSource
from tunegate.train import preflight
from tunegate.train.cli import app
from tunegate.train.config import TrainConfig
from tunegate.train.launch_options import Launch

LOAD = preflight.Load(rows=50000, longest=1536, mean=750.0, label_share=0.2)
FULL = TrainConfig(method="full", per_device_train_batch_size=1, gradient_accumulation_steps=4)
SHAPES = {
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@pytest.fixture
def source(tmp_path):
    def call(name):
        (tmp_path / name).mkdir(exist_ok=True)
        shape = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128, **SHAPES[name]}
        (tmp_path / name / "config.json").write_text(json.dumps(shape))
        return ModelSource(name, "folder", str(tmp_path / name), "m")

    return call


@pytest.fixture
def gpus_of(monkeypatch):
    def call(name, memory_gb):
        monkeypatch.setattr(preflight.machine, "gpus", lambda: (preflight.machine.Gpu(name, memory_gb),) * 8)

    return call


def launch(count, strategy="ddp", **more):
    return Launch(launch="accelerate", num_processes=count, strategy=strategy, **more)


def test_what_the_advisor_rents_is_not_refused_there(source, gpus_of):
    gpus_of("NVIDIA B200", 192.0)
    alone = preflight.forecast(source("70b"), FULL, LOAD, "cuda")
    with pytest.raises(UserError, match="this needs"):
        alone.check()
    shared = preflight.forecast(source("70b"), FULL, LOAD, "cuda", launch(8, "fsdp2"))
    shared.check()
    assert shared.fits
    assert shared.memory_gb["value"] < alone.memory_gb["value"] / 6
    with pytest.raises(UserError, match="this needs") as caught:
        preflight.forecast(source("70b"), FULL, LOAD, "cuda", launch(8, "ddp")).check()
    assert caught.value.hint.startswith(f"what would fit: --strategy fsdp2 ({shared.memory_gb['value']:.1f} GB)")


def test_steps_tokens_and_hours_are_those_of_all_processes(source, gpus_of):
    gpus_of("NVIDIA A100-SXM4-80GB", 80.0)
    config = TrainConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    one = preflight.forecast(source("8b"), config, LOAD, "cuda")
    four = preflight.forecast(source("8b"), config, LOAD, "cuda", launch(4))
    assert four.memory_gb == one.memory_gb
    assert four.tokens_per_s["value"] == pytest.approx(3.6 * one.tokens_per_s["value"])
    assert four.steps == pytest.approx(one.steps / 4, rel=0.01)
    assert four.hours["value"] == pytest.approx(one.hours["value"] / 3.6, rel=0.01)
    assert any("one of 4 processes" in note for note in four.notes)
    assert not any("processes" in note for note in one.notes)


def test_a_shared_model_is_estimated_as_the_advisor_does(source, gpus_of):
    gpus_of("NVIDIA A100-SXM4-80GB", 80.0)
    config = TrainConfig(gradient_checkpointing=True)
    load = dataclasses.replace(LOAD, mean=1536.0, label_share=1.0)
    found = preflight.forecast(source("8b"), config, load, "cuda", launch(4, "fsdp2"))
    question = TrainQuestion(
        model=find(source("8b").location), method="lora", gpu=find_gpu("A100-80GB"), gpus=4, seq=1536, rank=16,
        batch=config.per_device_train_batch_size, accumulation=4, targets=ALL_LINEAR, checkpointing=True,
    )  # fmt: skip
    expected = estimate(question)
    assert found.memory_gb["value"] == pytest.approx(expected["memory_gb"]["value"])
    assert found.tokens_per_s["value"] == pytest.approx(expected["tokens_per_s"]["value"])
    assert found.calibrate.endswith(" --strategy fsdp2")
    assert "--strategy" not in preflight.forecast(source("8b"), config, load, "cuda", launch(4)).calibrate


def test_qlora_is_proposed_with_the_strategy_that_takes_it(source, gpus_of):
    gpus_of("NVIDIA L4", 24.0)
    found = preflight.forecast(source("8b"), FULL, LOAD, "cuda", launch(2, "fsdp2"))
    assert not found.fits
    assert any(text.startswith("--method qlora --strategy ddp") for text in found.proposals)
    alone = preflight.forecast(source("8b"), FULL, LOAD, "cuda")
    assert not any("--strategy" in text for text in alone.proposals)


@pytest.mark.parametrize(("kind", "shared"), [
    ("FSDP", True), ("FSDP\nfsdp_config: {fsdp_sharding_strategy: NO_SHARD}", False), ("MULTI_GPU", False), ("NO", False),
    ("DEEPSPEED", True), ("DEEPSPEED\ndeepspeed_config: {zero_stage: 2}", False),
])  # fmt: skip
def test_accelerates_own_file_says_whether_the_model_is_shared(source, gpus_of, tmp_path, kind, shared):
    gpus_of("NVIDIA B200", 192.0)
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"distributed_type: {kind}\n")
    found = preflight.forecast(source("70b"), FULL, LOAD, "cuda", launch(8, launch_config=str(file)))
    assert found.fits == shared
    assert not any("--strategy" in text for text in found.proposals)


def test_processes_of_one_machine_share_its_memory_and_its_cpu(source, monkeypatch):
    monkeypatch.setattr(preflight.machine, "memory_gb", lambda: 64.0)
    one = preflight.forecast(source("8b"), TrainConfig(), LOAD, "cpu")
    two = preflight.forecast(source("8b"), TrainConfig(), LOAD, "cpu", launch(2))
    assert (one.device_gb, two.device_gb) == (64.0, 32.0)
    assert two.tokens_per_s == one.tokens_per_s
    apart = launch(2, num_machines=2, rdzv_endpoint="node0:1")
    found = preflight.forecast(source("8b"), TrainConfig(), LOAD, "cpu", apart)
    assert found.device_gb == 64.0
    assert found.tokens_per_s["value"] == pytest.approx(1.8 * one.tokens_per_s["value"])
    cluster = Launch(launch="ray", num_processes=4, address="ray://head:1")
    assert preflight.forecast(source("8b"), TrainConfig(), LOAD, "cpu", cluster).device_gb == 64.0


def test_the_command_tells_the_forecast_its_processes(tiny_model, tiny_dataset, tmp_path, capsys):
    argv = [str(tiny_dataset.path), "--out", str(tmp_path / "run"), "--model", str(tiny_model), "--dry-run", "--json",
            "--device", "cpu", "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1"]  # fmt: skip

    def forecast(*words):
        assert run_command(app, prog="ft train", argv=[*argv, *words]) == 0
        return json.loads(capsys.readouterr().out)["forecast"]

    one = forecast()
    two = forecast("--launch", "accelerate", "--num-processes", "2", "--strategy", "fsdp2")
    assert two["steps"] == 3 * -(-one["steps"] // 3 // 2)  # three epochs
    assert two["device_gb"] == pytest.approx(one["device_gb"] / 2)
    assert two["calibrate"].endswith(" --strategy fsdp2")
