"""The promised error rates, by simulation through the gate's own code, and the rules for each condition."""

import math
import random

import pytest

from tunegate.core.errors import UserError
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.gate import decide, make_policy


def reading(values, *, groups=None, latency=None, metric="exact"):
    rows = [
        {
            "id": str(i),
            "outcome": "pass" if v == 1.0 else "fail",
            "scores": {metric: v},
            "tags": {"half": i % 2},
            "group": None if groups is None else groups[i],
            "latency_ms": None if latency is None else latency[i],
            "ttft_ms": None,
            "cost_usd": None,
        }
        for i, v in enumerate(values)
    ]
    report = {"metrics": {metric: {}}, "task": {"primary": metric, "slices": ["half"]}, "size_bytes": 100}
    return Reading(name="r", report=report, rows=rows)


def verdict(conditions, candidate, baseline=None):
    return decide(make_policy({"conditions": conditions}, "gate.yaml"), candidate, baseline)


NON_INFERIOR = [{"metric": "exact", "rule": "non_inferior", "margin": 0.02}]


def pairs(generator, n, fixed_p, broken_p, accuracy=0.8):
    before, after = [], []
    for _ in range(n):
        u = generator.random()
        b, a = (
            (0.0, 1.0)
            if u < fixed_p
            else (1.0, 0.0)
            if u < fixed_p + broken_p
            else (x := float(generator.random() < accuracy), x)
        )
        before.append(b)
        after.append(a)
    return reading(before), reading(after)


@pytest.mark.parametrize(("n", "discordance"), [(50, 0.06), (200, 0.05), (300, 0.02)])
def test_error_rates(n, discordance):
    """Equal models FAIL at most alpha; a true drop of the margin PASSes at most alpha (discordance 2 %: 99 % accuracy)."""
    generator, draws = random.Random(n), 400
    limit = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / draws)
    failed = passed = 0
    for _ in range(draws):
        old, new = pairs(generator, n, discordance / 2, discordance / 2)
        failed += verdict(NON_INFERIOR, new, old)["decision"] == "FAIL"
        old, new = pairs(generator, n, (discordance - 0.02) / 2, (discordance + 0.02) / 2)
        passed += verdict(NON_INFERIOR, new, old)["decision"] == "PASS"
    assert failed / draws <= 0.05
    assert passed / draws <= limit


def test_floor_is_tested_on_the_interval_not_on_the_point():
    floor = [{"metric": "exact", "rule": "at_least", "value": 0.95}]
    assert verdict(floor, reading([1.0] * 58))["decision"] == "INCONCLUSIVE"
    assert verdict(floor, reading([1.0] * 58))["conditions"][0]["need_n"] == 59
    assert verdict(floor, reading([1.0] * 59))["decision"] == "PASS"
    assert verdict(floor, reading([0.0] * 30 + [1.0] * 70))["decision"] == "FAIL"
    twins = [i // 2 for i in range(60)]
    assert verdict(floor, reading([1.0] * 60, groups=twins))["decision"] == "INCONCLUSIVE"  # 30 groups, not 60 rows


def test_latency_size_and_what_was_not_measured():
    most = [{"metric": "latency_p95_ms", "rule": "at_most", "value": 800}]
    assert verdict(most, reading([1.0] * 58, latency=[1.0] * 58))["conditions"][0]["need_n"] == 59
    assert verdict(most, reading([1.0] * 59, latency=[1.0] * 59))["decision"] == "PASS"
    assert verdict(most, reading([1.0] * 99, latency=[900.0] * 99))["decision"] == "FAIL"
    assert "not measured" in verdict(most, reading([1.0] * 99))["conditions"][0]["reason"]
    assert verdict([{"metric": "size_bytes", "rule": "at_most", "value": 99}], reading([1.0]))["decision"] == "FAIL"


def test_superior_and_scores_between_0_and_1():
    better = [{"metric": "exact", "rule": "superior"}]
    old, new = reading([0.0] * 10 + [1.0] * 40), reading([1.0] * 50)
    assert verdict(better, new, old)["decision"] == "PASS"
    assert verdict(better, old, new)["decision"] == "FAIL"
    assert verdict(better, new, new)["decision"] == "INCONCLUSIVE"
    generator = random.Random(1)
    base = [generator.random() for _ in range(100)]
    up = [min(1.0, v + 0.05 * generator.random()) for v in base]
    assert verdict(NON_INFERIOR, reading(up), reading(base))["decision"] == "PASS"


def test_every_slice_must_hold():
    old = reading([1.0] * 400)
    new = reading([0.0 if i % 2 and i < 100 else 1.0 for i in range(400)])
    decided = verdict([{**NON_INFERIOR[0], "slice": "half"}], new, old)
    assert {c["slice"]: c["decision"] for c in decided["conditions"]} == {"half=0": "PASS", "half=1": "FAIL"}


@pytest.mark.parametrize(
    "condition",
    [
        {"metric": "exact", "rule": "non_inferior"},
        {"metric": "exact", "rule": "at_least"},
        {"metric": "exact", "rule": "superior", "margin": 0.1},
        {"metric": "exact", "rule": "better"},
        {"metric": "exact", "rule": "at_least", "valu": 1},
    ],
)
def test_bad_conditions(condition):
    with pytest.raises(UserError, match=r"^") as caught:
        make_policy({"conditions": [condition]}, "gate.yaml")
    assert "conditions[0]" in caught.value.line()
