"""Stopping and going on: `--resume` ends with the very weights and counters that an unbroken run ends with.

T7: a kill inside the checkpoint's write. T8: counters. T21: random states.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.core.errors import ExitCode, InfrastructureError, UserError
from tunegate.core.model_source import resolve
from tunegate.train import checkpoints, sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.stop import Interrupted
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.1,
         "save_steps": 2, "eval_steps": 3, "keep_best": False, "rank": 4, "alpha": 8, "dropout": 0.1, "seed": 3}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"
DRIVER = Path(__file__).with_name("kill_driver.py")


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.fixture
def train(tiny_model, tiny_dataset, monkeypatch):
    make = sft.make_trainer

    def call(out, *, resume=False, force=False, dataset=tiny_dataset, at_step=None, act=None, **changes):
        from transformers import TrainerCallback

        class Act(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step + 1 == at_step:
                    act()

        def acting(**options):
            return make(**{**options, "callbacks": [*options["callbacks"], Act()]})

        monkeypatch.setattr(sft, "make_trainer", acting)
        config = resolve_config([("test", {"model": str(tiny_model), **SHORT, **changes})])[0]
        return sft.train(dataset, resolve(str(tiny_model)), config, out, resume=resume, force=force)

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


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def die():
    raise Killed


def history(run):
    """Every metrics line without what the clock decides."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "peak_memory_gb")} for line in lines]


def same(run, unbroken):
    assert (run.path / WEIGHTS).read_bytes() == (unbroken.path / WEIGHTS).read_bytes()
    assert history(run) == history(unbroken)
    found, wanted = dict(run.manifest.facts), dict(unbroken.manifest.facts)
    assert found.pop("peak_memory_gb") > 0
    wanted.pop("peak_memory_gb")
    assert found == wanted


@pytest.mark.parametrize("ask", [interrupt, terminate])
def test_a_stop_then_resume_gives_bitwise_the_same_run(train, unbroken, tmp_path, capsys, ask):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at step 3; go on with the same command and --resume"):
        train(out, at_step=3, act=ask)
    assert not out.exists()
    assert checkpoints.problem(working_folder(out) / "checkpoint-3") is None
    same(train(out, resume=True), unbroken)
    assert "resuming from step 3" in capsys.readouterr().err
    assert not working_folder(out).exists()


