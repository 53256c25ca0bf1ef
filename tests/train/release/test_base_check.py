"""An adapter is judged on a base: with another one it is neither promoted nor in order."""

import json
import shutil

import pytest

from tests.train.release.conftest import make_run
from tests.train.release.test_promote import make_gate, make_report
from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport, Release, Run
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_file
from tunegate.core.manifest import Input
from tunegate.core.model_source import HUB_FILES, ModelSource, resolve, unpacked_folder
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


def test_a_base_that_is_a_gguf_file_is_told_by_what_it_is_unpacked_to(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "base.gguf"
    gguf.write_bytes(b"unpacked before")
    unpacked = shutil.copytree(base, unpacked_folder(gguf.name, sha256_file(gguf)))
    facts = {**adapter.manifest.facts, "base": str(gguf)}
    (adapter.path / "manifest.json").unlink()
    manifest.write(adapter.path, "run", inputs=[resolve(str(gguf)).as_input()], config={}, facts=facts)
    made = Run.open(adapter.path)
    assert base_check.state(made) == "here"
    change(unpacked)
    assert base_check.state(made) == "changed"
    gguf.unlink()
    assert base_check.state(made) == "not checked"


def test_a_folder_of_another_kind_is_verified_too(tmp_path, capsys):
    """A bake-off's is no artifact that a stage opens."""
    (tmp_path / "bo").mkdir()
    (tmp_path / "bo/bakeoff.json").write_text("{}")
    manifest.write(tmp_path / "bo", "bakeoff", inputs=[], config={}, facts={})
    assert verified(tmp_path / "bo", capsys) == (0, [], [])


WEIGHTS = "model.safetensors"
THEN, NOW = "a" * 40, "b" * 40


@pytest.fixture
def hub(base, tmp_path, monkeypatch):
    """team/base in the hub's cache, at the revision of then, whole, and at that of `main`, whose card alone is another."""
    cache = tmp_path / "hub" / "models--team--base"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    for name in (THEN, NOW):
        shutil.copytree(base, cache / "snapshots" / name)
    (cache / "snapshots" / NOW / "README.md").write_text("a typo less")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(NOW)
    return cache / "snapshots"


def of_the_hub(adapter, revision=THEN):
    """The adapter's run as one that was trained on team/base at `revision`."""
    facts = {**adapter.manifest.facts, "base": "team/base"}
    base = ModelSource("team/base", "hub", "team/base", "base", revision=revision).as_input()
    (adapter.path / "manifest.json").unlink()
    manifest.write(adapter.path, "run", inputs=[base], config={}, facts=facts)
    return Run.open(adapter.path)


def only_looked_at(folder):
    """Leave what `resolve` fetches of a hub id."""
    for file in folder.iterdir():
        if file.name not in HUB_FILES:
            file.unlink()


def test_a_commit_on_the_hub_that_changes_no_weights_changes_nothing(hub, adapter):
    made = of_the_hub(adapter)
    assert base_check.state(made) == "here"
    (hub / THEN / "README.md").write_text("a typo more")
    assert base_check.state(made) == "here"
    change(hub / NOW)
    assert base_check.state(made) == "changed"
    assert base_check.state(of_the_hub(adapter, "0" * 40)) == "not checked"


def test_weights_of_the_hub_that_are_not_here_are_not_changed(hub, adapter, tmp_path, monkeypatch, capsys):
    """Only config and tokenizer are fetched to look at a model: what is not here proves nothing."""
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    only_looked_at(hub / NOW)
    made = of_the_hub(adapter)
    gate = judged(made, tmp_path / "report")
    assert base_check.state(made) == "not checked"
    assert verified(made.path, capsys)[1:] == ([], ["not checked"])
    assert promote(made, gate) == 0
    change(hub / NOW)
    assert base_check.state(made) == "changed"


def test_weights_of_one_size_and_other_bytes_are_other_weights(hub, adapter):
    made, weights = of_the_hub(adapter), hub / NOW / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert base_check.state(made) == "changed"


def test_weights_of_which_a_part_was_not_fetched_are_not_checked(hub, adapter):
    made = of_the_hub(adapter)
    (hub / THEN / "more.safetensors").write_bytes(b"")
    assert base_check.state(made) == "not checked"


@pytest.mark.parametrize("whole", [True, False])
def test_merge_takes_a_base_whose_card_changed(hub, adapter, tmp_path, whole, capsys):
    if not whole:
        only_looked_at(hub / NOW)
    made = of_the_hub(adapter)
    merged = merge(made, resolve("team/base", offline=True), tmp_path / "merged", force=False)
    assert merged.manifest.facts["merge"]["kind"].startswith("adapter merged")
    told = f"the revision that was trained on is taken: {THEN}"
    assert (told in capsys.readouterr().err) == (not whole)
    by_folder = merge(made, resolve(str(hub / THEN)), tmp_path / "by-folder", force=False)
    assert (by_folder.path / WEIGHTS).read_bytes() == (merged.path / WEIGHTS).read_bytes()
    change(hub / NOW)
    for revision in (THEN, "0" * 40):
        with pytest.raises(UserError, match="has changed since the run was trained on it"):
            merge(of_the_hub(adapter, revision), resolve("team/base"), tmp_path / "out", force=False)


def test_merge_takes_a_hub_id_for_its_folder_in_the_cache(hub, adapter, tmp_path):
    base = resolve(str(hub / NOW)).as_input()
    (adapter.path / "manifest.json").unlink()
    manifest.write(adapter.path, "run", inputs=[base], config={}, facts=adapter.manifest.facts)
    assert merge(Run.open(adapter.path), resolve("team/base"), tmp_path / "merged", force=False).quantization == "none"


def test_serving_an_adapter_whose_base_has_changed_says_so(base, adapter, capsys):
    def serve():
        assert run(serve_cli.app, prog="ft serve", argv=[str(adapter.path), "--dry-run"]) == 0
        return capsys.readouterr().err

    assert "has changed" not in serve()
    change(base)
    assert f"{base}' has changed since it was trained on" in " ".join(serve().split())
