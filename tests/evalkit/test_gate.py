"""The promised error rates, by simulation through the gate's own code, and the rules for each condition."""

import math
import random
import time

import pytest

from tunegate.core.errors import UserError
from tunegate.evalkit.compare import Reading, by_id, pair
from tunegate.evalkit.gate import _one, decide
from tunegate.evalkit.policy import make_policy
from tunegate.evalkit.summary import measure


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


@pytest.mark.parametrize(
    ("n", "discordance"), [(50, 0.06), (200, 0.05), pytest.param(300, 0.02, marks=pytest.mark.slow)]
)
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


def slow_contrary(rows, baseline, condition, alpha):
    """The least tail at which the whole interval breaks the condition, by bisection over the intervals themselves."""
    bound = -condition["margin"] if "margin" in condition else condition["value"]
    before, low, high = by_id(baseline), 0.0, alpha
    for _ in range(20):
        middle = (low + high) / 2.0
        level = 1.0 - 2.0 * middle
        if "margin" in condition:
            interval = pair(before, rows, "exact").interval(level=level)
        else:
            interval = measure(rows, {"metrics": {"exact": {}}}, condition["metric"], level=level, exact=True).interval
        edge = interval.low if condition["rule"] == "at_most" else interval.high
        broken = edge is not None and (edge > bound if condition["rule"] == "at_most" else edge < bound)
        low, high = (low, middle) if broken else (middle, high)
    return high


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "condition",
    [
        {"metric": "exact", "rule": "non_inferior", "margin": 0.02},
        {"metric": "exact", "rule": "at_least", "value": 0.8},
        {"metric": "exact", "rule": "at_most", "value": 0.2},
        {"metric": "latency_p50_ms", "rule": "at_most", "value": 450},
    ],
)
def test_the_contrary_of_a_slice_is_the_inverted_interval(condition, binary, grouped):
    """Exact tails take the place of bisecting intervals; p and verdict are the same."""
    generator = random.Random(7)
    seen = set()
    for n in (6, 14, 40):
        for accuracy in (0.1, 0.45, 0.8):
            values = [
                [float(generator.random() < p) if binary else generator.random() * p for _ in range(n)]
                for p in (0.9, accuracy)
            ]
            groups = [str(i // 2) for i in range(n)] if grouped else None
            late = [1000.0 * generator.random() for _ in range(n)]
            old, new = (reading(v, groups=groups, latency=late) for v in values)
            chosen = make_policy({"conditions": [condition]}, "g").conditions[0]
            found, contrary = _one(chosen, 0.05, new, by_id(old.rows), new.rows, "half=0")
            expected = slow_contrary(new.rows, old.rows, condition, 0.05)
            if condition["rule"] == "non_inferior" and expected < 0.05:  # the exact test stands beside the score test
                expected = max(expected, pair(old.rows, new.rows, "exact").exact_worse_p(0.02) or 0.0)
            seen.add(found.decision)
            assert (found.decision == "FAIL") == (expected < 0.05)
            if found.decision == "FAIL":
                assert contrary == pytest.approx(expected, abs=2e-6)
    assert "FAIL" in seen or condition["metric"] != "exact"


def test_a_thousand_slices_are_decided_in_seconds():
    generator = random.Random(3)
    old, new = (reading([float(generator.random() < p) for _ in range(10_000)]) for p in (0.9, 0.5))
    for side in (old, new):
        for row in side.rows:
            row["tags"]["half"] = str(int(row["id"]) % 1000)
    conditions = [
        {**NON_INFERIOR[0], "slice": "half"},
        {"metric": "exact", "rule": "at_least", "value": 0.9, "slice": "half"},
    ]
    start = time.process_time()
    decided = verdict(conditions, new, old)
    assert time.process_time() - start < 10  # under 1 s unloaded; a minute when every interval was bisected
    assert len(decided["conditions"]) == 2000
