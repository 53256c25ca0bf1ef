"""Before training: what cannot fit is refused with what would; trackers, advice, the config file, the curve."""

import dataclasses
import importlib.util
import json
import os
import time
import xml.etree.ElementTree as ET

import pytest

from tunegate.core.commands import run as run_command
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve as resolve_model
from tunegate.train import advice, loss_curve, preflight, trackers
from tunegate.train.cli import app
from tunegate.train.config import TrainConfig, commented_yaml, from_file, resolve

LOAD = preflight.Load(rows=1000, longest=512, mean=300.0, label_share=0.1)


@pytest.fixture
def source(tiny_model):
    return resolve_model(str(tiny_model))


@pytest.fixture
def machine_of(monkeypatch):
    def call(memory_gb):
        monkeypatch.setattr(preflight.machine, "memory_gb", lambda: memory_gb)

    return call


def test_a_forecast_has_memory_time_and_its_interval(source, machine_of):
    machine_of(16.0)
    found = preflight.forecast(source, TrainConfig(), LOAD, "cpu")
    assert (found.device, found.device_gb, found.fits, found.proposals) == ("cpu", 16.0, True, ())
    assert found.steps == 3 * -(-250 // 4)
    assert 0 < found.memory_gb["low"] < found.memory_gb["value"] < found.memory_gb["high"] < 16
    tokens = found.steps * 16 * 300.0
    assert found.hours["value"] == pytest.approx(tokens / found.tokens_per_s["value"] / 3600)
    assert found.hours["low"] < found.hours["value"] < found.hours["high"]
    found.check()


def test_the_command_that_teaches_the_advisor_leaves_the_rest_to_the_run(source):
    assert preflight.forecast(source, TrainConfig(), LOAD, "cpu").calibrate == "ftadvise calibrate RUN --gpu cpu"
    gguf = preflight.forecast(dataclasses.replace(source, kind="gguf"), TrainConfig(), LOAD, "cpu").calibrate
    assert gguf == f"ftadvise calibrate RUN --model {source.location} --gpu cpu", "the folder it was unpacked to"


def big(tmp_path, tiny_model):
    """The shape of an 8B Llama; no weights are needed for a forecast."""
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
               "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128}  # fmt: skip
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(config))
    return resolve_model(str(tmp_path / "big"))


def test_what_cannot_fit_is_refused_and_what_would_is_proposed(tmp_path, tiny_model, machine_of):
    machine_of(12.0)
    load = dataclasses.replace(LOAD, longest=2048)
    found = preflight.forecast(big(tmp_path, tiny_model), TrainConfig(method="full"), load, "cpu")
    assert not found.fits
    with pytest.raises(UserError, match=r"this needs .* GB, cpu has 12\.0") as caught:
        found.check()
    assert "--method qlora" in caught.value.hint
    assert "--method lora" not in caught.value.hint  # 16 GB of weights do not fit either
    machine_of(1.0)
    hopeless = preflight.forecast(big_again(tmp_path), TrainConfig(method="full"), load, "cpu")
    assert hopeless.proposals == ()
    with pytest.raises(UserError) as caught:
        hopeless.check()
    assert "a smaller model or a larger device" in caught.value.hint


def big_again(tmp_path):
    return resolve_model(str(tmp_path / "big"))


def test_every_proposal_is_predicted_to_fit(tmp_path, tiny_model, machine_of):
    machine_of(40.0)
    load = dataclasses.replace(LOAD, longest=4096)
    source = big(tmp_path, tiny_model)
    found = preflight.forecast(source, TrainConfig(dtype="bfloat16", gradient_checkpointing=False), load, "cpu")
    assert not found.fits
    assert found.proposals
    assert any(text.startswith("--gradient-checkpointing (") for text in found.proposals)
    helped = preflight.forecast(source, TrainConfig(dtype="bfloat16", gradient_checkpointing=True), load, "cpu")
    assert helped.fits


