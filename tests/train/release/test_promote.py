"""A name moves only on a PASS for exactly these bytes; nothing is lost; going back is one command."""

import json
import shutil
import subprocess
import sys

import pytest

from tunegate.core import manifest, registry
from tunegate.core.artifacts import EvalReport, Release, Run
from tunegate.core.commands import run
from tunegate.core.manifest import Input
from tunegate.core.registry import Promotion
from tunegate.evalkit.folders import write_decision
from tunegate.train.release import promote_registry
from tunegate.train.release.promote import standing
from tunegate.train.release.release_cli import app


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUNEGATE_REGISTRY", raising=False)
    monkeypatch.setenv("GITHUB_ACTOR", "ada")
    return tmp_path / "home"


def make_release(folder, text="weights"):
    folder.mkdir()
    (folder / "model.safetensors").write_text(text)
    data = Input(role="dataset", kind="dataset", path="data", digest="d" * 64)
    base = Input(role="base_model", kind="model", path="builtin:x", digest="b" * 64)
    made = Input(role="run", kind="run", path="run", digest="r" * 64, inputs=(data, base))
    facts = {"base": "builtin:x", "base_name": "x", "method": "lora", "quantization": "awq", "bytes": 7}
    manifest.write(folder, "release", inputs=[made], config={}, facts=facts)
    return Release.open(folder)


def make_report(folder, release, *, digest=None):
    folder.mkdir()
    target = {"spec": str(release.path), "kind": "release", "digest": digest or release.digest, "model": "m"}
    (folder / "report.json").write_text(json.dumps({"target": target}))
    facts = {"n": 100, "metrics": {"exact": 0.9}}
    manifest.write(folder, "eval_report", inputs=[release.as_input("system")], config={}, facts=facts)
    return EvalReport.open(folder)


def make_gate(report, verdict="PASS", folder=None):
    condition = {"metric": "exact", "rule": "at_least", "decision": verdict, "value": 0.9, "low": 0.8, "high": 1.0,
                 "reason": "the whole interval keeps to it"}  # fmt: skip
    decision = {"decision": verdict, "conditions": [condition], "policy": {"alpha": 0.05}}
    return write_decision(folder or report.path / "gate", decision, report=report, baseline=None)


@pytest.fixture
def judged(tmp_path):
    release = make_release(tmp_path / "release")
    report = make_report(tmp_path / "report", release)
    return release, report, make_gate(report)


