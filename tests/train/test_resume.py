"""Stopping and going on: `--resume` ends with the very weights that an unbroken run ends with."""

import json
import os
import shutil
import signal

import pytest

from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import resolve as resolve_config

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.1,
         "save_steps": 2, "rank": 4, "alpha": 8, "dropout": 0.1, "seed": 3}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.fixture
def train(tiny_model, tiny_dataset, monkeypatch):
    make = sft.make_trainer

    def call(out, *, resume=False, dataset=tiny_dataset, at_step=None, act=None, **changes):
        from transformers import TrainerCallback

        class Act(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step + 1 == at_step:
                    act()

        def acting(**options):
            return make(**{**options, "callbacks": [*options["callbacks"], Act()]})

        monkeypatch.setattr(sft, "make_trainer", acting)
        config = resolve_config([("test", {"model": str(tiny_model), **SHORT, **changes})])[0]
        return sft.train(dataset, resolve(str(tiny_model)), config, out, resume=resume, force=False)

    return call


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def unbroken(train, tmp_path_factory, kept):
    """The run without a break, trained once."""
    if not kept:
        kept["run"] = train(tmp_path_factory.mktemp("unbroken") / "run")
    return kept["run"]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def die():
    raise Killed


def steps(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_ctrl_c_then_resume_gives_bitwise_the_same_adapter(train, unbroken, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(sft.Interrupted, match="stopped at step 3"):
        train(out, at_step=3, act=interrupt)
    assert not out.exists()
    assert (sft.working_folder(out) / "checkpoint-3").is_dir()
    run = train(out, resume=True)
    assert (run.path / WEIGHTS).read_bytes() == (unbroken.path / WEIGHTS).read_bytes()
    assert steps(run) == steps(unbroken)
    assert not sft.working_folder(out).exists()


def test_a_run_that_died_goes_on_from_its_checkpoint_and_counts_no_step_twice(train, unbroken, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at_step=6, act=die)
    (sft.working_folder(out) / "checkpoint-4" / "trainer_state.json").unlink()
    run = train(out, resume=True)
    assert (run.path / WEIGHTS).read_bytes() == (unbroken.path / WEIGHTS).read_bytes()
    assert steps(run) == steps(unbroken)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(train, unbroken, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at_step=2, act=die)
    run = train(out, resume=True)
    assert steps(run) == steps(unbroken)


def test_a_second_ctrl_c_interrupts_at_once(train, tmp_path):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "run", at_step=2, act=twice)
    assert not isinstance(caught.value, sft.Interrupted)
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resume_refuses_other_data_other_settings_and_nothing(train, tiny_dataset, makers, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="nothing to resume"):
        train(out, resume=True)
    with pytest.raises(Killed):
        train(out, at_step=1, act=die)
    other = makers.dataset(tmp_path / "other", makers.rows(23), makers.rows(8, 100))
    with pytest.raises(UserError, match="not the one this run began with"):
        train(out, resume=True, dataset=other)
    with pytest.raises(UserError, match="differ from those this run began with: rank, alpha"):
        train(out, resume=True, rank=8, alpha=16)


def checkpoint(folder, step, missing=None, empty=None):
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        if name != missing:
            (made / name).write_text("" if name == empty else "x")
    return made


def test_the_newest_complete_checkpoint_is_taken(tmp_path, capsys):
    assert sft.last_checkpoint(tmp_path) is None
    whole = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10, missing="trainer_state.json")
    checkpoint(tmp_path, 100, empty="optimizer.pt")
    (tmp_path / "checkpoint-tmp").mkdir()
    assert sft.last_checkpoint(tmp_path) == whole
    assert capsys.readouterr().err.splitlines() == [
        "checkpoint-100 is incomplete and is passed over",
        "checkpoint-10 is incomplete and is passed over",
    ]
    shutil.rmtree(whole)
    assert sft.last_checkpoint(tmp_path) is None
