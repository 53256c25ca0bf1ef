"""What an audit had left over of training: an adapter of another base, a stop that `--json` says nothing of, metrics that
were lost, one model under two names."""

import json
import os
import shutil
import signal

import pytest

from tunegate.core import commands, same_model
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource, of_folder, resolve
from tunegate.train import loss_curve, sft
from tunegate.train.cli import app
from tunegate.train.config import resolve as resolve_config
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS = ("--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1", "--rank", "2", "--alpha", "4",
         "--validation-share", "0.1", "--save-steps", "2")  # fmt: skip
WEIGHTS, ADAPTER, METRICS = "adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"


@pytest.fixture
def ft(capsys, tiny_model, tiny_dataset, tmp_path):
    """`ft train` into `run`: (exit code, standard output, standard error)."""

    def call(*arguments, steps=4, model=tiny_model, out="run"):
        capsys.readouterr()
        command = (
            tiny_dataset.path,
            "--out",
            tmp_path / out,
            "--model",
            model,
            *FLAGS,
            "--max-steps",
            steps,
            *arguments,
        )
        code = commands.run(app, prog="ft train", argv=[str(a) for a in command])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def raw(adapter_run_once, tmp_path):
    """An adapter as PEFT saves it, without a manifest, whose config names a base: `raw(name)`."""

    def make(base):
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        shutil.copy(adapter_run_once / WEIGHTS, folder)
        config = json.loads((adapter_run_once / ADAPTER).read_text())
        (folder / ADAPTER).write_text(json.dumps({**config, "base_model_name_or_path": base}))
        return folder

    return make


@pytest.fixture(scope="module")
def adapter_run_once(tiny_model, tiny_dataset, tmp_path_factory):
    settings = {
        "model": str(tiny_model),
        "max_steps": 1,
        "rank": 2,
        "alpha": 4,
        "save_steps": 0,
        "validation_share": 0.1,
    }
    config = resolve_config([("test", settings)])[0]
    out = tmp_path_factory.mktemp("adapter") / "run"
    return sft.train(tiny_dataset, resolve(str(tiny_model)), config, out, resume=False, force=False).path


def test_an_adapter_of_another_base_is_refused(ft, raw, makers, tmp_path):
    """Its shapes fit, so it was trained on weights that it was never made for."""
    other = makers.model(tmp_path / "other", seed=1)
    for base, named in (("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"), (str(other), str(other))):
        for more in ((), ("--dry-run",)):
            code, out, err = ft("--adapter", raw(base), *more)
            assert (code, out) == (2, ""), err
            line = next(line for line in err.splitlines() if line.startswith("error:"))
            assert f"{ADAPTER}: the adapter was trained on {named}, not on " in line
            assert f"--model {named}" in line
            assert "base_model_name_or_path" in line


def test_an_adapter_of_the_same_base_by_another_name_is_taken(ft, raw, tiny_model, tmp_path):
    (tmp_path / "link").symlink_to(tiny_model)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    for base in (f"{tiny_model}/", tmp_path / "link", copy, f"some-owner/{tiny_model.name.upper()}"):
        code, _, err = ft("--adapter", raw(str(base)), "--dry-run")
        assert (code, "base" in "".join(line for line in err.splitlines() if "warning" in line)) == (0, False), err


@pytest.mark.parametrize("base", ["/nowhere/llama", None, ""])
def test_an_adapter_whose_base_cannot_be_told_is_said(ft, raw, base):
    code, _, err = ft("--adapter", raw(base), "--dry-run")
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("warning:") and "is not known" in line]


