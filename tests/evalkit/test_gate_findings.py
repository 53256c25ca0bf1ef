"""What a finding says, to the digit: figures, the number of items still needed, the reason; and what is not judged at all."""

import math
from types import SimpleNamespace

import pytest

from tunegate.core.artifacts import LoadReport
from tunegate.core.bootstrap import bootstrap_mean
from tunegate.core.distributions import student_quantile
from tunegate.core.errors import UserError
from tunegate.core.power import items_for_rate, pairs_for_difference
from tunegate.core.statistics import (
    clopper_pearson,
    exact_non_inferior_p,
    mcnemar_better_p,
    non_inferior_p,
    percentile,
    tango_interval,
)
from tunegate.evalkit import gate
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.gate import check_metrics, decide
from tunegate.evalkit.policy import make_policy

NON_INFERIOR = {"metric": "exact", "rule": "non_inferior", "margin": 0.02}
SUPERIOR = {"metric": "exact", "rule": "superior"}
WIDTHS = 1.0 + 0.8416212 / 1.6448536  # (z of 80 % + z of alpha 0.05) over z of alpha: what a half-width must grow to


def reading(values, *, lost=0, tags=None, groups=None, latency=None, cost=None, **report):
    """Items with these scores; `lost` more that infrastructure errors took."""
    rows = [
        {
            "id": str(i),
            "outcome": "infra_error" if v is None else "pass" if v == 1.0 else "fail",
            "scores": {} if v is None else {"exact": v},
            "tags": {"half": i % 2 if tags is None else tags[i]},
            "group": None if groups is None else groups[i],
            "latency_ms": None if latency is None else latency[i],
            "ttft_ms": None,
            "cost_usd": None if cost is None else cost[i],
        }
        for i, v in enumerate([*values, *[None] * lost])
    ]
    shell = {"metrics": {"exact": {}}, "task": {"primary": "exact", "slices": ["half"]}, "size_bytes": 100}
    return Reading(name="r", report={**shell, **report}, rows=rows)


def sides(fixed, broken, right, wrong):
    old = [0.0] * fixed + [1.0] * broken + [1.0] * right + [0.0] * wrong
    new = [1.0] * fixed + [0.0] * broken + [1.0] * right + [0.0] * wrong
    return reading(old), reading(new)


def policy(*conditions, **more):
    return make_policy({"conditions": list(conditions), **more}, "gate.yaml")


def one(condition, candidate, baseline=None, load=None, **more):
    """The one finding of one condition."""
    (finding,) = decide(policy(condition, **more), candidate, baseline, load)["conditions"]
    return SimpleNamespace(**finding)


def test_a_decision_is_told_whole():
    old, new = sides(0, 40, 60, 0)
    rule = policy(NON_INFERIOR, alpha=0.1)
    found = decide(rule, new, old)
    interval = tango_interval(0, 40, 100, level=0.8)
    assert found == {
        "decision": "FAIL",
        "conditions": [
            {
                "metric": "exact",
                "rule": "non_inferior",
                "decision": "FAIL",
                "value": -0.4,
                "low": interval.low,
                "high": interval.high,
                "need_n": None,
                "reason": f"worse by more than 0.02: difference -0.4000 [{interval.low:.4g}, {interval.high:.4g}], p < 0.0001",
                "bound": -0.02,
                "p": pytest.approx(
                    exact_non_inferior_p(40, 0, 100, -0.02, gamma=1e-6)
                ),  # of the contrary, which is shown
                "n": 100,
                "slice": None,
                "level": 0.8,
            }
        ],
        "policy": rule.to_json(),
        "alpha": 0.1,
        "infra_error_rate": 0.0,
    }


@pytest.mark.parametrize(
    ("floors", "decision"),
    [([0.5, 0.5], "PASS"), ([0.5, 0.99], "INCONCLUSIVE"), ([1.5, 0.99], "FAIL"), ([0.99, 1.5, 0.5], "FAIL")],
)
def test_all_must_pass_and_one_that_fails_decides(floors, decision):
    conditions = [{"metric": "exact", "rule": "at_least", "value": value} for value in floors]
    assert decide(policy(*conditions), reading([1.0] * 100), None)["decision"] == decision