def test_a_base_in_float32_takes_twice_the_memory_and_bfloat16_is_proposed(
    tmp_path, tiny_model, machine_of, monkeypatch
):
    machine_of(40.0)
    source = big(tmp_path, tiny_model)
    peaks = []
    for flags in ({"avx512_bf16"}, {"avx2"}):
        monkeypatch.setattr(preflight.machine, "cpu_flags", lambda flags=flags: frozenset(flags))
        found = preflight.forecast(source, TrainConfig(gradient_checkpointing=True, device="cpu"), LOAD, "cpu")
        peaks.append(found.memory_gb["value"])
    assert peaks[1] - peaks[0] == pytest.approx(2 * 7.5, rel=0.01)  # the embeddings are tied
    machine_of(peaks[1])
    found = preflight.forecast(source, TrainConfig(gradient_checkpointing=True, device="cpu"), LOAD, "cpu")
    assert f"--dtype bfloat16 ({peaks[0]:.1f} GB)" in found.proposals


def test_what_recomputes_is_the_forecasts_as_well():
    from tunegate.train.arguments import recomputes

    assert [recomputes(TrainConfig(method=m), "cpu") for m in ("lora", "qlora", "full")] == [False] * 3
    assert recomputes(TrainConfig(method="qlora", fast_cpu=False), "cpu")
    assert recomputes(TrainConfig(), "cuda")
    assert not recomputes(TrainConfig(gradient_checkpointing=False), "cuda")


def test_an_unknown_shape_or_gpu_gives_no_forecast_and_says_so(tmp_path, source, monkeypatch, capsys):
    monkeypatch.setattr(preflight.machine, "gpus", lambda: (preflight.machine.Gpu("NVIDIA Foo 9000", 48.0),))
    assert preflight.forecast(source, TrainConfig(), LOAD, "cuda") is None
    assert "Foo 9000 is not in the advisor's table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "known"),
    [("NVIDIA H100 80GB HBM3", "H100-SXM"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("Tesla T4", "T4"), ("NVIDIA L4", "L4"),
     ("NVIDIA GeForce RTX 4090", "RTX4090")],
)  # fmt: skip
def test_a_gpu_is_known_by_the_drivers_name_and_has_its_real_memory(source, monkeypatch, name, known):
    monkeypatch.setattr(preflight.machine, "gpus", lambda: (preflight.machine.Gpu(name, 77.7),))
    found = preflight.forecast(source, TrainConfig(), LOAD, "cuda")
    assert (found.device, found.device_gb) == (known, 77.7)


def test_measured_against_forecast_is_said(source, machine_of, capsys):
    machine_of(16.0)
    found = preflight.forecast(source, TrainConfig(), LOAD, "cpu")
    found.measured(float(found.tokens_per_s["value"]) * 2, float(found.memory_gb["value"]) / 2)
    said = capsys.readouterr().err
    assert "(2.00 times the forecast)" in said
    assert "(0.50 times)" in said
    assert "ftadvise calibrate RUN" in said


def test_early_stopping_needs_rows_to_judge_by():
    with pytest.raises(UserError, match="need validation rows"):
        preflight.check_data(TrainConfig(early_stopping_patience=2), 100, 0)
    assert preflight.check_data(TrainConfig(), 100, 0) == []
    assert "--eval-steps measures nothing" in preflight.check_data(TrainConfig(eval_steps=5), 100, 0)[0]
    assert "20 rows" in preflight.check_data(TrainConfig(), 20, 4)[0]


def test_a_run_that_cannot_fit_is_refused_by_the_command(tiny_model, tiny_dataset, tmp_path, machine_of, capsys):
    machine_of(0.1)
    argv = [str(tiny_dataset.path), "--out", str(tmp_path / "run"), "--model", str(tiny_model), "--dry-run"]
    assert run_command(app, prog="ft train", argv=argv) == 2
    assert "error: memory: this needs" in capsys.readouterr().err
    assert run_command(app, prog="ft train", argv=[*argv, "--no-preflight"]) == 0


def test_a_dry_run_as_json_holds_everything(tiny_model, tiny_dataset, tmp_path, capsys):
    argv = [str(tiny_dataset.path), "--out", str(tmp_path / "run"), "--model", str(tiny_model), "--dry-run", "--json"]
    assert run_command(app, prog="ft train", argv=argv) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["origins"]["rank"] == "preset recommended"
    assert document["template"]["stops"] == ["<|im_end|>"]
    assert document["forecast"]["memory_gb"].keys() >= {"value", "low", "high", "source", "n"}
    first = document["examples"][0]
    assert [p["text"] for p in first["parts"] if p["learnt"]] == ['{"sum": 0}<|im_end|>']
    assert "".join(p["text"] for p in first["parts"]).startswith("<|im_start|>user\nWhat is 0 plus 0?")
    assert len(document["examples"]) == 3