@pytest.fixture
def ft(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = run(app, prog="ft release", argv=[str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and out else out, err

    return call


def promote(ft, release, gate, *more):
    return ft("promote", release, "--gate", gate, *more)


def test_promote_show_and_list(judged, ft, tmp_path):
    release, report, gate = judged
    code, found, _ = promote(ft, release.path, report.path, "--reason", "first", "--json")
    assert code == 0
    assert (found["alias"], found["digest"], found["by"], found["reason"]) == (
        "champion",
        release.digest,
        "ada",
        "first",
    )
    assert (found["evidence"]["gate"], found["evidence"]["report"]) == (gate.digest, report.digest)
    kept = Release.open(tmp_path / "home" / "store" / f"release-{release.digest[:16]}")
    assert kept.digest == release.digest
    code, listed, _ = ft("list", "--json")
    assert [(r["alias"], r["digest"], r["changes"]) for r in listed["releases"]] == [("champion", release.digest, 1)]
    code, text, _ = ft("show", "champion")
    assert code == 0
    for word in (
        "data (dddddddddddd)",
        "builtin:x = x",
        "lora",
        "awq",
        "PASS",
        gate.digest[:12],
        "by ada: first",
        release.digest,
    ):
        assert word in text, word
    assert len(text.splitlines()) <= 24, "one screen"
    code, shown, _ = ft("show", release.path, "--json")
    assert (shown["aliases"], shown["promotion"]["digest"]) == (["champion"], release.digest)


def test_a_manifest_of_somebody_elses_beside_the_decision_is_passed_over(judged, ft, tmp_path):
    """`ft gate --out web/decision`, where web/manifest.json is a web page's."""
    release, _, gate = judged
    elsewhere = tmp_path / "web" / "decision"
    shutil.copytree(gate.path, elsewhere)
    (tmp_path / "web" / "manifest.json").write_text('{"icons": []}')
    code, found, err = ft("promote", release.path, "--gate", elsewhere, "--as", "champion", "--json")
    assert code == 0, (found, err)


def test_the_promoted_report_is_what_against_means_from_then_on(judged, ft):
    release, report, gate = judged
    assert promote(ft, release.path, gate.path)[0] == 0
    assert registry.find_report("champion").digest == report.digest


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_only_a_pass_promotes(judged, ft, tmp_path, home, verdict):
    release, report, _ = judged
    gate = make_gate(report, verdict, tmp_path / "other-gate")
    code, _, err = promote(ft, release.path, gate.path)
    assert (code, home.exists()) == (2, False)
    assert f"the gate's decision is {verdict}, not PASS" in err


def test_a_pass_for_other_bytes_is_refused_and_says_for_which(judged, ft, tmp_path, home):
    release, _, gate = judged
    other = make_release(tmp_path / "other", "weights of another")
    code, _, err = promote(ft, other.path, gate.path)
    assert (code, home.exists()) == (2, False)
    assert (
        f"for release {release.path} ({release.digest[:12]}), not for these bytes (release {other.digest[:12]})" in err
    )


def change(path):
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("release/model.safetensors", "the release is not as it was written: model.safetensors"),
        ("report/report.json", "the report is not as it was written"),
        ("report/gate/decision.json", "the gate's decision is not as it was written"),
    ],
)
def test_any_changed_byte_on_the_way_is_refused(judged, ft, tmp_path, home, file, says):
    release, _, gate = judged
    change(tmp_path / file)
    code, _, err = promote(ft, release.path, gate.path)
    assert (code, home.exists()) == (2, False)
    assert says in err


def test_a_fail_rewritten_to_pass_is_seen(judged, ft, tmp_path):
    release, report, _ = judged
    gate = make_gate(report, "FAIL", tmp_path / "g")
    path = gate.path / "decision.json"
    path.write_text(path.read_text().replace("FAIL", "PASS"))
    code, _, err = promote(ft, release.path, gate.path)
    assert code == 2
    assert "not as it was written" in err


def test_a_report_of_another_system_than_its_lineage_says_is_refused(tmp_path, ft):
    release = make_release(tmp_path / "release")
    gate = make_gate(make_report(tmp_path / "report", release, digest="0" * 64))
    code, _, err = promote(ft, release.path, gate.path)
    assert code == 2
    assert "of another system" in err


def test_a_decision_that_names_another_report_than_its_lineage_is_refused(judged, ft, tmp_path):
    release, report, _ = judged
    gate = make_gate(report, folder=tmp_path / "g")
    path = gate.path / "decision.json"
    path.write_text(path.read_text().replace(report.digest, "0" * 64))
    (gate.path / "manifest.json").unlink()
    old = gate.manifest
    manifest.write(gate.path, old.kind, inputs=list(old.inputs), config=old.config, facts=old.facts)
    code, _, err = promote(ft, release.path, gate.path)
    assert code == 2
    assert "does not say which report" in err


def test_a_report_that_is_gone_or_undecided_is_said(judged, ft, tmp_path):
    release, report, _ = judged
    gate = make_gate(report, folder=tmp_path / "apart")
    report.path.rename(tmp_path / "moved")
    code, _, err = promote(ft, release.path, gate.path)
    assert code == 2
    assert "is not where it was" in err
    assert promote(ft, release.path, tmp_path / "moved")[0] == 0, "a decision inside its report moves with it"
    undecided = make_report(tmp_path / "undecided", release)
    code, _, err = promote(ft, release.path, undecided.path)
    assert code == 2
    assert f"ft gate {undecided.path}" in err


def test_rollback_walks_back_and_a_second_one_does_not_come_forward_again(tmp_path, ft):
    digests = []
    for version in "abc":
        release = make_release(tmp_path / version, version)
        gate = make_gate(make_report(tmp_path / f"report-{version}", release))
        assert promote(ft, release.path, gate.path)[0] == 0
        digests.append(release.digest)
    reports = [EvalReport.open(tmp_path / f"report-{v}").digest for v in "abc"]
    for back, want in ((1, digests[1]), (2, digests[0])):
        code, found, _ = ft("rollback", "champion", "--reason", f"no {back}", "--json")
        assert (code, found["digest"], found["action"]) == (0, want, "rollback")
        assert registry.find_report("champion").digest == reports[2 - back]
    code, _, err = ft("rollback")
    assert code == 2
    assert "no promotion of 'champion' before" in err
    history = ft("show", "--json")[1]["history"]
    assert [e["action"] for e in history] == ["promote"] * 3 + ["rollback"] * 2
    assert "no 2" in ft("show")[1]


def test_rollback_to_a_named_digest_and_to_a_damaged_one(tmp_path, ft, home):
    releases = [make_release(tmp_path / v, v) for v in "abc"]
    for release in releases:
        gate = make_gate(make_report(tmp_path / f"report-{release.path.name}", release))
        assert promote(ft, release.path, gate.path)[0] == 0
    assert "never meant 'ffff'" in ft("rollback", "champion", "--to", "ffff")[2]
    change(home / "store" / f"release-{releases[1].digest[:16]}" / "model.safetensors")
    code, _, err = ft("rollback")
    assert code == 2
    assert "the bytes to go back to were changed" in err
    shutil.rmtree(home / "store" / f"release-{releases[1].digest[:16]}")
    code, _, err = ft("rollback")
    assert (code, "ft verify" in err) == (2, False)
    assert f"the bytes to go back to are gone (promote them again: ft release promote {releases[1].path} --gate" in err
    assert ft("list", "--json")[1]["releases"][0]["digest"] == releases[2].digest, "a refused rollback changes nothing"
    assert ft("rollback", "champion", "--to", releases[0].digest[:8], "--json")[1]["digest"] == releases[0].digest


def test_a_run_without_weights_is_promoted_like_a_release(tmp_path, ft):
    """A prompt is served, judged and gated too, so it can be the champion."""
    folder = tmp_path / "prompt-run"
    folder.mkdir()
    (folder / "prompt.json").write_text("{}")
    manifest.write(
        folder, "run", inputs=[], config={"method": "prompt"}, facts={"method": "prompt", "base": "builtin:x"}
    )
    made = Run.open(folder)
    code, found, err = promote(ft, folder, make_gate(make_report(tmp_path / "report", made)).path, "--json")
    assert (code, found["kind"], found["digest"]) == (0, "run", made.digest), err
    assert "prompt" in ft("show")[1]


def test_an_artifact_inside_a_run_is_not_promoted_with_it(tmp_path, ft, home):
    folder = tmp_path / "prompt-run"
    (folder / "passages").mkdir(parents=True)
    for name in ("prompt.json", "passages/index.json"):
        (folder / name).write_text("{}")
    manifest.write(
        folder, "run", inputs=[], config={"method": "prompt"}, facts={"method": "prompt", "base": "builtin:x"}
    )
    gate = make_gate(make_report(tmp_path / "report", Run.open(folder)))
    make_release(folder / "other")
    code, _, err = promote(ft, folder, gate.path)
    assert (code, home.exists()) == (2, False)
    assert "other/ in it is an artifact of its own, which its digest does not cover" in err
    shutil.rmtree(folder / "other")
    assert promote(ft, folder, gate.path)[0] == 0, "a sub-folder of its own is no other artifact"


def test_the_stack_behind_an_alias():
    def entry(action, digest):
        return Promotion(action=action, digest=digest, kind="release", path="", at="", by="", from_path="")

    history = [
        entry("promote", "a"),
        entry("promote", "b"),
        entry("promote", "b"),
        entry("rollback", "a"),
        entry("promote", "c"),
    ]
    assert [e.digest for e in standing(history)] == ["a", "c"]
    assert standing([]) == []


PROMOTER = """
import sys
from tunegate.core.commands import run
from tunegate.train.release.release_cli import app
sys.stdin.readline()
for alias in ("champion", sys.argv[3]):
    assert run(app, prog="ft", argv=["promote", sys.argv[1], "--gate", sys.argv[2], "--as", alias]) == 0
"""


def test_many_promotes_at_once_lose_none(tmp_path, home):
    folders = []
    for number in range(3):
        release = make_release(tmp_path / f"r{number}", str(number))
        folders += [(release, make_gate(make_report(tmp_path / f"report{number}", release)))] * 2
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTER, str(release.path), str(gate.path), f"a{i}"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        for i, (release, gate) in enumerate(folders)
    ]  # fmt: skip
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.close()
    assert [worker.wait(120) for worker in workers] == [0] * 6
    entries = json.loads((home / "registry.json").read_text())["entries"]
    digests = sorted(release.digest for release, _ in folders)
    assert sorted(e["digest"] for e in entries["release/champion"]) == digests
    assert [entries[f"release/a{i}"][0]["digest"] for i in range(6)] == [release.digest for release, _ in folders]
    assert not [p for p in home.rglob("*") if p.name.endswith((".partial", ".old"))]