LIMIT = {"metric": "infra_error_rate", "rule": "at_most", "value": 0.5}
FLOOR = {"metric": "exact", "rule": "at_least", "value": 0.5}


@pytest.mark.parametrize(
    ("lost", "conditions", "more", "judged"),
    [
        (0, [FLOOR], {}, True),
        (5, [FLOOR], {}, True),  # 5 of 100: at the limit, not above it
        (6, [FLOOR], {}, False),
        (6, [FLOOR], {"max_infra_error_rate": 0.1}, True),
        (6, [FLOOR, LIMIT], {"max_infra_error_rate": 0.05}, False),  # a condition does not lift the policy's own limit
        (40, [FLOOR, LIMIT], {}, True),  # the limit that a condition states stands above the policy's own
        (40, [FLOOR, LIMIT, {**LIMIT, "value": 0.3}], {}, False),  # the strictest of several
        (40, [FLOOR, {**LIMIT, "rule": "at_least"}], {}, False),  # a floor of errors states no limit
        (40, [FLOOR, {**LIMIT, "metric": "unparsable_rate"}], {}, False),
    ],
)
def test_above_the_limit_of_infrastructure_errors_nothing_is_judged(lost, conditions, more, judged):
    found = decide(policy(*conditions, **more), reading([1.0] * (100 - lost), lost=lost), None)
    assert found["infra_error_rate"] == pytest.approx(lost / 100)
    first = found["conditions"][0]
    assert first["decision"] == ("PASS" if judged else "INCONCLUSIVE")
    if not judged:
        assert found["decision"] == "INCONCLUSIVE"
        limit = "30.0%" if len(conditions) == 3 else "5.0%"
        expected = f"{lost}.0% of the items were lost to infrastructure errors, above {limit}: nothing is judged"
        assert {c["reason"] for c in found["conditions"]} == {expected}
        assert first["value"] == 1.0, "the figure is told all the same"


def test_what_the_baseline_lost_counts_too():
    good, holed = reading([1.0] * 100), reading([1.0] * 80, lost=20)
    for candidate, baseline in ((good, holed), (holed, good)):
        found = decide(policy(NON_INFERIOR), candidate, baseline)
        assert (found["decision"], found["infra_error_rate"]) == ("INCONCLUSIVE", 0.2)
    assert decide(policy(FLOOR), reading([]), None)["infra_error_rate"] == 1.0, "nothing was asked: nothing is known"
    assert decide(policy(NON_INFERIOR), good, reading([]))["infra_error_rate"] == 0.0


def test_the_exact_test_stands_guard_over_the_score_test():
    """133 pairs without a difference: the score test's p is 0.0499, the exact one's 0.98^133 + 0.001 = 0.069."""
    found = one(NON_INFERIOR, reading([1.0] * 133), reading([1.0] * 133))
    assert found.p == non_inferior_p(0, 0, 133, 0.02) < 0.05
    assert found.decision == "INCONCLUSIVE"
    exact = exact_non_inferior_p(0, 0, 133, 0.02)
    assert found.reason == (
        f"a drop of 0.02 is neither excluded nor shown: difference +0.0000 [{found.low:.4g}, {found.high:.4g}], "
        f"p {found.p:.4f}; the exact p is {exact:.4f}, so few pairs differ"
    )
    passed = one(NON_INFERIOR, reading([1.0] * 200), reading([1.0] * 200))
    assert passed.decision == "PASS"
    assert passed.reason.startswith("not worse by 0.02 or more: difference +0.0000 [")
    assert "exact" not in passed.reason
    open_ = one(NON_INFERIOR, reading([1.0] * 20), reading([1.0] * 20))
    assert "exact" not in open_.reason, "the score test did not pass it either"