def test_a_missing_tracker_is_one_line_with_the_command(tmp_path):
    missing = [name for name in ("mlflow", "wandb", "trackio") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed")
    with pytest.raises(UserError, match=f"the tracker {missing[0]} is not installed") as caught:
        trackers.prepare(TrainConfig(report_to=(missing[0],)), tmp_path / "run")
    assert caught.value.hint == f"pip install {missing[0]}"
    assert not list(tmp_path.iterdir())


def test_trackers_write_beside_the_run_and_stay_local(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for key in ("TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "TRACKIO_DIR", "WANDB_DIR",
                "MLFLOW_EXPERIMENT_NAME", "MLFLOW_FLATTEN_PARAMS", "WANDB_PROJECT", "DO_NOT_TRACK"):  # fmt: skip
        monkeypatch.delenv(key, raising=False)
    trackers.prepare(TrainConfig(report_to=("tensorboard", "mlflow", "wandb", "trackio")), tmp_path / "run")
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/tracking/mlflow.db"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tracking" / "tensorboard" / "run")
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "tracking" / "trackio")


@pytest.mark.parametrize("method", ["lora", "full", "prompt", "rag"])
def test_the_commented_config_reads_back_as_the_defaults(tmp_path, method):
    path = tmp_path / "train.yaml"
    path.write_text(commented_yaml(method))
    assert resolve([(str(path), from_file(path))])[0] == resolve([("flag", {"method": method})])[0]
    assert "# LoRA rank r." in path.read_text() or method != "lora"
    assert (method == "full") == ("# learning_rate: 2.0e-05" in path.read_text()), (
        "what the method takes, in any preset"
    )
    path.write_text(commented_yaml("lora", {"preset": "aggressive", "rank": 8, "model": "org/name"}))
    config = resolve([(str(path), from_file(path))])[0]
    assert (config.rank, config.alpha, config.model) == (8, 128, "org/name")


def test_a_wrong_key_or_value_is_named_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# settings\nmethod: lora\nlearnign-rate: 1\n")
    with pytest.raises(UserError) as caught:
        resolve([(str(path), from_file(path))])
    assert caught.value.where == f"{path}:3"
    path.write_text("# settings\n\nrank: many\n")
    with pytest.raises(UserError) as caught:
        resolve([(str(path), from_file(path))])
    assert caught.value.where == f"{path}:3"


@pytest.mark.parametrize(
    ("given", "dtype"),
    [("torch.bfloat16", "bfloat16"), ("auto", "auto"), ("fp32", "float32"), ("torch.float32", "float32")],
)
def test_the_articles_torch_dtype_is_mapped_with_a_word(given, dtype):
    config, _, notes = resolve([("a.yaml", {"torch_dtype": given})])
    assert config.dtype == dtype
    assert notes == ["a.yaml: torch_dtype is called dtype here"]
    with pytest.raises(UserError, match="float16 overflows"):
        resolve([("a.yaml", {"torch_dtype": "torch.float16"})])


def test_the_defaults_are_the_articles():
    config = resolve([])[0]
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (
        3,
        4,
        4,
    )
    assert (config.lr_scheduler_type, config.warmup_ratio, config.max_length) == ("cosine", 0.03, 2048)


