"""What an audit of the settings found: kinds of values in YAML, numbers that nothing can be made of, schedules, and gradient
checkpointing with the fast layers of the CPU."""

import json

import pytest

from tunegate.core import commands
from tunegate.core.errors import UserError
from tunegate.train import advice
from tunegate.train.arguments import sft_arguments
from tunegate.train.cli import app
from tunegate.train.config import TrainConfig, from_file, resolve

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ft(capsys, tiny_model, tiny_dataset, tmp_path):
    """`ft train` into `run`: (exit code, standard output, standard error)."""

    def call(*arguments, out="run"):
        capsys.readouterr()
        fixed = (
            "--per-device-train-batch-size",
            "4",
            "--gradient-accumulation-steps",
            "1",
            "--rank",
            "2",
            "--seed",
            "3",
        )
        command = (
            tiny_dataset.path,
            "--out",
            tmp_path / out,
            "--model",
            tiny_model,
            *fixed,
            "--save-steps",
            "0",
            "--json",
        )
        code = commands.run(app, prog="ft train", argv=[str(a) for a in (*command, *arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("key", ["model", "adapter", "docs", "embedder", "system_file", "method", "preset"])
@pytest.mark.parametrize("value", ["[a, b]", "{a: 1}", "2024", "null", "true"])
def test_text_in_a_file_is_text(key, value, tmp_path):
    """A list was taken for its own spelling, and a preset in a list was a bug of ours."""
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: 1\n{key}: {value}\n")
    with pytest.raises(UserError) as told:
        resolve([(str(path), from_file(path))])
    assert told.value.where == f"{path}:2"


def test_a_preset_that_is_none_is_said_where_it_stands(ft):
    found = json.loads(ft("--preset", "x")[1])["error"]
    assert (found["where"], found["message"]) == ("--preset", "unknown preset 'x'")


@pytest.mark.parametrize("targets", ["none", "none,", ""])
def test_lora_on_no_module_is_no_lora(ft, targets):
    code, out, _ = ft("--targets", targets)
    found = json.loads(out)["error"]
    assert (code, found["kind"], found["where"]) == (2, "bad_input", "--targets")


@pytest.mark.parametrize("key", ["rank", "alpha", "per_device_train_batch_size", "max_steps", "max_length", "k"])
def test_a_number_beyond_all_counting_is_refused(key):
    with pytest.raises(UserError, match=f"{key} must be at most 2147483647") as told:
        resolve([("flag", {key: 10**30})])
    assert told.value.where == "--" + key.replace("_", "-")


@pytest.mark.parametrize("more", [(), ("--warmup-ratio", "1"), ("--learning-rate", "1e-8"), ("--max-steps", "3")])
def test_the_polynomial_schedule_ends_as_the_others_do(ft, more):
    """It divides by the steps after the warm-up, and wants a first rate above its last one."""
    code, out, _ = ft("--lr-scheduler-type", "polynomial", "--max-steps", "1", *more)
    assert code == 0, out


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (0.03, 2), (0.5, 20), (0.999, 39), (1.0, 40)])
def test_the_warm_up_is_a_share_of_the_steps(ratio, steps, tmp_path):
    """A share of 1 was one step."""
    config = TrainConfig(warmup_ratio=ratio, max_steps=40, dtype="float32")
    made = sft_arguments(config, tmp_path, "cpu", rows=24, validation=0)
    assert made.get_warmup_steps(40) == steps


def test_a_run_of_one_step_learns(ft, tmp_path):
    """Its only step was the first of the warm-up, at a rate of 0."""
    code, out, _ = ft("--max-steps", "1")
    assert code == 0, out
    from safetensors.torch import load_file

    found = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(bool(w.any()) for name, w in found.items() if "lora_B" in name)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_gradient_checkpointing_changes_no_gradient(ft, tmp_path, method):
    """The fast layers asked twice for what may be had once."""
    losses = []
    for number, switch in enumerate(("--gradient-checkpointing", "--no-gradient-checkpointing")):
        code, _, err = ft("--method", method, switch, "--max-steps", "4", out=f"run{number}")
        assert code == 0, err
        lines = (tmp_path / f"run{number}" / "metrics.jsonl").read_text().splitlines()
        losses.append([found["loss"] for line in lines if "loss" in (found := json.loads(line))])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("method", ["prompt", "few_shot", "rag"])
def test_no_advice_on_training_where_nothing_is_trained(method):
    assert advice.warnings(TrainConfig(method=method, learning_rate=1.0, use_dora=True, rank=1000), 0.135) == []
