"""Training in several processes: the same losses and the same files as one process with the same global batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.errors import InfrastructureError, UsageError, UserError
from tunegate.core.model_source import resolve
from tunegate.train import launch as launching
from tunegate.train import sft
from tunegate.train.config import TrainConfig
from tunegate.train.config import resolve as resolve_config
from tunegate.train.launch_options import Launch, launch_of
from tunegate.train.watch import TrainingDivergedError
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"max_steps": 4, "gradient_accumulation_steps": 1, "validation_share": 0.2, "save_steps": 0, "rank": 4, "alpha": 8,
         "seed": 3, "dtype": "float32", "learning_rate": 2e-3}  # fmt: skip


def train(model, dataset, out, *, processes=1, strategy="ddp", resume=False, by="accelerate", **changes) -> Run:
    """The same four rows a step, whatever the number of processes."""
    settings = {"model": str(model), **SHORT, "per_device_train_batch_size": 4 // processes, **changes}
    launch = Launch(launch=by, num_processes=processes, strategy=strategy) if processes > 1 else None
    config = resolve_config([("test", settings)])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=resume, force=False, launch=launch)


def metrics(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def same(found: Run, wanted: Run, *, rel: float) -> None:
    """Losses, counters, files, keys and shapes; weights within rounding."""
    import torch
    from safetensors.torch import load_file

    one, two = metrics(wanted), metrics(found)
    assert [sorted(line) for line in two] == [sorted(line) for line in one]
    for key in ("loss", "eval_loss", "grad_norm"):
        values = [[line[key] for line in lines if key in line] for lines in (two, one)]
        assert values[0] == pytest.approx(values[1], rel=rel), key
    for key in ("tokens", "label_tokens"):
        assert [line.get(key) for line in two] == [line.get(key) for line in one]
    assert {p.name for p in found.path.iterdir()} == {p.name for p in wanted.path.iterdir()}
    name = "model.safetensors" if wanted.method == "full" else "adapter_model.safetensors"
    before, after = load_file(wanted.path / name), load_file(found.path / name)
    assert {k: (w.shape, w.dtype) for k, w in after.items()} == {k: (w.shape, w.dtype) for k, w in before.items()}
    for key, weight in before.items():
        torch.testing.assert_close(after[key], weight, rtol=2e-2, atol=5e-4)
    for key in ("steps", "trainable_params", "tokens", "mask", "trained_dtype", "validation_rows"):
        assert found.manifest.facts[key] == wanted.manifest.facts[key], key
    assert manifest.verify(found.path) == []
    assert found.manifest.facts["processes"] == 2


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_dataset, tmp_path_factory):
    """The run of one process with a method, made once."""
    made = {}

    def call(method):
        if method not in made:
            out = tmp_path_factory.mktemp("alone") / method
            made[method] = train(tiny_model, tiny_dataset, out, method=method)
        return made[method]

    return call


@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("fsdp2", "lora"),
        pytest.param("ddp", "lora", marks=pytest.mark.slow),
        pytest.param("ddp", "full", marks=pytest.mark.slow),
        pytest.param("fsdp2", "full", marks=pytest.mark.slow),
        pytest.param("ddp", "qlora", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_does(tiny_model, tiny_dataset, alone, tmp_path, strategy, method):
    """T17: of a sharded adapter the whole is saved."""
    found = train(tiny_model, tiny_dataset, tmp_path / "run", processes=2, strategy=strategy, method=method)
    same(found, alone(method), rel=2e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.avx512
def test_a_stopped_run_of_two_goes_on_and_ends_as_an_unbroken_one(tiny_model, tiny_dataset, tmp_path, capsys):
    """SIGTERM to the one process that the user sees; both others save, and all are gone."""
    import torch
    from safetensors.torch import load_file

    unbroken = train(tiny_model, tiny_dataset, tmp_path / "unbroken", processes=2, save_steps=2, max_steps=16)
    out = tmp_path / "run"
    folder = working_folder(out)
    process = elsewhere(tiny_model, tiny_dataset, out)
    wait_for(lambda: (folder / "metrics.jsonl").is_file())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "go on with the same command and --resume" in said
    kept = [p.name for p in folder.glob("checkpoint-*")]
    assert len(kept) >= 1
    assert not out.exists()
    with pytest.raises(UserError, match=r"began with 2 ddp processes, not 1"):
        train(tiny_model, tiny_dataset, out, resume=True, save_steps=2, max_steps=16, per_device_train_batch_size=2)
    found = train(tiny_model, tiny_dataset, out, processes=2, resume=True, save_steps=2, max_steps=16)
    assert metrics_of_weights(found) == metrics_of_weights(unbroken)
    one, two = (load_file(run.path / "adapter_model.safetensors") for run in (found, unbroken))
    assert all(torch.equal(one[name], two[name]) for name in two)


def elsewhere(model, dataset, out) -> subprocess.Popen:
    """A run of sixteen steps by two processes, started in a process of its own."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_launch as t
