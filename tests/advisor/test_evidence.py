import json
from pathlib import Path

import pytest

from tunegate.advisor import explain
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.evidence import read
from tunegate.advisor.recommend import recommend
from tunegate.core import manifest
from tunegate.core.errors import UserError
from tunegate.core.manifest import Input

QUESTION = from_mapping({"examples": 5000, "needs": "format"})


def write_report(folder, value, low, high, metric="exact", items="same", system=None):
    folder.mkdir(parents=True)
    document = {
        "task": {"name": "t", "primary": metric},
        "data": {"items_digest": items},
        "metrics": {metric: {"value": value, "low": low, "high": high}},
    }
    (folder / "report.json").write_text(json.dumps(document))
    manifest.write(folder, "eval_report", inputs=[system] if system else [], config={})
    return folder


def write_run(folder, method, kind="run", inputs=()):
    folder.mkdir(parents=True)
    manifest.write(folder, kind, inputs=list(inputs), config={}, facts={"method": method} if method else {})
    return manifest.read(folder).as_input("system", folder)


def write_bakeoff(folder, winner, **arms):
    folder.mkdir()
    rows = [
        {
            "arm": arm,
            "report_digest": f"{arm}-digest",
            "metrics": {"exact": dict(zip(("value", "low", "high"), v, strict=True))},
        }
        for arm, v in arms.items()
    ]
    document = {"primary": "exact", "task": "t", "winner": {"arm": winner}, "arms": rows}
    (folder / "bakeoff.json").write_text(json.dumps(document))
    manifest.write(folder, "bakeoff", inputs=[], config={})
    return folder


def test_measured_reports_outvote_the_priors(tmp_path):
    few = write_report(tmp_path / "few", 0.91, 0.88, 0.94)
    tuned = write_report(tmp_path / "tuned", 0.92, 0.89, 0.95)
    assert recommend(QUESTION).chosen.method == "qlora"
    answer = recommend(QUESTION, measured=read([f"few_shot={few}", f"qlora={tuned}"]))
    assert answer.chosen.method == "few_shot"  # the simpler one is not worse beyond its interval
    assert answer.chosen.quality == pytest.approx(0.91)
    assert any(r["id"] == "measured-here" and r["fired"] for r in explain.rules_json(answer))
    clear = write_report(tmp_path / "clear", 0.99, 0.97, 1.0)
    assert recommend(QUESTION, measured=read([f"few_shot={few}", f"qlora={clear}"])).chosen.method == "qlora"


def said(answer):
    return next(r["says"] for r in explain.rules_json(answer) if r["id"] == "measured-here")


def test_it_is_said_where_the_priors_were_wrong(tmp_path):
    high, low = write_report(tmp_path / "high", 0.9, 0.85, 0.95), write_report(tmp_path / "low", 0.5, 0.4, 0.6)
    points = recommend(QUESTION).score
    assert points["qlora"] > points["prompt"]
    wrong = said(recommend(QUESTION, measured=read([f"prompt={high}", f"qlora={low}"])))
    told = f"they put qlora ({points['qlora']:+g} points) above prompt ({points['prompt']:+g})"
    assert f"The priors were wrong: {told}." in wrong
    right = said(recommend(QUESTION, measured=read([f"prompt={low}", f"qlora={high}"])))
    assert right.endswith("the priors had them in this order.")
    near = write_report(tmp_path / "near", 0.88, 0.8, 0.96)
    assert "priors" not in said(recommend(QUESTION, measured=read([f"prompt={high}", f"qlora={near}"])))


def test_what_was_measured_stands_in_what_would_flip_it(tmp_path):
    """No number of examples outweighs a measurement, and the tornado keeps it."""
    few = write_report(tmp_path / "few", 0.95, 0.92, 0.97)
    tuned = write_report(tmp_path / "tuned", 0.80, 0.75, 0.85)
    answer = recommend(QUESTION, measured=read([f"few_shot={few}", f"qlora={tuned}"]))
    behind = {r["option"]: r for r in explain.rejected(answer)}
    assert behind["qlora"]["flips"] is False
    assert all("qlora" not in flip for row in explain.tornado(answer) for flip in row["flips_to"])


