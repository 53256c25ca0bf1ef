"""Which registry is asked, and what `ft release show` says of a run's recipe."""

import json
from dataclasses import asdict

import pytest

from tests.core.test_registry import promotion
from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.train.config import TrainConfig
from tunegate.train.release import promote_registry
from tunegate.train.release.promote_registry import open_registry
from tunegate.train.release.release_cli import app


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNEGATE_REGISTRY", "")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("method", "facts", "recipe"),
    [("prompt", {"instruction_tokens": 31}, "instruction_tokens 31"),
     ("few_shot", {"instruction_tokens": 0, "k": 3, "selection": "nearest", "examples": 22, "embedder": "builtin:minilm"},
      "k 3, selection nearest, examples 22, embedder builtin:minilm, instruction_tokens 0"),
     ("rag", {"instruction_tokens": 9, "k": 4, "passages": 12, "embedder": "e"},
      "k 4, passages 12, passage_tokens 200, embedder e, instruction_tokens 9"),
     ("lora", {}, "rank 16, alpha 32, learning_rate 0.0002, num_train_epochs 3.0, seed 42"),
     ("full", {}, "learning_rate 0.0002, num_train_epochs 3.0, seed 42")],
)  # fmt: skip
def test_the_recipe_of_a_run_is_what_its_method_reads(tmp_path, capsys, method, facts, recipe):
    folder = tmp_path / "run"
    folder.mkdir()
    config = asdict(TrainConfig(method=method, rank=16, alpha=32, learning_rate=2e-4, num_train_epochs=3.0, seed=42))
    made = manifest.write(folder, "run", inputs=[], config=config, facts={"method": method, "base": "b", **facts})
    assert run(app, prog="ft release", argv=["show", str(folder)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("recipe"))
    assert line == f"recipe        {method}: {recipe} (run {folder}, {made.digest[:12]})"


def test_an_empty_variable_is_not_set(tmp_path, monkeypatch, home):
    """Usual in CI: a variable whose value is missing there. It meant the current folder."""
    assert open_registry(None).where() == str(home)
    monkeypatch.setenv("TUNEGATE_REGISTRY", str(tmp_path / "other"))
    assert open_registry(None).where() == str(tmp_path / "other")


@pytest.mark.parametrize("command", ["list", "show", "rollback"])
def test_an_empty_option_is_refused(capsys, command):
    assert run(app, prog="ft release", argv=[command, "--registry", ""]) == 2
    assert capsys.readouterr().err == "error: --registry: it is empty (name something, or leave the option out)\n"


TOLD = json.dumps(promotion())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "4", TOLD.replace('"by"', '"who"'), TOLD.replace('"report"', '"x"'), TOLD.replace('"data": {', '"data": [{}], "x": {')],
    ids=range(7),
)  # fmt: skip
@pytest.mark.parametrize("words", ["list", "show", "rollback"])
def test_a_damaged_promotion_in_mlflow_is_named(text, words, monkeypatch, capsys):
    """MLflow's process is left out: what it answers is what the real one does, with two tags of which one was changed."""
    tags = [["tunegate.promotion/champion/1", TOLD], ["tunegate.promotion/champion/2", text]]
    monkeypatch.setattr(promote_registry.environments, "ensure", lambda _: "python")
    monkeypatch.setattr(promote_registry.worker, "answer", lambda *_: (0, [], {"histories": {"champion": tags}}))
    registry = ["--registry", "mlflow:http://me:secret@there#slots"]
    assert run(app, prog="ft release", argv=[words, *registry]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: MLflow at http://***@there, model 'slots': a promotion is damaged: ")
    assert "restore or delete the tag tunegate.promotion/champion/2 of that model" in told
    assert "Traceback" not in told
    tags.pop()
    assert run(app, prog="ft release", argv=["list", *registry]) == 0