def test_a_run_that_died_goes_on_from_the_last_whole_checkpoint(train, unbroken, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at_step=6, act=die)
    optimizer = working_folder(out) / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    same(train(out, resume=True), unbroken)
    said = capsys.readouterr().err
    assert "checkpoint-4 is passed over: optimizer.pt has" in said
    assert "resuming from step 2" in said


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(train, unbroken, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at_step=2, act=die)
    with (working_folder(out) / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 2, "lo')
    same(train(out, resume=True), unbroken)


def test_every_state_of_a_resumed_run_is_bitwise_that_of_an_unbroken_one(train, tmp_path):
    """T21: the random states too; T7: the optimizer's."""
    for out, stops in ((tmp_path / "a", [5]), (tmp_path / "b", [3, 5])):
        for number, step in enumerate(stops):
            with pytest.raises(Interrupted):
                train(out, resume=number > 0, at_step=step, act=interrupt)
    one, two = (working_folder(tmp_path / name) / "checkpoint-5" for name in "ab")
    for name in (WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    # The length of the metrics file depends on how many digits the measured speed has.
    counted = [json.loads((folder / "progress.json").read_text()) for folder in (one, two)]
    assert [c.pop("metrics_bytes") > 0 for c in counted] == [True, True]
    assert counted[0] == counted[1]


def test_a_second_ctrl_c_interrupts_at_once(train, tmp_path):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "run", at_step=2, act=twice)
    assert not isinstance(caught.value, Interrupted)
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resume_refuses_other_data_other_settings_and_nothing(train, makers, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="nothing to resume"):
        train(out, resume=True)
    with pytest.raises(Killed):
        train(out, at_step=4, act=die)
    other = makers.dataset(tmp_path / "other", makers.rows(23), makers.rows(8, 100))
    with pytest.raises(UserError, match="not the one this run began with"):
        train(out, resume=True, dataset=other)
    with pytest.raises(UserError, match=r"differ from those this run began with: rank \(was 4\), alpha \(was 8\)"):
        train(out, resume=True, rank=8, alpha=16)
    assert checkpoints.last_complete(working_folder(out)).name == "checkpoint-2"
    made = train(out, resume=True, save_steps=4, logging_steps=2)
    assert made.manifest.facts["steps"] == 6
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert [step for step in steps if step > 2] == [4, 6]  # by the new logging_steps


def test_an_unfinished_run_is_not_thrown_away_by_the_same_command(train, unbroken, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at_step=5, act=die)
    with pytest.raises(UserError, match="an unfinished run is here, at step 4") as caught:
        train(out)
    assert "--resume" in caught.value.hint
    assert (working_folder(out) / "checkpoint-4").is_dir()
    same(train(out, force=True), unbroken)


def test_two_processes_do_not_train_into_one_folder(train, tmp_path):
    import fcntl

    work = working_folder(tmp_path / "run")
    work.mkdir()
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is training"):
            train(tmp_path / "run")
    finally:
        os.close(handle)


def test_a_full_disk_is_one_line_and_costs_nothing(train, unbroken, tmp_path):
    """The limit on a file's size stands for the disk: the optimizer's file is larger, the adapter's is not."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(InfrastructureError, match="checkpoint of step 4 could not be written") as caught:
            train(out, at_step=4, act=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint-2 is whole" in caught.value.message
    assert caught.value.exit_code == ExitCode.INFRASTRUCTURE
    assert not list(working_folder(out).glob(".checkpoint-*"))
    same(train(out, resume=True), unbroken)


def test_early_stopping_is_remembered_and_the_best_weights_are_kept(train, tmp_path, monkeypatch):
    from tunegate.train import trainer

    losses = {2: 3.0, 4: 4.0, 6: 5.0}
    monkeypatch.setattr(trainer, "validation_loss", lambda model, *_, **__: next(queue))
    settings = {"max_steps": 20, "eval_steps": 2, "early_stopping_patience": 2, "keep_best": None}
    queue = iter(losses.values())
    run = train(tmp_path / "run", **settings)
    facts = run.manifest.facts
    assert (facts["steps"], facts["stopped_early"], facts["weights_of_step"]) == (6, True, 2)
    assert facts["validation_loss"] == 3.0
    queue = iter(losses.values())
    two = train(tmp_path / "two", max_steps=2, **{k: v for k, v in settings.items() if k != "max_steps"},
                lr_scheduler_type="constant", warmup_ratio=0.0)  # fmt: skip
    queue = iter(losses.values())
    all_six = train(tmp_path / "six", **settings, lr_scheduler_type="constant", warmup_ratio=0.0)
    assert (all_six.path / WEIGHTS).read_bytes() == (two.path / WEIGHTS).read_bytes()


def write_checkpoint(work, step, **options):
    with checkpoints.writing(work, step, **options) as folder:
        (folder / "adapter_model.safetensors").write_text(f"weights of {step}")
        (folder / "training_args.bin").write_text("a pickle")


def test_the_newest_whole_checkpoint_is_taken(tmp_path, capsys):
    assert checkpoints.last_complete(tmp_path) is None
    for step in (9, 10, 100):
        write_checkpoint(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]
    assert sorted(p.name for p in (tmp_path / "checkpoint-10").iterdir()) == [
        "adapter_model.safetensors",
        "complete.json",
    ]
    (tmp_path / "checkpoint-100" / "adapter_model.safetensors").write_text("weights of 199")
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-10"
    assert "checkpoint-100 is passed over: adapter_model.safetensors was changed" in capsys.readouterr().err
    (tmp_path / "checkpoint-100" / "adapter_model.safetensors").unlink()
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-10"
    assert "checkpoint-100 is passed over: adapter_model.safetensors is missing" in capsys.readouterr().err
    (tmp_path / "checkpoint-10" / "complete.json").write_text("{")
    assert checkpoints.last_complete(tmp_path) is None
    write_checkpoint(tmp_path, 100)
    assert checkpoints.last_complete(tmp_path).name == "checkpoint-100"


def test_the_best_checkpoint_outlives_the_newest_two(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write_checkpoint(tmp_path, step, best_step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


@pytest.fixture
def driven(tiny_model, tiny_dataset, tmp_path):
    def call(name, kills, **changes):
        order = {"model": str(tiny_model), "dataset": str(tiny_dataset.path), "out": str(tmp_path / name / "run"),
                 "settings": {**SHORT, **changes}, "kills": kills}  # fmt: skip
        done = subprocess.run([sys.executable, str(DRIVER), json.dumps(order)], capture_output=True, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["history"][-1]["outcome"] == "done", (tmp_path / name / "child.log").read_text()[-3000:]
        return found

    return call


@pytest.mark.slow
def test_two_sigkills_one_inside_a_checkpoints_write(driven, unbroken):
    """T7. File operation 40 below the working folder lies in the first checkpoint's write, as the remains prove."""
    found = driven("storm", [{"event": 40}, {"event": 90}])
    killed = [h for h in found["history"] if h["outcome"] == "killed"]
    assert len(killed) == 2
    assert any(h["partial"] for h in killed), found["history"]
    assert found["metrics"] == history(unbroken)
    facts = {k: v for k, v in unbroken.manifest.facts.items() if k != "peak_memory_gb"}
    assert found["facts"] == facts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_storm_of_kills_changes_nothing(driven, method):
    """T7, T8: some fifteen SIGKILLs a run, at file operations and at any moment, end with the unbroken run's bytes."""
    settings = {"method": method, "max_steps": 40, "save_steps": 2, "eval_steps": 4}  # longer than all kills together
    whole = driven("whole", [], **settings)
    dice = random.Random(7)
    kills = [{"event": n} for n in (1, 5, *range(20, 70, 6))] + [{"after_s": dice.uniform(0.2, 1.0)} for _ in range(6)]
    dice.shuffle(kills)
    found = driven("storm", kills, **settings)
    killed = [h for h in found["history"] if h["outcome"] == "killed"]
    assert len(killed) >= 8
    assert any(h["partial"] for h in killed)
    assert {k: found[k] for k in ("weights", "metrics", "facts")} == {
        k: whole[k] for k in ("weights", "metrics", "facts")
    }