def test_a_reports_method_is_that_of_the_run_it_judged(tmp_path):
    run = write_run(tmp_path / "run", "qlora")
    merged = write_run(tmp_path / "merged", None, kind="release", inputs=[run])
    reports = [
        write_report(tmp_path / "base", 0.4, 0.3, 0.5, system=Input(role="system", kind="model", path="m", digest="d")),
        write_report(tmp_path / "tuned", 0.9, 0.8, 1.0, system=merged),
    ]
    found = read([str(r) for r in reports])
    assert {name: m.value for name, m in found.items()} == {"prompt": 0.4, "qlora": 0.9}
    with pytest.raises(UserError, match="which method"):
        read([str(write_report(tmp_path / "orphan", 0.9, 0.8, 1.0))])
    with pytest.raises(UserError, match="measured twice"):
        read([str(reports[1]), f"qlora={reports[1]}"])


def test_a_bake_off_is_read_with_its_winner(tmp_path):
    folder = write_bakeoff(
        tmp_path / "bo", "few_shot", base=(0.1, 0.0, 0.2), prompt=(0.5, 0.4, 0.6), few_shot=(0.7, 0.6, 0.8), lora=(0.75, 0.65, 0.85)
    )  # fmt: skip
    found = read([str(folder)])
    assert set(found) == {"prompt", "few_shot", "lora"}
    assert found["prompt"].value == 0.5
    answer = recommend(QUESTION, measured=found)
    assert answer.chosen.method == "few_shot"
    (rule,) = [r for r in answer.fired if r.id == "measured-here"]
    assert "bake-off's winner" in rule.says
    only_base = write_bakeoff(tmp_path / "b2", "base", base=(0.9, 0.8, 1.0), lora=(0.5, 0.4, 0.6))
    assert recommend(QUESTION, measured=read([str(only_base)])).chosen.method == "prompt"


def test_a_method_measured_beside_a_bake_off_is_weighed_against_its_winner(tmp_path):
    """The winner of the arms was taken although a better method was measured, and whatever that one was asked."""
    bake = write_bakeoff(tmp_path / "bo", "lora", prompt=(0.1, 0.05, 0.2), lora=(0.5, 0.4, 0.6))
    for arm in ("prompt", "lora"):
        write_report(bake / "reports" / arm, 0.5, 0.4, 0.6)
    full = write_report(tmp_path / "full", 0.9, 0.85, 0.95)
    found = read([str(bake), f"full={full}"])
    answer = recommend(QUESTION, measured=found)
    (rule,) = [r for r in answer.fired if r.id == "measured-here"]
    assert (list(rule.votes), "The simplest method" in rule.says, "bake-off" in rule.says) == (["full"], True, False)
    others = write_report(tmp_path / "others", 0.9, 0.85, 0.95, items="others")
    with pytest.raises(UserError, match="reports of different items"):
        read([str(bake), f"full={others}"])


def test_the_real_bake_offs_file_has_the_keys_that_are_read():
    """What `ft bakeoff` writes, so that a change there is seen here."""
    source = pytest.importorskip("tunegate.evalkit.bakeoff.judge").__file__
    text = Path(source).read_text()
    for key in ('"primary"', '"task"', '"winner"', '"arms"', '"arm"', '"report_digest"', '"metrics"'):
        assert key in text


def test_evidence_that_cannot_be_used(tmp_path):
    one = write_report(tmp_path / "one", 0.9, 0.8, 1.0)
    metric = write_report(tmp_path / "metric", 0.9, 0.8, 1.0, metric="f1")
    items = write_report(tmp_path / "items", 0.9, 0.8, 1.0, items="others")
    broken = write_bakeoff(tmp_path / "broken", "lora", taste=(0.1, 0.1, 0.2))
    for bad in (
        [str(one)], [f"lorra={one}"], [f"lora={tmp_path}"], [f"lora={one}", f"prompt={metric}"], [f"lora={one}", f"prompt={items}"],
        [str(broken)], [""], ["lora="],
    ):  # fmt: skip
        with pytest.raises(UserError):
            read(bad)