def test_superior_is_judged_by_mcnemar_on_both_sides():
    old, new = sides(8, 1, 20, 20)
    p = mcnemar_better_p(8, 1)
    assert p == pytest.approx(10 / 512)
    better, worse = one(SUPERIOR, new, old), one(SUPERIOR, old, new)
    assert (better.decision, better.p, better.bound, better.n) == ("PASS", p, 0.0, 49)
    assert better.reason.startswith("better: difference +0.1429 [")
    assert better.reason.endswith("], p 0.0195")
    assert (worse.decision, worse.p) == ("FAIL", mcnemar_better_p(8, 1))
    assert worse.reason.endswith("], p 0.0195")
    assert worse.reason.startswith("worse: difference -0.1429 [")
    strict = one(SUPERIOR, new, old, alpha=0.01)
    assert strict.decision == "INCONCLUSIVE"
    assert strict.reason.startswith("neither better nor worse is shown: difference")
    assert one(SUPERIOR, old, new, alpha=0.01).decision == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("condition", "counts", "need"),
    [
        # discordance (0 + 0 + 1) / (20 + 2); 703 pairs tell equal models from the margin
        (NON_INFERIOR, (0, 0, 20, 0), 703),
        (NON_INFERIOR, (0, 0, 133, 0), pairs_for_difference(1 / 135, 0.02, alpha=0.05)),
        # 6 differ of 60
        (NON_INFERIOR, (2, 4, 54, 0), pairs_for_difference(7 / 62, 0.02, alpha=0.05)),
        # enough are there if the two were equal: as many as the observed -0.014 takes
        (NON_INFERIOR, (2, 9, 489, 0), pairs_for_difference(12 / 502, 0.006, alpha=0.05)),
        (SUPERIOR, (3, 1, 40, 0), pairs_for_difference(5 / 46, 2 / 44, alpha=0.05)),
        (SUPERIOR, (1, 1, 40, 0), None),  # the difference seen lies on the bound
    ],
)
def test_pairs_still_needed(condition, counts, need):
    old, new = sides(*counts)
    found = one(condition, new, old)
    assert (found.decision, found.need_n) == ("INCONCLUSIVE", need)


def test_pairs_still_needed_of_grouped_and_of_graded_scores():
    twins = [i // 2 for i in range(20)]
    found = one(NON_INFERIOR, reading([1.0] * 20, groups=twins), reading([1.0] * 20, groups=twins))
    assert found.need_n == 2 * 703, "each pair counts for half"
    before, now = [0.1 * (i % 5) for i in range(25)], [0.1 * (i % 5) + 0.1 * (i % 3) - 0.09 for i in range(25)]
    found = one({**NON_INFERIOR, "margin": 0.01}, reading(now), reading(before))
    differences = [b - a for a, b in zip(before, now, strict=True)]
    mean = sum(differences) / 25
    spread = sum((d - mean) ** 2 for d in differences) / 25
    assert found.decision == "INCONCLUSIVE"
    assert found.need_n == pairs_for_difference(spread, 0.01, alpha=0.05) + 200, (
        "one more at the end of the scale: 2 / 0.01"
    )
    assert found.p == bootstrap_mean(differences, level=0.9).p_above(-0.01)


def test_graded_scores_without_spread_or_of_one_group():
    """All differ by the margin itself: with no spread to plan with, one pair's is taken, 1 / n."""
    found = one({**NON_INFERIOR, "margin": 0.25}, reading([0.25] * 4), reading([0.5] * 4))
    assert (found.decision, found.need_n) == ("INCONCLUSIVE", pairs_for_difference(1 / 4, 0.25, alpha=0.05) + 8)
    alone = {"groups": ["g"] * 4}
    found = one(NON_INFERIOR, reading([0.1, 0.2, 0.3, 0.4], **alone), reading([0.5] * 4, **alone))
    assert (found.decision, found.low, found.high, found.p) == ("INCONCLUSIVE", None, None, 1.0)
    assert "[no bound, no bound]" in found.reason


def test_no_pair_at_all():
    lost = {"max_infra_error_rate": 1.0}
    found = one(NON_INFERIOR, reading([], lost=3), reading([1.0] * 3), **lost)
    assert (found.decision, found.need_n, found.n, found.p) == ("INCONCLUSIVE", None, 0, 1.0)
    assert (found.low, found.high) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("rule", "value", "right", "decision", "words"),
    [
        ("at_least", 0.6, 80, "PASS", "at least 0.6: the whole interval keeps to it"),
        ("at_least", 0.9, 80, "FAIL", "at least 0.9: the whole interval breaks it"),
        ("at_least", 0.75, 80, "INCONCLUSIVE", "at least 0.75: the interval reaches over it"),
        ("at_most", 0.9, 80, "PASS", "at most 0.9: the whole interval keeps to it"),
        ("at_most", 0.6, 80, "FAIL", "at most 0.6: the whole interval breaks it"),
        ("at_most", 0.85, 80, "INCONCLUSIVE", "at most 0.85: the interval reaches over it"),
    ],
)
def test_floors_and_ceilings_of_a_rate(rule, value, right, decision, words):
    found = one({"metric": "exact", "rule": rule, "value": value}, reading([1.0] * right + [0.0] * (100 - right)))
    interval = clopper_pearson(right, 100, level=0.9)
    assert (found.decision, found.value, found.n, found.bound, found.level) == (decision, 0.8, 100, value, 0.9)
    assert (found.low, found.high, found.p, found.slice) == (interval.low, interval.high, None, None)
    assert found.reason == f"{words}, 0.8 [{interval.low:.4g}, {interval.high:.4g}]"
    need = max(101, items_for_rate(0.8, value, alpha=0.05)) if decision == "INCONCLUSIVE" else None
    assert found.need_n == need