from pathlib import Path
from tunegate.core.artifacts import Dataset
from tunegate.train.stop import Interrupted
try:
    t.train(Path({str(model)!r}), Dataset.open(Path({str(dataset.path)!r})), Path({str(out)!r}), processes=2, save_steps=2,
            max_steps=16)
except Interrupted as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(130)
"""
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_when_the_process_that_started_them_is_killed_all_end(tiny_model, tiny_dataset, tmp_path):
    folder = working_folder(tmp_path / "run")
    process = elsewhere(tiny_model, tiny_dataset, tmp_path / "run")
    wait_for(lambda: (folder / "rank-1.log").is_file() and (folder / "rank-0.log").is_file())
    assert len(workers_of(folder)) == 2
    process.kill()
    process.communicate()
    wait_for(lambda: not workers_of(folder), seconds=20)


def metrics_of_weights(run: Run) -> list[dict]:
    """What of the metrics does not depend on the clock or on the machine."""
    clock = ("tokens_per_s", "peak_memory_gb")
    return [{k: v for k, v in line.items() if k not in clock} for line in metrics(run)]


def wait_for(done, seconds=120.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_what_a_process_raises_is_raised_here_with_the_rows(poisoned_model, makers, tmp_path):
    """One row of the second process has a loss that is no number; both stop, and nothing is left of the run."""
    rows = makers.rows(6)
    rows[4]["messages"][0]["content"] = "a tilde ~ here"
    dataset = makers.dataset(tmp_path / "data", rows, makers.rows(2, 50))
    with pytest.raises(TrainingDivergedError, match=r"the loss is nan at step \d; rows r4$") as caught:
        train(
            poisoned_model,
            dataset,
            tmp_path / "run",
            processes=2,
            per_device_train_batch_size=1,
            validation_share=0,
        )
    assert "left untouched" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_infrastructure_error(tiny_model, tiny_dataset, tmp_path, monkeypatch):
    """And the other one does not stay behind."""
    out = tmp_path / "run"
    show = launching._show
    killed = []

    def killing(log, shown):
        """When the second process has begun to speak, it is killed."""
        other = log.parent / "rank-1.log"
        if not killed and other.is_file() and other.stat().st_size:
            killed.extend(workers_of(log.parent))
            os.kill(killed[-1], signal.SIGKILL)
        return show(log, shown)

    monkeypatch.setattr(launching, "_show", killing)
    with pytest.raises(InfrastructureError, match="a process of the run ended with exit code 1") as caught:
        train(tiny_model, tiny_dataset, out, processes=2)
    assert "rank-N.log" in caught.value.hint
    assert len(killed) == 2
    wait_for(lambda: not workers_of(working_folder(out)))
    assert not out.exists()


def workers_of(folder: Path) -> list[int]:
    """Ids of the processes that train this job (not of their launcher)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:3] == ["-u", "-m"] and words[3:4] == ["tunegate.train.worker"] and str(folder / "job.json") in words:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_processes": 2}, "means nothing without --launch"),
        ({"launch": "mpi"}, "unknown value 'mpi'"),
        ({"launch": "accelerate", "strategy": "zero"}, "unknown value 'zero'"),
        ({"launch": "accelerate", "num_processes": 0}, "cannot be shared evenly"),
        ({"launch": "accelerate", "num_processes": 3, "num_machines": 2}, "cannot be shared evenly"),
        ({"launch": "accelerate", "num_machines": 2}, "need a place to meet"),
        ({"launch": "accelerate", "machine_rank": 1}, "1 machines are 0 to 0"),
    ],
)
def test_what_cannot_be_started_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        launch_of(options).check(TrainConfig())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("compute_environment: LOCAL_MACHINE\n", "not a config of accelerate"),
        ("distributed_type: MULTI_CPU\n", "starts one process on a CPU"),
        ("distributed_type: DEEPSPEED\n", "DeepSpeed is not installed"),
    ],
)
def test_a_config_of_accelerate_is_looked_at_first(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        Launch(launch="accelerate", launch_config=str(tmp_path / "a.yaml")).check(TrainConfig())
    with pytest.raises(UserError, match="4-bit weights are not sharded"):
        Launch(launch="accelerate", strategy="fsdp2").check(TrainConfig(method="qlora"))


def test_accelerate_reads_the_command_and_the_config(tmp_path):
    """Accelerate's own parser, on a file for FSDP2 over four GPUs of two machines."""
    from accelerate.commands.launch import launch_command_parser

    (tmp_path / "a.yaml").write_text("distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n")
    launch = Launch(launch="accelerate", num_processes=4, launch_config=str(tmp_path / "a.yaml"))
    launch.check(TrainConfig())
    words = launching.command(launch, tmp_path / "job.json")
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    read = launch_command_parser().parse_args(words[3:])
    assert (read.config_file, read.num_processes, read.module) == (str(tmp_path / "a.yaml"), 4, True)
    assert (read.training_script, read.training_script_args) == ("tunegate.train.worker", [str(tmp_path / "job.json")])


def test_torchrun_reads_the_command_of_each_machine(tmp_path):
    from torch.distributed.run import parse_args

    launch = Launch(launch="accelerate", num_processes=8, num_machines=2, machine_rank=1, rdzv_endpoint="node0:29400")
    read = parse_args(launching.command(launch, tmp_path / "job.json")[3:])
    assert (read.nproc_per_node, read.nnodes, read.node_rank) == ("4", "2", 1)
    assert (read.rdzv_backend, read.rdzv_endpoint) == ("static", "node0:29400")
    assert (read.module, read.training_script) == (True, "tunegate.train.worker")


@pytest.mark.slow
def test_two_machines_train_one_run(tiny_model, tiny_dataset, alone, tmp_path):
    """Two launchers of one process each, which meet at a port; the first writes."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"model": str(tiny_model), **SHORT, "per_device_train_batch_size": 2}
    (tmp_path / "c.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    words = ["train", str(tiny_dataset.path), "--out", "run", "--config", "c.yaml", "--launch", "accelerate"]
    words += ["--num-machines", "2", "--rdzv-endpoint", place]
    ft = [str(Path(sys.executable).with_name("ft")), *words]
    both = [
        subprocess.Popen([*ft, "--machine-rank", str(n)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for n in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "the run is written by machine 0" in said[1]
    same(Run.open(tmp_path / "run"), alone("lora"), rel=2e-4)


@pytest.mark.slow
@pytest.mark.avx512
@pytest.mark.timeout(600)
def test_ray_trains_one_run_on_a_local_cluster_of_two_workers(tiny_model, tiny_dataset, alone, tmp_path, with_ray):
    settings = {**SHORT, "model": str(tiny_model), "per_device_train_batch_size": 2}
    (tmp_path / "train.yaml").write_text(json.dumps(settings))
    words = ["train", str(tiny_dataset.path), "--config", "train.yaml", "--out", "run", "--launch", "ray", "--num-processes", "2"]  # fmt: skip
    ft = str(Path(sys.executable).with_name("ft"))
    done = subprocess.run([ft, *words], cwd=tmp_path, env=with_ray, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    same(Run.open(tmp_path / "run"), alone("lora"), rel=2e-4)


def test_ray_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray is not installed"):
        Launch(launch="ray").check(TrainConfig())