@pytest.fixture
def hub(tiny_model, tmp_path, monkeypatch):
    """The tiny model in the hub's cache, as owner/tiny: the snapshot's folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    store, revision = tmp_path / "hub" / "models--owner--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, store / "snapshots" / revision)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(revision)
    return store / "snapshots" / revision


def test_a_hub_id_and_its_folder_in_the_cache_are_one_model(hub, tiny_model):
    named, folder, other = resolve("owner/tiny", offline=True), resolve(str(hub)), resolve(str(tiny_model))
    digests = [source.as_input().digest for source in (named, folder)]
    for source in (named, folder):
        assert [same_model.same_digest(source, source.as_input(), digest) for digest in digests] == [True, True]
        assert not same_model.same_digest(source, source.as_input(), "0" * 64)
    assert same_model.named_so(str(hub), named)
    assert same_model.named_so("Owner/Tiny", folder)
    assert same_model.named_so("owner/tiny", other)
    assert same_model.named_so("owner/tiny2", other) is False
    assert same_model.named_so("owner/tiny2", named) is False
    assert same_model.named_so("/elsewhere/hub/models--owner--tiny/snapshots/abc", named)
    assert same_model.named_so("/elsewhere/base", named) is None


def test_a_folder_with_a_hub_ids_bytes_is_that_model_whatever_it_is_called(hub, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "base")
    assert same_model.named_so("owner/tiny", resolve(str(copy)))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert same_model.named_so("owner/tiny", resolve(str(copy))) is False


def test_another_owners_model_of_the_same_name_is_another_model(hub, tiny_model):
    assert same_model.named_so("other/tiny", resolve("owner/tiny", offline=True)) is False
    builtin = ModelSource("builtin:smollm2-135m", "builtin", str(tiny_model), "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert same_model.named_so("other/SmolLM2-135M-Instruct", builtin) is False
    assert same_model.named_so("tiny/", resolve(str(tiny_model))) is None, "a path that is not here"


def test_the_builtin_is_known_by_its_name_in_the_world(tiny_model):
    source = of_folder(tiny_model)
    builtin = type(source)("builtin:smollm2-135m", "builtin", str(tiny_model), "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert same_model.named_so("HuggingFaceTB/SmolLM2-135M-Instruct", builtin)
    assert same_model.named_so("HuggingFaceTB/SmolLM2-135M", builtin) is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_one_json_object(ft, stopped, tmp_path, number):
    stopped(number)
    code, out, err = ft("--json", steps=6)
    work = working_folder(tmp_path / "run")
    assert (code, json.loads(out)) == (130, {"error": {
        "kind": "interrupted", "message": "stopped at step 4", "where": str(work),
        "hint": "go on with the same command and --resume",
    }})  # fmt: skip
    assert "stopped at step 4; go on with the same command and --resume" in err


def test_a_stop_at_once_is_one_json_object_too(ft, stopped, tmp_path):
    stopped(signal.SIGINT, signal.SIGINT)
    code, out, _ = ft("--json", steps=6)
    found = json.loads(out)["error"]
    assert (code, found["kind"], "--resume" in found["hint"]) == (130, "interrupted", True)
    assert ft("--json", "--resume", steps=6)[0] == 0


def test_a_stop_before_the_first_step_is_one_json_object(ft, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sft, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = ft("--json")
    found = json.loads(out)["error"]
    assert (code, found["kind"], found["where"], found["hint"]) == (130, "interrupted", None, None)
    assert "interrupted" in err
    assert ft()[1] == ""
    assert signal.getsignal(signal.SIGTERM) is before


def cut(work):
    """Half of the second line and all after it are gone."""
    lines = (work / METRICS).read_bytes().splitlines(keepends=True)
    (work / METRICS).write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])


def lose(work):
    (work / METRICS).unlink()


@pytest.mark.parametrize(("damage", "left"), [(cut, [1]), (lose, [])])
@pytest.mark.parametrize("steps_left", [True, False])
def test_lost_metrics_are_said_and_training_goes_on(ft, stopped, tmp_path, monkeypatch, damage, left, steps_left):
    """Half a line spoilt the one after it, and with it the run, at its end; a missing file too, where no step was left."""
    if steps_left:
        stopped(signal.SIGINT)
        assert ft(steps=6)[0] == 130
    else:  # it dies when all is trained
        monkeypatch.setattr(sft, "finish", lambda *_: 1 / 0)
        assert ft(steps=6)[0] == 70
        monkeypatch.undo()
    work = working_folder(tmp_path / "run")
    damage(work)
    code, out, err = ft("--resume", "--json", steps=6)
    assert code == 0, err
    said = [line for line in err.splitlines() if line.startswith("warning:") and METRICS in line]
    assert len(said) == 1
    assert "are lost" in said[0]
    found = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    after = [5, 6] if steps_left else []
    assert [line["step"] for line in found if "loss" in line] == [*left, *after]
    assert json.loads(out)["metrics_lost_bytes"] > 0
    assert "some steps are missing" in (tmp_path / "run" / "loss.svg").read_text()
    assert "some steps are missing" in (tmp_path / "run" / "README.md").read_text()


def test_metrics_that_are_whole_are_not_said_to_be_lost(ft, stopped, tmp_path):
    stopped(signal.SIGINT)
    assert ft(steps=6)[0] == 130
    code, out, err = ft("--resume", "--json", steps=6)
    assert (code, "metrics_lost_bytes" in out, METRICS in err) == (0, False, False)
    assert "missing" not in loss_curve.svg(loss_curve.read(tmp_path / "run" / METRICS))


def test_a_loss_is_seen_again_after_lines_were_added_to_the_rest(ft, stopped, tmp_path):
    """The file was long enough again, of later steps: their lines stood twice in it."""
    stopped(signal.SIGINT)
    assert ft(steps=8)[0] == 130
    work = working_folder(tmp_path / "run")
    lines = (work / METRICS).read_text().splitlines(keepends=True)
    later = [json.dumps({**json.loads(lines[0]), "step": step}) + "\n" for step in range(5, 20)]
    (work / METRICS).write_text("".join([lines[0], *later]))
    code, _, err = ft("--resume", steps=8)
    assert (code, "are lost" in err) == (0, True)
    found = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in found if "loss" in line] == [1, 5, 6, 7, 8]


@pytest.mark.parametrize("steps", ["0", "-2"])
def test_no_steps_is_not_every_epoch(ft, tmp_path, steps):
    code, _, err = ft(steps=steps)
    assert code == 2
    assert f"error: --max-steps: max_steps must be 1 or more, not {steps} (-1, the default: by epochs)" in err
    assert not (tmp_path / "run").exists()
    assert resolve_config([("flag", {"max_steps": -1})])[0].max_steps == -1


def test_a_run_goes_on_with_its_model_by_another_name(ft, stopped, tiny_model, makers, tmp_path, monkeypatch):
    stopped(signal.SIGINT)
    assert ft(steps=6)[0] == 130
    other = makers.model(tmp_path / "other", seed=1)
    code, _, err = ft("--resume", steps=6, model=other)
    assert code == 2
    assert f"the base model is not the one this run began with, {tiny_model}" in err
    monkeypatch.chdir(tiny_model.parent)
    code, out, err = ft("--resume", "--json", steps=6, model=f"{tiny_model.name}/")
    assert (code, "resuming from step 4" in err) == (0, True), err
    code, again, err = ft("--resume", "--json", steps=6)
    assert (code, json.loads(again)["digest"]) == (0, json.loads(out)["digest"])
    assert "nothing left to resume" in err
    assert ft("--resume", steps=6, model=other)[0] == 2


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT asks the hub
def test_a_run_goes_on_with_a_hub_id_s_folder(ft, stopped, hub, tmp_path):
    stopped(signal.SIGINT)
    code, _, err = ft(steps=6, model="owner/tiny")
    assert code == 130, err
    code, _, err = ft("--resume", steps=6, model=hub)
    assert (code, "resuming from step 4" in err) == (0, True), err


def test_a_base_of_other_weights_is_not_gone_on_with(ft, adapter_run_once, makers, tmp_path):
    """A run vouches for its base by digest; another spelling of it is the same model."""
    (tmp_path / "link").symlink_to(makers.model(tmp_path / "other", seed=1))
    assert "trained on other weights" in ft("--adapter", adapter_run_once, model=tmp_path / "link")[2]
    assert ft("--adapter", adapter_run_once, "--dry-run")[0] == 0


def test_an_unreadable_adapter_config_stays_one_line(tiny_model, tmp_path):
    from tunegate.train import adapters

    (tmp_path / ADAPTER).write_text("[]")
    (tmp_path / WEIGHTS).write_bytes(b"")
    source = resolve(str(tiny_model))
    with pytest.raises(UserError):
        adapters.settings(tmp_path)
    adapters.check_base(tmp_path, source, source.as_input())


def test_a_stop_of_several_processes_is_told_whole(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from tunegate.train import launch, worker
    from tunegate.train.stop import GO_ON, Interrupted

    def stop(*_):
        raise Interrupted("stopped at step 4", hint=GO_ON)

    job = SimpleNamespace(folder=tmp_path, dataset=None, source=None, config=None)
    monkeypatch.setattr(worker.Job, "read", lambda _: (job, tmp_path))
    monkeypatch.setattr(sft, "prepare", stop)
    assert worker.work(tmp_path / "job.json") == 0
    with pytest.raises(Interrupted, match=f"stopped at step 4; {GO_ON}") as told:
        launch._outcome(tmp_path, 0)
    assert (told.value.message, told.value.hint) == ("stopped at step 4", GO_ON)
