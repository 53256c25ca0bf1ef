"""What a gate says of itself: items that would decide it, verdicts that it replaces; and what it costs with many slices."""

import json
import time

import pytest

from tests.evalkit.test_gate_inputs import outputs
from tests.evalkit.test_gate_mended import NON_INFERIOR, SUPERIOR, one, reading
from tunegate.evalkit import gate
from tunegate.evalkit.compare import pair
from tunegate.evalkit.gate import BEYOND, decide
from tunegate.evalkit.policy import make_policy


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize(("condition", "broken"), [(SUPERIOR, 2), (NON_INFERIOR | {"margin": 0.1}, 12)])
def test_a_difference_on_the_bound_is_decided_by_no_number_of_items(condition, broken, times):
    """Twice as many were asked for, then twice as many again: with that difference none would do."""
    fixed, n = 2, 100
    before = [1.0] * broken + [0.0] * fixed + [1.0] * (n - broken - fixed)
    after = [0.0] * broken + [1.0] * fixed + [1.0] * (n - broken - fixed)
    found = one(condition, reading(after * times), reading(before * times))
    assert (found.decision, found.value) == ("INCONCLUSIVE", pytest.approx((fixed - broken) / n))
    assert (found.need_n, found.reason.endswith(BEYOND)) == (None, True)


@pytest.mark.parametrize(
    "condition", [NON_INFERIOR | {"margin": 0.05}, {"metric": "exact", "rule": "at_least", "value": 0.9}]
)
def test_a_few_wrong_answers_in_groups_show_no_more_than_none(condition):
    """200 items in 20 groups of ten: identical sides were INCONCLUSIVE, two answers broken made it a PASS."""
    right, groups = [1.0] * 200, [i // 10 for i in range(200)]
    found = []
    for wrong in (0, 1, 2):
        after = [0.0 if i % 10 == 0 and i // 10 < wrong else 1.0 for i in range(200)]
        found.append(one(condition, reading(after, groups=groups), reading(right, groups=groups)))
    assert [f.decision for f in found] == ["INCONCLUSIVE"] * 3


def write(path, least):
    path.write_text(json.dumps({"conditions": [{"metric": "exact", "rule": "at_least", "value": least}]}))
    return path


def test_a_verdict_that_another_one_replaces_is_said(echo, ft):
    """A FAIL became a PASS by a looser policy without a word, for `ft release promote` to read."""
    outputs(echo / "o.jsonl", 30)
    outputs(echo / "b.jsonl", 30)
    strict, loose, as_loose = (write(echo / f"{k}.yaml", v) for k, v in (("a", 0.9), ("b", 0.1), ("c", 0.2)))
    arguments = ("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--against", "b.jsonl", "--policy", strict)
    assert ft(*arguments).code == 1

    def said(*arguments):
        done = ft("gate", "r", *arguments)
        return done.code, [line for line in done.err.splitlines() if line.startswith("warning: the gate says")]

    assert said("--policy", strict) == (1, [])
    itself = "warning: the gate says PASS, but the report itself says FAIL by another policy"
    assert said("--policy", loose) == (0, [f"{itself} and r/gate, which it replaces, says FAIL"])
    assert said("--policy", as_loose) == (0, [itself])
    assert said("--policy", strict) == (1, ["warning: the gate says FAIL, but r/gate, which it replaces, says PASS"])
    assert said("--policy", loose, "--out", "elsewhere") == (0, [itself])
    (echo / "r/gate/manifest.json").write_text("{}")
    assert said("--policy", strict)[0] == 2, "somebody else's folder is not replaced"


def sliced(values, right):
    side = reading([float(i % right != 0) for i in range(20 * values)])
    for i, row in enumerate(side.rows):
        row["tags"] = {"intent": str(i % values)}
    side.report["task"] |= {"slices": ["intent"], "validators": [{"name": "exact"}]}
    return side


def test_the_share_without_a_verdict_is_counted_once_a_metric(monkeypatch):
    """It was counted once for each slice's value: with a thousand, rows x 2,001."""
    counted, score_of = [], gate.score_of
    monkeypatch.setattr(gate, "score_of", lambda row, metric: counted.append(metric) or score_of(row, metric))
    policy = make_policy({"conditions": [NON_INFERIOR | {"slice": "intent"}, NON_INFERIOR]}, "gate.yaml")
    found = decide(policy, sliced(50, 9), sliced(50, 10))
    assert (len(found["conditions"]), len(counted)) == (51, 2 * 1000)


def test_the_spread_of_many_graded_differences_is_one_pass():
    """The mean was summed anew for each of them: a minute for 50,000."""
    n = 50_000
    paired = pair(reading([0.5] * n).rows, reading([0.25 + i % 2 / 2 for i in range(n)]).rows, "exact")
    start = time.process_time()
    assert paired.spread == pytest.approx(0.0625)
    assert time.process_time() - start < 5