def test_what_is_missing_is_said(tmp_path, ft, judged):
    release, _, gate = judged
    code, _, err = ft("show", "champion")
    assert code == 2
    assert "nothing was promoted as 'champion'" in err
    assert "nothing was promoted yet" in ft("list")[1]
    assert "not a usable name" in promote(ft, release.path, gate.path, "--as", "a/b")[2]
    assert "is a eval_report folder" in promote(ft, tmp_path / "report", gate.path)[2]
    assert promote(ft, release.path, gate.path, "--registry", "mlflow:")[0] == 2


def test_a_full_disk_is_an_infrastructure_error(judged, ft, monkeypatch, home):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(4, 1, 3))
    code, _, err = promote(ft, judged[0].path, judged[2].path)
    assert code == 4
    assert "are free" in err
    assert not (home / "registry.json").exists()


@pytest.mark.slow
def test_the_same_on_mlflow(tmp_path, ft, monkeypatch):
    """Real MLflow on sqlite, in its own environment: versions, aliases, history, rollback."""
    address = f"mlflow:sqlite:///{tmp_path}/mlflow.db#slots"
    monkeypatch.chdir(tmp_path)
    releases = [make_release(tmp_path / v, v) for v in "ab"]
    for release in releases:
        gate = make_gate(make_report(tmp_path / f"report-{release.path.name}", release))
        code, found, err = promote(ft, release.path, gate.path, "--registry", address, "--json")
        assert (code, found["digest"]) == (0, release.digest), err
    assert found["path"] == "models:/slots/2"
    listed = ft("list", "--registry", address, "--json")[1]["releases"]
    assert [(r["alias"], r["digest"], r["changes"]) for r in listed] == [("champion", releases[1].digest, 2)]
    code, back, _ = ft("rollback", "champion", "--registry", address, "--json")
    assert (code, back["digest"], back["path"]) == (0, releases[0].digest, "models:/slots/1")
    assert "\nrolled back   2" in ft("show", "champion", "--registry", address)[1]
    python = promote_registry.environments.ensure("mlflow")
    code = (
        "import mlflow, sys; u=sys.argv[1]; c=mlflow.MlflowClient(u, u); mlflow.set_tracking_uri(u); "
        "v=c.get_model_version_by_alias('slots', 'champion'); print(v.version, v.tags['digest']); "
        "print(open(mlflow.artifacts.download_artifacts(v.source)+'/model.safetensors').read())"
    )
    done = subprocess.run([str(python), "-c", code, address.removeprefix("mlflow:").partition("#")[0]],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["1", releases[0].digest, "a"], "MLflow itself sees what we say"
    damage = (
        "import mlflow, sys; "
        "mlflow.MlflowClient(*sys.argv[1:] * 2).set_registered_model_tag('slots', 'tunegate.promotion/champion/9', '{')"
    )
    subprocess.run([str(python), "-c", damage, f"sqlite:///{tmp_path}/mlflow.db"], capture_output=True, check=True)
    code, _, err = ft("list", "--registry", address)
    assert (code, "delete the tag tunegate.promotion/champion/9" in err) == (2, True), err
    code, _, err = ft("list", "--registry", f"mlflow:sqlite:///{tmp_path}/a/model.safetensors/x.db")
    assert (code, "MLflow" in err) == (4, True)


def test_going_back_where_one_release_was_promoted_twice(tmp_path, ft):
    """A, B, A: back is B; `--to` A is what it means already; which promotion is meant again is said."""
    releases = {v: make_release(tmp_path / v, v) for v in "ab"}
    a, b = (releases[v].digest for v in "ab")

    def promote_as(version, report, by):
        gate = make_gate(make_report(tmp_path / report, releases[version]))
        assert promote(ft, releases[version].path, gate.path, "--by", by)[0] == 0

    promote_as("a", "report-1", "ada")
    promote_as("b", "report-2", "bob")
    promote_as("a", "report-3", "cy")
    code, _, err = ft("rollback", "champion", "--to", a[:12])
    assert code == 2
    assert f"'champion' means {a[:12]} already, since " in err
    assert f"leave --to out to go back to {b[:12]}" in err
    code, out, _ = ft("rollback", "champion")
    assert (code, f"b ({b[:12]}) again, as promoted " in out, " by bob; was a (" in out) == (0, True, True)
    assert "by bob" in next(line for line in ft("show")[1].splitlines() if line.startswith("promoted "))
    code, found, _ = ft("rollback", "champion", "--json")
    assert (code, found["digest"], found["promoted"].endswith(" by ada")) == (0, a, True)
    assert "no promotion of 'champion' before" in ft("rollback")[2]
    assert f"'champion' was taken back from '{b[:12]}'" in ft("rollback", "champion", "--to", b[:12])[2]
    promote_as("b", "report-4", "di")
    promote_as("a", "report-5", "ed")
    promote_as("b", "report-6", "flo")
    code, found, _ = ft("rollback", "champion", "--to", a[:12], "--json")
    assert (code, found["digest"], found["promoted"].endswith(" by ed")) == (0, a, True), (
        "the latest of A, not the first"
    )
    code, found, _ = ft("rollback", "champion", "--json")
    assert (code, found["digest"], found["promoted"].endswith(" by di")) == (0, b, True)
