"""What a run goes on from is known by what it is, not by how it is spelt; an empty name is no name."""

import json
import shutil
import signal

import pytest

from tunegate.core import commands, embedding
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.cli import app
from tunegate.train.config import from_file
from tunegate.train.config import resolve as resolve_config
from tunegate.train.data.cli import app as data_app
from tunegate.train.release.cli import merge_app, quantize_app
from tunegate.train.release.export_cli import app as export_app
from tunegate.train.release.verify_cli import app as verify_app

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS = ("--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1", "--rank", "2", "--alpha", "4",
         "--validation-share", "0.1", "--save-steps", "2", "--max-steps", "6")  # fmt: skip
WEIGHTS, ADAPTER = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def ft(capsys, tiny_model, tiny_dataset, tmp_path):
    """`ft train` into `run`: (exit code, standard output, standard error)."""

    def call(*arguments):
        capsys.readouterr()
        command = (tiny_dataset.path, "--out", tmp_path / "run", "--model", tiny_model, *FLAGS, *arguments)
        code = commands.run(app, prog="ft train", argv=[str(a) for a in command])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def adapters(tiny_model, tiny_dataset, tmp_path_factory):
    """Two runs that differ in their seed alone."""
    places = []
    for seed in (0, 1):
        settings = {"model": str(tiny_model), "max_steps": 1, "rank": 2, "alpha": 4, "save_steps": 0, "seed": seed}
        config = resolve_config([("test", {**settings, "validation_share": 0.1})])[0]
        out = tmp_path_factory.mktemp("adapter") / "run"
        run = sft.train(tiny_dataset, resolve(str(tiny_model)), config, out, resume=False, force=False)
        places.append(run.path)
    return places


def error_of(err):
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line


def bare(run, place):
    """The adapter as PEFT saves it, without a manifest."""
    place.mkdir()
    for name in (WEIGHTS, ADAPTER):
        shutil.copy(run / name, place)
    return place


@pytest.mark.parametrize("kind", ["run", "bare"])
def test_a_run_goes_on_only_with_the_adapter_it_began_with(ft, stopped, adapters, tmp_path, kind):
    stopped(signal.SIGINT)
    first = shutil.copytree(adapters[0], tmp_path / "a") if kind == "run" else bare(adapters[0], tmp_path / "a")
    code, _, err = ft("--adapter", first)
    assert code == 130, err
    shutil.rmtree(first)
    if kind == "run":
        shutil.copytree(adapters[1], first)
    else:
        bare(adapters[1], first)
    code, out, err = ft("--adapter", first, "--resume")
    assert (code, out) == (2, "")
    assert "the adapter is not what this run began with" in error_of(err)


def test_the_settings_of_a_bare_adapter_are_a_part_of_it(ft, stopped, adapters, tmp_path):
    stopped(signal.SIGINT)
    place = bare(adapters[0], tmp_path / "a")
    assert ft("--adapter", place)[0] == 130
    config = json.loads((place / ADAPTER).read_text())
    (place / ADAPTER).write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 64}}))
    assert "the adapter is not what this run began with" in error_of(ft("--adapter", place, "--resume")[2])


def test_an_adapter_of_changed_bytes_is_refused(ft, adapters, tmp_path):
    place = shutil.copytree(adapters[0], tmp_path / "a")
    weights = bytearray((place / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (place / WEIGHTS).write_bytes(weights)
    for more in ((), ("--dry-run",)):
        code, _, err = ft("--adapter", place, *more)
        assert code == 2
        assert f"the adapter's run is not as it was written: {WEIGHTS}: content changed" in error_of(err)


def test_an_adapter_by_another_spelling_is_the_same(ft, stopped, adapters, tmp_path, monkeypatch):
    stopped(signal.SIGINT)
    place = shutil.copytree(adapters[0], tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert ft("--adapter", "a")[0] == 130
    code, _, err = ft("--adapter", f"{place}/", "--resume")
    assert (code, "resuming from step 4" in err) == (0, True), err
    code, _, err = ft("--adapter", "./a", "--resume")
    assert (code, "nothing left to resume" in err) == (0, True), err
    shutil.rmtree(place)
    shutil.copytree(adapters[1], place)
    assert "the run is finished with other inputs: adapter" in error_of(ft("--adapter", place, "--resume")[2])


def test_documents_and_their_encoder_by_another_spelling_are_the_same(ft, stopped, tmp_path, monkeypatch):
    stopped(signal.SIGINT)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("One plus one is two.")
    folder = embedding._builtin()
    monkeypatch.chdir(tmp_path)
    assert ft("--docs", "docs", "--k", "1")[0] == 130
    (docs / "a.txt").write_text("One plus one is three.")
    spelt = ("--docs", f"{docs}/", "--k", "1", "--embedder", str(folder))
    assert "the documents are not what this run began with" in error_of(ft(*spelt, "--resume")[2])
    (docs / "a.txt").write_text("One plus one is two.")
    code, _, err = ft(*spelt, "--resume")
    assert (code, "resuming from step 4" in err) == (0, True), err
    inputs = json.loads((tmp_path / "run" / "manifest.json").read_text())["inputs"]
    assert [i["role"] for i in inputs] == ["dataset", "base_model", "documents", "embedder"]
    (docs / "a.txt").write_text("One plus one is three.")
    assert "the run is finished with other inputs: documents" in error_of(ft(*spelt, "--resume")[2])


@pytest.mark.parametrize("key", ["--model", "--adapter", "--docs", "--embedder", "--system-file"])
def test_an_empty_name_is_no_model_or_file(ft, tiny_model, monkeypatch, key):
    """It meant the current folder, or nothing."""
    monkeypatch.chdir(tiny_model)
    code, out, err = ft(key, "", "--dry-run")
    assert (code, out, err) == (2, "", f"error: {key}: it is empty (name something, or leave the option out)\n")


def test_an_empty_model_in_a_file_is_refused_with_its_line(ft, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model)
    for key in ("model", "embedder"):
        (tmp_path / "c.yaml").write_text(f'seed: 1\n{key}: ""\nadapter: ""\n')
        with pytest.raises(UserError, match=f"{key} is empty") as told:
            resolve_config([(str(tmp_path / "c.yaml"), from_file(tmp_path / "c.yaml"))])
        assert told.value.where == f"{tmp_path / 'c.yaml'}:2"


@pytest.mark.parametrize(
    ("of", "argv"),
    [
        (app, ["", "--out", "x"]),
        (app, [".", "--out", ""]),
        (app, [".", "--out", "x", "--config", ""]),
        (app, [".", "--out", "x", "--from", ""]),
        (merge_app, ["", "--out", "x"]),
        (merge_app, [".", "--out", "x", "--data", ""]),
        (quantize_app, ["", "--out", "x"]),
        (quantize_app, [".", "--out", "x", "--calibration", ""]),
        (export_app, ["gguf", "", "--out", "x"]),
        (verify_app, [""]),
        (verify_app, [".", "--key", ""]),
        (data_app, ["split", ".", "--out", "x", "--keep-eval", ""]),
        (data_app, ["convert", ".", "--to", "trl", "--out", ""]),
        (data_app, ["check", ".", "--model", ""]),
        (data_app, ["leakage", "--train", "", "--eval", "."]),
        (data_app, ["dedup", ".", "--near-model", ""]),
    ],
)
def test_an_empty_path_is_not_the_current_folder(of, argv, capsys, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_dataset.path)
    before = sorted(tiny_dataset.path.iterdir())
    assert commands.run(of, prog="ft", argv=argv) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "it is empty" in err
    assert sorted(tiny_dataset.path.iterdir()) == before
