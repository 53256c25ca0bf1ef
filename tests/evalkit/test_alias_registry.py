"""`--against ALIAS` where promotions are kept in another registry than the default folder."""

import json
import shutil

import pytest

from tests.evalkit.test_gate_inputs import outputs
from tests.evalkit.test_gate_inputs import promoted as promoted
from tunegate.core import registry
from tunegate.core.artifacts import EvalReport
from tunegate.core.errors import UserError
from tunegate.evalkit.system import classify
from tunegate.train.release.promote_registry import MlflowRegistry, open_registry


@pytest.fixture
def elsewhere(echo, monkeypatch):
    """`$TUNEGATE_REGISTRY`, a folder that is not `$TUNEGATE_HOME`."""
    monkeypatch.setenv("TUNEGATE_REGISTRY", str(echo / "registry"))
    return echo / "registry"


def test_an_alias_is_compared_by_the_report_kept_beside_it(elsewhere, promoted, echo, ft):
    kept = EvalReport.open(echo / "judged")
    shutil.rmtree(echo / "judged")
    assert not registry.has_report("champion"), "not in the default folder"
    found = classify("champion", baseline=True)
    assert (found.kind, found.digest) == ("report", kept.digest)
    assert found.source.path.is_relative_to(elsewhere)
    assert classify("champion").kind == "release"
    outputs(echo / "n.jsonl", 30)
    run = ft("eval", "n.jsonl", "--task", "task.yaml", "--out", "n", "--against", "champion", "--json")
    assert run.json["comparison"]["exact"]["broken"] == 30, run.err
    assert not (echo / "n-baseline").exists(), "the release was not asked again"


def test_a_saved_baseline_of_that_name_goes_before(elsewhere, promoted, echo, ft):
    outputs(echo / "few.jsonl", 10)
    ft("eval", "few.jsonl", "--task", "task.yaml", "--out", "few", "--save-as", "champion")
    found = classify("champion", baseline=True)
    assert found.digest == EvalReport.open(echo / "few").digest
    assert found.source.path.is_relative_to(echo / "home")


def test_the_report_is_of_what_the_alias_means_and_as_it_was(elsewhere, promoted, echo):
    kept = classify("champion", baseline=True).source.path
    name = kept / "summary.md"
    name.write_text("x" * name.stat().st_size)
    with pytest.raises(UserError, match="the saved report behind 'champion' was changed"):
        classify("champion", baseline=True)
    shutil.rmtree(kept)
    with pytest.raises(UserError, match="no such folder"):
        classify("champion", baseline=True)


def test_a_promotion_in_mlflow_finds_a_report_that_is_at_hand(elsewhere, promoted, echo):
    """What MLflow keeps may be anywhere: the store of this machine is looked at, by digest."""
    entry = open_registry(None).histories()["champion"][-1]
    mlflow = MlflowRegistry(f"sqlite:///{echo}/mlflow.db", "slots")
    assert mlflow.report("champion", entry) is None
    report = EvalReport.open(echo / "judged")
    registry.save("another-name", report)
    assert mlflow.report("champion", entry).digest == report.digest
    assert json.loads((echo / "home" / "registry.json").read_text())["entries"].keys() == {"eval_report/another-name"}