def test_a_bound_that_the_interval_just_touches_is_kept():
    edge = clopper_pearson(80, 100, level=0.9)
    values = reading([1.0] * 80 + [0.0] * 20)
    assert one({"metric": "exact", "rule": "at_least", "value": edge.low}, values).decision == "PASS"
    assert one({"metric": "exact", "rule": "at_most", "value": edge.high}, values).decision == "PASS"
    assert one({"metric": "exact", "rule": "at_least", "value": edge.high}, values).decision == "INCONCLUSIVE"
    assert one({"metric": "exact", "rule": "at_most", "value": edge.low}, values).decision == "INCONCLUSIVE"


def test_items_still_needed():
    at = {"metric": "exact", "rule": "at_least"}
    assert one({**at, "value": 0.8}, reading([1.0] * 80 + [0.0] * 20)).need_n is None, "the rate is the bound itself"
    twins = reading([1.0] * 58, groups=[i // 2 for i in range(58)])
    effective = 29 * (student_quantile(0.95, math.inf) / student_quantile(0.95, 28)) ** 2  # Korn & Graubard 1998
    assert one({**at, "value": 0.95}, twins).need_n == round(59 * 58 / effective)
    late = {"metric": "latency_p95_ms", "rule": "at_most", "value": 800}
    assert one(late, reading([1.0] * 20, latency=[1.0] * 20)).need_n == 59  # ln 0.05 / ln 0.95 = 58.4
    assert one({**late, "metric": "latency_p50_ms"}, reading([1.0] * 4, latency=[1.0] * 4)).need_n == 5
    early = {"metric": "latency_p50_ms", "rule": "at_least", "value": 0.5}
    assert one(early, reading([1.0] * 2, latency=[1.0] * 2)).need_n == 5  # ln 0.05 / ln 0.5 = 4.3
    early = {"metric": "latency_p95_ms", "rule": "at_least", "value": 0.5}
    assert one(early, reading([1.0], latency=[1.0]), alpha=0.01).need_n == 2  # ln 0.01 / ln 0.05 = 1.5
    assert one({**early, "value": 1.0}, reading([1.0], latency=[1.0]), alpha=0.01).need_n == 2, "a value on its floor"
    times = [100.0 + i for i in range(100)]
    found = one({**late, "value": 196}, reading([1.0] * 100, latency=times))
    interval = percentile(times, 0.95, level=0.9)
    assert (found.low, found.value, found.high) == (interval.low, 194.0, interval.high)
    assert found.need_n == round(100 * (WIDTHS * (interval.high - 194) / (196 - 194)) ** 2) > 101
    broken = one({**late, "value": 192}, reading([1.0] * 100, latency=times))
    assert broken.decision == "INCONCLUSIVE"
    assert broken.need_n == round(100 * (WIDTHS * (194 - interval.low) / (194 - 192)) ** 2), "the lower end decides it"
    assert one({**late, "value": 194}, reading([1.0] * 100, latency=times)).need_n is None


def test_items_still_needed_of_graded_scores():
    values = [0.1 * (i % 8) for i in range(40)]
    interval = bootstrap_mean(values, level=0.9, lowest=0.0).interval
    for rule, edge, bound in (("at_least", interval.low, 0.33), ("at_most", interval.high, 0.37)):
        found = one({"metric": "exact", "rule": rule, "value": bound}, reading(values))
        assert (found.decision, found.low, found.high) == ("INCONCLUSIVE", interval.low, interval.high)
        assert found.need_n == round(40 * (WIDTHS * (edge - interval.value) / (bound - interval.value)) ** 2) > 41
    touched = one({"metric": "exact", "rule": "at_least", "value": interval.low + 1e-9}, reading(values))
    assert (touched.decision, touched.need_n) == ("INCONCLUSIVE", round(40 * WIDTHS**2)), "no even chance, but 80 %"


def test_counted_figures_are_facts():
    size = {"metric": "size_bytes", "rule": "at_most", "value": 100}
    found = one(size, reading([1.0]))
    assert (found.decision, found.reason) == ("PASS", "size_bytes 100 <= 100 holds (counted, not sampled)")
    found = one({**size, "value": 99}, reading([1.0]))
    assert (found.decision, found.reason) == ("FAIL", "size_bytes 100 <= 99 does not hold (counted, not sampled)")
    found = one({**size, "rule": "at_least"}, reading([1.0]))
    assert (found.decision, found.reason) == ("PASS", "size_bytes 100 >= 100 holds (counted, not sampled)")
    assert one({**size, "rule": "at_least", "value": 101}, reading([1.0])).decision == "FAIL"
    assert one({**LIMIT, "value": 0.04}, reading([1.0] * 95, lost=5)).reason.endswith("nothing is judged")
    assert one({**LIMIT, "value": 0.05}, reading([1.0] * 95, lost=5)).decision == "PASS"


def test_what_was_not_measured_is_not_decided():
    found = one({"metric": "ttft_p50_ms", "rule": "at_most", "value": 1}, reading([1.0] * 9))
    assert (found.decision, found.reason, found.value, found.n) == (
        "INCONCLUSIVE",
        "ttft_p50_ms was not measured",
        None,
        0,
    )
    assert (found.low, found.high, found.need_n) == (None, None, None)
    found = one({"metric": "leakage_exact", "rule": "at_most", "value": 0}, reading([1.0]))
    assert found.reason == "leakage_exact was not measured: no training data is known"
    one_group = reading([1.0, 1.0], cost=[1.0, 2.0], groups=["g", "g"])
    found = one({"metric": "cost_per_correct_usd", "rule": "at_most", "value": 9}, one_group)
    assert (found.decision, found.need_n) == ("INCONCLUSIVE", None)
    assert found.reason == "at most 9: the interval reaches over it, 1.5 [no bound, no bound]"


def test_a_slice_that_fails_by_chance_is_spared():
    """One of 20 slices at p 1/32 is no news: Holm's p is 20/32. The same slice alone fails."""
    old = [1.0] * 100
    new = [0.0 if i % 20 == 3 else 1.0 for i in range(100)]
    tags = [f"s{i % 20:02}" for i in range(100)]
    strict = {"metric": "exact", "rule": "superior", "slice": "half"}
    found = decide(policy(strict), reading(new, tags=tags), reading(old, tags=tags))
    spared = found["conditions"][3]
    assert (spared["slice"], spared["decision"], spared["n"]) == ("half=s03", "INCONCLUSIVE", 5)
    assert spared["reason"].endswith("; not shown once corrected for the number of slices (Holm p 0.625)")
    assert spared["need_n"] == 20  # 5 times ((z of 1 - 0.05/20 + z of 0.8) / z of 1 - 1/32)^2
    assert found["decision"] == "INCONCLUSIVE"
    few = [i for i in range(100) if i % 20 == 3]
    alone = reading([new[i] for i in few], tags=["s"] * 5), reading([old[i] for i in few], tags=["s"] * 5)
    assert decide(policy(strict), *alone)["decision"] == "FAIL"


def test_a_slice_under_a_floor_is_corrected_by_its_own_tail():
    """Of 30 items 22 are right, floor 0.9: P(X <= 22) = 0.0078; in 10 slices Holm's p is 0.078, in 5 it is 0.039."""
    floor = {"metric": "exact", "rule": "at_least", "value": 0.9, "slice": "half"}
    for slices, decision in ((5, "FAIL"), (10, "INCONCLUSIVE")):
        tags = [i % slices for i in range(30 * slices)]
        values = [0.0 if i % slices == 0 and i // slices < 8 else 1.0 for i in range(30 * slices)]
        found = decide(policy(floor), reading(values, tags=tags), None)["conditions"][0]
        assert (found["slice"], found["decision"], found["n"]) == ("half=0", decision, 30)
    # 30 ((2.576 + 0.842) / 2.418)^2: z of 1 - 0.05/10 and of 0.8, over that of 1 - 0.0078
    assert found["need_n"] == 60


def test_conditions_that_a_report_cannot_decide():
    candidate, slow = reading([1.0]), {"metric": "load_ttft_p95_ms", "rule": "at_most", "value": 1}
    cases = [
        ([FLOOR, slow], None, "gate conditions[1] metric: load_ttft_p95_ms needs a load test"
         " (--load LOADREPORT, made by: ft loadtest TARGET --out LOADREPORT)"),
        ([{**FLOOR, "metric": "exat"}], None, "gate conditions[0] metric: the report has no metric 'exat' for at_least"
         ' (did you mean "exact"?'),
        ([{**NON_INFERIOR, "metric": "latency_p50_ms"}], candidate, "no metric 'latency_p50_ms' for non_inferior"),
        ([{**NON_INFERIOR, "metric": "load_error_rate"}], candidate, "no metric 'load_error_rate' for non_inferior"),
        ([NON_INFERIOR], None, "gate conditions[0]: non_inferior needs a baseline"
         " (--against NAME, a report folder, or any TARGET)"),
        ([NON_INFERIOR], reading([1.0], metrics={"x": {}}), "gate conditions[0] metric: the baseline has no metric 'exact'"),
        ([{**FLOOR, "slice": "hafl"}], None, "gate conditions[0] slice: the report has no slice 'hafl' (did you mean \"half\"?"),
    ]  # fmt: skip
    for conditions, baseline, words in cases:
        with pytest.raises(UserError) as caught:
            decide(policy(*conditions), candidate, baseline)
        assert words in caught.value.line()
    other = reading([1.0], metrics={"x": {}})
    assert decide(policy(FLOOR), candidate, other)["conditions"][0]["value"] == 1.0, "no rule looks at the baseline"
    bare = reading([1.0], task={"primary": "exact", "slices": []})
    with pytest.raises(UserError, match="no slice 'half'") as caught:
        decide(policy({**FLOOR, "slice": "half"}), bare, None)
    assert caught.value.hint == "name it under slices: in the task"


def test_conditions_are_checked_before_anything_is_asked():
    check_metrics(policy(FLOOR, {**FLOOR, "slice": "half"}), ["exact"], ["half"], None)
    check_metrics(policy(NON_INFERIOR), ["exact"], [], reading([1.0]))
    slow = {"metric": "load_error_rate", "rule": "at_most", "value": 0.1}
    check_metrics(policy(slow), ["exact"], [], None, load=object())
    for conditions, metrics, slices, words in (
        ([FLOOR], ["other"], [], "no metric 'exact'"),
        ([{**FLOOR, "slice": "half"}], ["exact"], ["third"], "no slice 'half'"),
        ([NON_INFERIOR], ["exact"], [], "needs a baseline"),
        ([slow], ["exact"], [], "needs a load test"),
    ):
        with pytest.raises(UserError, match=words):
            check_metrics(policy(*conditions), metrics, slices, None)


@pytest.mark.parametrize(
    ("metric", "value", "interval", "kind", "need"),
    [
        ("load_error_rate", 0.02, (0.01, 0.0, 0.03), "rate", True),
        ("load_ttft_p95_ms", 196, (194.0, 180.0, 198.0), "percentile", True),
        ("load_ttft_p95_ms", 196, (194.0, 180.0, None), "percentile", False),
    ],
)
def test_a_condition_on_a_load_test_takes_its_figures(monkeypatch, metric, value, interval, kind, need):
    from tunegate.core.statistics import Interval

    asked = []

    def figure(load, name, *, level):
        asked.append((load, name, level))
        return Interval(value=interval[0], low=interval[1], high=interval[2], n=100)

    monkeypatch.setattr(gate, "load_interval", figure)
    load = LoadReport.__new__(LoadReport)
    found = one({"metric": metric, "rule": "at_most", "value": value}, reading([1.0]), load=load)
    assert asked == [(load, metric, 0.9)]
    assert (found.decision, found.value, found.low, found.high, found.n) == ("INCONCLUSIVE", *interval, 100)
    if kind == "rate":
        assert found.need_n == max(101, items_for_rate(0.01, 0.02, alpha=0.05))
    else:
        assert found.need_n == (round(100 * (WIDTHS * 4 / 2) ** 2) if need else 101)
    assert found.level == 0.9
    both = policy(FLOOR, {"metric": metric, "rule": "at_most", "value": value})
    assert decide(both, reading([1.0]), None, load)["conditions"][0]["value"] == 1.0, "of the report, not of the load"


def test_a_slice_that_no_row_has_decides_nothing():
    condition = {"metric": "exact", "rule": "at_least", "value": 0.1, "slice": "half"}
    found = one(condition, reading([1.0] * 50, tags=[None] * 50))
    assert (found.decision, found.n) == ("INCONCLUSIVE", 0)
    assert found.reason == "no row has a value of the slice half: nothing was measured"


@pytest.mark.parametrize("rule", [NON_INFERIOR, SUPERIOR, FLOOR])
def test_two_items_without_spread_show_nothing(rule):
    """All differences equal is no proof that the next would be."""
    found = one({**rule, **({"margin": 0.0001} if "margin" in rule else {})}, reading([1.0, 1.0]), reading([0.5, 0.5]))
    assert found.decision == "INCONCLUSIVE"
    assert one({**FLOOR, "value": 0.4}, reading([0.5, 0.5])).decision == "INCONCLUSIVE"
    assert one({**FLOOR, "value": 0.4}, reading([0.5] * 20)).decision == "PASS"  # 0.8^20 is under alpha


def test_lost_repeats_are_lost():
    side = reading([1.0] * 200)
    for row in side.rows:
        row["outcomes"] = ["pass", "infra_error", "infra_error"]
    found = decide(policy(FLOOR), side, None)
    assert found["infra_error_rate"] == pytest.approx(2 / 3)
    assert found["decision"] == "INCONCLUSIVE"


def test_failing_errs_no_more_often_than_promised():
    """A true drop of the margin itself: of 10 items, over all that can be seen, FAIL is at most alpha."""
    for broken_p in (0.02, 0.05, 0.1, 0.2, 0.4):
        fixed_p, failed = broken_p - 0.02, 0.0
        for broken in range(11):
            for fixed in range(11 - broken):
                old, new = sides(fixed, broken, 10 - fixed - broken, 0)
                if one(NON_INFERIOR, new, old).decision == "FAIL":
                    ways = math.factorial(10) / (
                        math.factorial(broken) * math.factorial(fixed) * math.factorial(10 - broken - fixed)
                    )
                    rest = 1 - broken_p - fixed_p
                    failed += ways * broken_p**broken * fixed_p**fixed * rest ** (10 - broken - fixed)
        assert failed <= 0.05
