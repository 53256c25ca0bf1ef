"""An adapter is judged on a base: with another one it is neither promoted nor in order."""

import json
import shutil

import pytest

from tests.train.release.conftest import make_run
from tests.train.release.test_promote import make_gate, make_report
from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport, Release, Run
from tunegate.core.commands import run
from tunegate.core.files import sha256_text
from tunegate.core.manifest import Input
from tunegate.core.model_source import ModelSource, resolve
from tunegate.serve import base_check
from tunegate.serve import cli as serve_cli
from tunegate.train.release import release_cli, verify_cli
from tunegate.train.release.merge import MergeConfig, merge

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning:peft")]


@pytest.fixture
def base(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def adapter(base, tmp_path):
    return make_run(base, tmp_path / "run", target_modules=["q_proj"])


def change(base):
    config = base / "config.json"
    config.write_text(config.read_text() + " ")


def judged(artifact, folder):
    """A report of it that its gate let through."""
    report = make_report(folder, artifact)
    if artifact.kind == Run.kind:  # the report's helper speaks of releases
        (folder / "manifest.json").unlink()
        manifest.write(folder, "eval_report", inputs=[artifact.as_input("system")], config={}, facts={"n": 1})
        report = EvalReport.open(folder)
    return make_gate(report)


def promote(artifact, gate):
    return run(release_cli.app, prog="ft release", argv=["promote", str(artifact.path), "--gate", str(gate.path)])


@pytest.mark.parametrize("kind", ["run", "release"])
def test_an_adapter_whose_base_has_changed_is_not_promoted(base, adapter, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    artifact = adapter
    if kind == "release":
        kept = MergeConfig(keep_adapter=True)
        artifact = merge(adapter, resolve(str(base)), tmp_path / "release", force=False, config=kept)
    gate = judged(artifact, tmp_path / "report")
    assert base_check.state(artifact) == "here"
    change(base)
    assert promote(artifact, gate) == 2
    assert f"the base model '{base}' has changed since it was trained on" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
    shutil.rmtree(base)
    assert base_check.state(artifact) == "not checked"
    assert promote(artifact, gate) == 0, "on a machine without the base"


def verified(folder, capsys):
    capsys.readouterr()
    code = run(verify_cli.app, prog="ft verify", argv=[str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    told = [p["problem"] for p in found["problems"] if p["path"] == "base_model"]
    return int(code), told, [row["state"] for row in found["lineage"] if row["role"] == "base_model"]


def test_verify_says_that_the_base_has_changed(base, adapter, tmp_path, capsys):
    data = Input(role="dataset", kind="dataset", path="gone", digest="d" * 64,
                 inputs=(Input(role="source", kind="file", path="gone", digest="5" * 64),))  # fmt: skip
    old = adapter.manifest
    (adapter.path / "manifest.json").unlink()
    manifest.write(adapter.path, "run", inputs=[*old.inputs, data], config={}, facts=old.facts)
    merged = merge(Run.open(adapter.path), resolve(str(base)), tmp_path / "merged", force=False)
    assert verified(adapter.path, capsys) == (0, [], ["here"])
    assert verified(merged.path, capsys) == (0, [], ["not checked"])
    change(base)
    words = f"the base model {base} has changed since it was trained on"
    assert verified(adapter.path, capsys) == (2, [words], ["changed"])
    assert verified(merged.path, capsys) == (0, [], ["not checked"]), "it has its own weights"
    assert base_check.state(Release.open(merged.path)) is None
    shutil.rmtree(base)
    assert verified(adapter.path, capsys) == (0, [], ["not checked"])


def test_a_folder_of_another_kind_is_verified_too(tmp_path, capsys):
    """A bake-off's is no artifact that a stage opens."""
    (tmp_path / "bo").mkdir()
    (tmp_path / "bo/bakeoff.json").write_text("{}")
    manifest.write(tmp_path / "bo", "bakeoff", inputs=[], config={}, facts={})
    assert verified(tmp_path / "bo", capsys) == (0, [], [])


def test_a_commit_on_the_hub_that_changes_no_weights_changes_nothing(base, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    snapshots = cache / "models--team--base" / "snapshots"
    for name in ("a" * 40, "b" * 40):
        shutil.copytree(base, snapshots / name)
    (snapshots / ("b" * 40) / "README.md").write_text("a typo less")
    refs = cache / "models--team--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("b" * 40)
    now = ModelSource("team/base", "hub", "team/base", "base", revision="b" * 40)
    then = sha256_text(f"team/base@{'a' * 40}")
    assert base_check._of_the_hub(now, then) == "here"
    change(snapshots / ("b" * 40))
    assert base_check._of_the_hub(now, then) == "changed"
    assert base_check._of_the_hub(now, "0" * 64) == "not checked"


def test_serving_an_adapter_whose_base_has_changed_says_so(base, adapter, capsys):
    def serve():
        assert run(serve_cli.app, prog="ft serve", argv=[str(adapter.path), "--dry-run"]) == 0
        return capsys.readouterr().err

    assert "has changed" not in serve()
    change(base)
    assert f"{base}' has changed since it was trained on" in " ".join(serve().split())
