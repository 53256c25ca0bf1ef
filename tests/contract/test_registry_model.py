"""`ft release` against a model of it: a stack of digests and a history for each name, over many operations in random order."""

import json
import random

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport, Release
from tunegate.core.commands import run
from tunegate.core.ft import app
from tunegate.evalkit.folders import write_decision

ALIASES = ("champion", "candidate", "v1.2")
OPERATIONS = {"promote": 5, "refused": 1, "back": 4, "back_to": 2}


def judged(folder, text, verdict):
    """(release, the report with its decision inside)."""
    release = folder / "release"
    if not release.exists():
        release.mkdir(parents=True)
        (release / "model.safetensors").write_text(text)
        facts = {"base": "builtin:x", "base_name": "x", "method": "lora", "quantization": "none", "bytes": 7}
        manifest.write(release, Release.kind, inputs=[], config={}, facts=facts)
    opened, report = Release.open(release), folder / verdict
    report.mkdir()
    (report / "report.json").write_text(json.dumps({"target": {"digest": opened.digest}, "verdict": verdict}))
    facts = {"n": 100, "metrics": {}}
    manifest.write(report, EvalReport.kind, inputs=[opened.as_input("system")], config={}, facts=facts)
    condition = {
        "metric": "exact",
        "rule": "at_least",
        "decision": verdict,
        "value": 1,
        "low": 1,
        "high": 1,
        "reason": "",
    }
    decision = {"decision": verdict, "conditions": [condition], "policy": {"alpha": 0.05}}
    write_decision(report / "gate", decision, report=EvalReport.open(report), baseline=None)
    return opened, report


class Model:
    """What the names should mean. stack: digests of an alias, the last is meant; a rollback takes from its end."""

    def __init__(self):
        self.stack = {}
        self.history = {}

    def promote(self, alias, digest):
        stack = self.stack.setdefault(alias, [])
        if stack[-1:] != [digest]:
            stack.append(digest)
        self.history.setdefault(alias, []).append(("promote", digest))

    def can_go_back(self, alias, digest=None):
        *earlier, now = self.stack.get(alias) or [None]
        return bool(earlier) if digest is None else digest in earlier and digest != now

    def go_back(self, alias, digest=None):
        stack = self.stack[alias]
        stack.pop()
        while digest is not None and stack[-1] != digest:
            stack.pop()
        self.history[alias].append(("rollback", stack[-1]))


@pytest.fixture
def ft(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUNEGATE_REGISTRY", raising=False)

    def call(*words):
        capsys.readouterr()
        code = run(app, prog="ft", argv=["release", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_the_registry_means_what_a_simple_model_of_it_means(ft, tmp_path):
    rng = random.Random(11)
    passed = [judged(tmp_path / f"r{number}", str(number), "PASS") for number in range(4)]
    failed = [judged(tmp_path / f"r{number}", str(number), "FAIL") for number in range(4)]
    model = Model()
    for step in range(60):
        alias, number = rng.choice(ALIASES), rng.randrange(4)
        what = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
        release, report = (failed if what == "refused" else passed)[number]
        told = f"step {step}: {what} {alias} {number}"
        if what in ("promote", "refused"):
            code, _ = ft("promote", release.path, "--gate", report, "--as", alias)
            possible = what == "promote"
            after = model.promote
            given = (alias, release.digest)
        else:
            given = (alias, release.digest) if what == "back_to" else (alias,)
            possible, after = model.can_go_back(*given), model.go_back
            code, _ = ft("rollback", alias, *(["--to", release.digest[:12]] if what == "back_to" else []))
        assert code == (0 if possible else 2), told
        if possible:
            after(*given)
        releases = ft("list")[1]["releases"]
        assert {r["alias"]: (r["digest"], r["changes"]) for r in releases} == {
            name: (stack[-1], len(model.history[name])) for name, stack in model.stack.items()
        }, told
        if alias in model.stack:
            shown = ft("show", alias)[1]
            assert shown["digest"] == model.stack[alias][-1], told
            assert [(e["action"], e["digest"]) for e in shown["history"]] == model.history[alias], told