def log_records(data, *, header=7, block=32768):
    """The records of a log in LevelDB's format: blocks of 32 KiB, the first short of the file's own header; each piece is
    checksum (4), length (2), kind (1: whole, 2: first, 3: middle, 4: last). https://github.com/google/leveldb/blob/main/doc/log_format.md"""
    at, parts = 0, []
    while at + 7 <= len(data):
        left = block - (at + header) % block
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def logged_losses(name, folder, run):
    """The losses that a tracker stored, read by the tracker's own means."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder / "tensorboard" / run))
        found.Reload()
        return [event.value for event in found.Scalars("train/loss")]
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tunegate")
        (only,) = client.search_runs([experiment.experiment_id])
        return [m.value for m in client.get_metric_history(only.info.run_id, "loss")]
    if name == "trackio":
        import sqlite3

        (file,) = [p for p in (folder / "trackio").rglob("*.db") if "huggingface" in p.name or "tunegate" in p.name]
        with sqlite3.connect(file) as store:
            lines = [json.loads(text) for (text,) in store.execute("select metrics from metrics order by step")]
        return [line["train/loss"] for line in lines if "train/loss" in line]
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.finish()  # as the end of the process does
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    records, losses, last = [], [], time.monotonic() + 60
    while (
        not any(record.HasField("exit") for record in records) and time.monotonic() < last
    ):  # written by its own process
        data = log_records(file.read_bytes()[7:])  # after the name and version of the format
        records = [wandb_internal_pb2.Record.FromString(record) for record in data]
        time.sleep(0.1)
    for record in records:
        items = {"/".join([i.key, *i.nested_key]).strip("/"): i.value_json for i in record.history.item}
        losses += [json.loads(items["train/loss"])] if "train/loss" in items else []
    return losses


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_tracker_that_is_installed_holds_the_losses(name, tiny_model, tiny_dataset, tmp_path, monkeypatch):
    if importlib.util.find_spec(name) is None:  # not imported here: trackio asks for its folder when it is
        pytest.skip(f"{name} is not installed")
    from tunegate.train import sft

    for key in (
        "TENSORBOARD_LOGGING_DIR",
        "MLFLOW_TRACKING_URI",
        "WANDB_MODE",
        "WANDB_DIR",
        "TRACKIO_DIR",
        "WANDB_PROJECT",
    ):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    config = resolve(
        [("test", {"model": str(tiny_model), "max_steps": 3, "report_to": [name], "validation_share": 0.0})]
    )[0]
    run = sft.train(tiny_dataset, resolve_model(str(tiny_model)), config, tmp_path / "run", resume=False, force=False)
    wanted = [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert logged_losses(name, tmp_path / "tracking", "run") == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("lr_scheduler_type", "cosin", "unknown lr_scheduler_type 'cosin'"), ("report_to", "tensorbord", "unknown tracker 'tensorbord'"),
     ("dtype", "int8", "unknown dtype 'int8'"), ("early_stopping_patience", -1, "must be 0 or more")],
)  # fmt: skip
def test_unknown_choices_are_refused(key, value, says):
    with pytest.raises(UserError, match=says):
        resolve([("flag", {key: value})])


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({"method": "lora", "learning_rate": 2e-5}, None, "a full-tuning rate"),  # T15
        ({"method": "full", "learning_rate": 2e-4}, None, "a LoRA rate"),
        ({"method": "lora", "learning_rate": 5e-3}, 8.0, "far from what is usual for 8B parameters: 0.0002 to 0.0005"),
        ({"use_dora": True}, None, "vLLM does not serve an adapter with DoRA: merge the run"),  # R4
        ({"modules_to_save": ("lm_head",)}, None, "with modules_to_save"),
        ({"rank": 1024}, None, "with a rank above 512"),
    ],
)
def test_what_does_not_fit_is_said_before_training(changes, size, says):
    found = advice.warnings(TrainConfig(**changes), size)
    assert any(says in text for text in found), found


def test_the_presets_need_no_warning():
    for size in (0.135, 8.0, 70.0):
        assert advice.warnings(TrainConfig(), size) == []
    assert advice.warnings(TrainConfig(method="full", learning_rate=2e-5), 8.0) == []
    assert "try two or three" in advice.rate_note(TrainConfig(), 0.135)
    assert "acts like 0.0004" in advice.rate_note(TrainConfig(), 8.0)


def test_the_curve_is_a_drawing_of_the_losses():
    train = [(step, 4.0 / step) for step in range(1, 41)]
    document = loss_curve.svg(loss_curve.Points(train, [(20, 0.5), (40, 0.25)]))
    root = ET.fromstring(document)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    first = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
    assert len(first) == 40
    assert first == sorted(first)
    assert first[0][1] < first[-1][1] < loss_curve.HEIGHT - loss_curve.BOTTOM
    assert sum(e.tag.endswith("circle") for e in root.iter()) == 2
    assert "validation loss" in document
    for lonely in (loss_curve.Points([], []), loss_curve.Points([(1, 0.0)], []), loss_curve.Points([(1, 2.0)], [])):
        ET.fromstring(loss_curve.svg(lonely))
