"""Defects of the gate that an audit found, each by what it decided wrongly: repeats, clusters, costs, bake-off, planning."""

import random
from statistics import stdev
from types import SimpleNamespace

import pytest

from tunegate.core.errors import ExitCode, UserError
from tunegate.core.power import detectable_difference, pairs_for_difference, pairs_for_mean
from tunegate.core.statistics import clopper_pearson, exact_non_inferior_p, mcnemar_better_p, percentile
from tunegate.evalkit import commands, ladder
from tunegate.evalkit.bakeoff.judge import winner
from tunegate.evalkit.compare import Reading, compare, describe, pair
from tunegate.evalkit.gate import BEYOND, decide, need_pairs
from tunegate.evalkit.policy import make_policy
from tunegate.evalkit.summary import measure


def reading(values, *, groups=None, repeats=None, metrics=("exact",), name="r", **more):
    """Items with these scores; `more`: further keys of the rows, one value an item."""
    rows = [
        {
            "id": str(i),
            "outcome": "pass" if v == 1.0 else "fail",
            "scores": {"exact": v},
            "tags": {},
            "cause": "",
            "reason": "",
            "group": None if groups is None else str(groups[i]),
            **{key: each[i] for key, each in more.items()},
        }
        for i, v in enumerate(values)
    ]
    task = {"primary": "exact", "slices": []} | ({} if repeats is None else {"repeats": repeats})
    report = {
        "metrics": {key: {} for key in metrics},
        "task": task,
        "data": {},
        "target": {"spec": "m"},
        "outcomes": {},
    }
    return Reading(name=name, report=report, rows=rows)


def one(condition, candidate, baseline=None, alpha=0.05):
    policy = make_policy({"alpha": alpha, "conditions": [condition]}, "gate.yaml")
    (finding,) = decide(policy, candidate, baseline)["conditions"]
    return SimpleNamespace(**finding)


NON_INFERIOR = {"metric": "exact", "rule": "non_inferior", "margin": 0.02}
SUPERIOR = {"metric": "exact", "rule": "superior"}


@pytest.mark.parametrize("metric", ["pass_at_k", "pass_hat_k"])
def test_pass_at_another_k_is_not_compared(metric):
    metrics = ("exact", "pass_at_k", "pass_hat_k")
    two, six = (
        reading([1.0] * 50, repeats=k, metrics=metrics, outcomes=[["pass"] * k] * 50, name=f"of {k}") for k in (2, 6)
    )
    for rule in ({"rule": "non_inferior", "margin": 0.1}, {"rule": "superior"}):
        with pytest.raises(
            UserError, match=f"not comparable: repeats: {metric} was of 2 answers an item, is of 6"
        ) as caught:
            one({"metric": metric, **rule}, six, two)
        assert caught.value.exit_code == ExitCode.BAD_INPUT
        one({"metric": metric, **rule}, two, two)
    assert one(NON_INFERIOR | {"margin": 0.2}, six, two).decision == "PASS", "other metrics are means over answers"
    assert list(compare(two, six)["metrics"]) == ["exact"]
    assert list(compare(two, two)["metrics"]) == list(metrics)
    assert one({"metric": metric, "rule": "at_least", "value": 0.5}, six, two).decision == "PASS", "no pair"


def timed(generator, items, repeats, groups=None):
    base = [generator.lognormvariate(0, 0.5) for _ in range(items if groups is None else groups)]
    times = [[base[i % len(base)] * generator.lognormvariate(0, 0.02) for _ in range(repeats)] for i in range(items)]
    more = {"latencies_ms": times, "outcomes": [["pass"] * repeats] * items} if repeats > 1 else {}
    within = None if groups is None else [i % groups for i in range(items)]
    return reading([1.0] * items, groups=within, latency_ms=[each[0] for each in times], **more)


def test_repeats_of_few_items_show_no_percentile():
    """60 answers of 6 items were 60 independent ones: PASS, where 6 answers alone are INCONCLUSIVE."""
    generator = random.Random(1)
    bound = {"metric": "latency_p95_ms", "rule": "at_most", "value": 1000.0}
    assert one(bound, timed(generator, 60, 1)).decision == "PASS"
    for few in (timed(generator, 6, 10), timed(generator, 20, 5), timed(generator, 60, 1, groups=12)):
        found = one(bound, few)
        assert (found.decision, found.high, found.n > 50) == ("INCONCLUSIVE", None, True)
        assert found.need_n >= 59 * (5 if len({row["group"] for row in few.rows}) == 12 else 1)
    alone = timed(generator, 60, 1)
    found = measure(alone.rows, alone.report, "latency_p95_ms", level=0.9)
    assert found.interval == percentile([row["latency_ms"] for row in alone.rows], 0.95, level=0.9)
    assert (found.effective_n, found.items) == (60.0, 60)


def test_repeats_that_differ_as_items_do_count_as_answers():
    generator = random.Random(2)
    times = [[generator.random() for _ in range(5)] for _ in range(200)]
    side = reading([1.0] * 200, latencies_ms=times, outcomes=[["pass"] * 5] * 200)
    assert measure(side.rows, side.report, "latency_p95_ms", level=0.9).effective_n > 700


@pytest.mark.parametrize(("items", "repeats", "groups"), [(6, 10, None), (10, 10, None), (50, 10, None), (60, 1, 12)])
def test_percentiles_of_clusters_err_no_more_often_than_promised(items, repeats, groups):
    """Bounds at the true 95th percentile, exp(1.645 * sqrt(0.5^2 + 0.02^2)); 10 items of 10 once failed 11 of 100 times."""
    generator, true = random.Random(items), 2.2778
    condition = {"metric": "latency_p95_ms", "rule": "at_most", "value": true}
    found = [one(condition, timed(generator, items, repeats, groups)).decision for _ in range(150)]
    assert found.count("PASS") / 150 <= 0.05 + 0.046
    assert found.count("FAIL") / 150 <= 0.05 + 0.046


def test_the_cost_of_a_right_answer_is_as_uncertain_as_the_share_of_right_ones():
    """Ten right ones of ten at a thousandth each had an interval of no width."""
    side = reading([1.0] * 10, cost_usd=[0.001] * 10)
    interval = measure(side.rows, side.report, "cost_per_correct_usd", level=0.9).interval
    share = clopper_pearson(10, 10, level=0.9)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.001, 0.001, 0.001 / share.low))
    assert one({"metric": "cost_per_correct_usd", "rule": "at_most", "value": 0.0011}, side).decision == "INCONCLUSIVE"
    assert one({"metric": "cost_per_correct_usd", "rule": "at_most", "value": 0.0014}, side).decision == "PASS"
    few = reading(
        [1.0] * 4 + [0.0] * 6, cost_usd=[0.001 + 0.0001 * i for i in range(10)], groups=[i // 2 for i in range(10)]
    )
    interval = measure(few.rows, few.report, "cost_per_correct_usd", level=0.9).interval
    assert interval.low < interval.value < interval.high


def test_costs_that_differ_widen_the_cost_of_a_right_answer_as_they_widen_a_mean():
    """1 to 4 cents, all right: a mean of 2.5 with Student's t of three degrees of freedom, 2.353 of its standard errors down."""
    side = reading([1.0] * 4, cost_usd=[0.01, 0.02, 0.03, 0.04])
    interval = measure(side.rows, side.report, "cost_per_correct_usd", level=0.9).interval
    assert interval.value == pytest.approx(0.025)
    assert interval.low == pytest.approx(0.025 - 2.3534 * stdev([0.01, 0.02, 0.03, 0.04]) / 2, rel=1e-3)


def test_the_share_of_lost_answers_is_that_of_all_that_were_asked_for():
    side = reading([1.0] * 10, outcome=["infra_error"] * 2 + ["pass"] * 8)
    found = one({"metric": "infra_error_rate", "rule": "at_most", "value": 0.25}, side)
    assert (found.decision, found.value, found.low, found.high, found.n) == ("PASS", 0.2, 0.2, 0.2, 10)


def test_one_pair_of_rows_in_a_group_does_not_undo_the_exact_test():
    """3 fixed of 100 with none broken: McNemar's p is 1/8; the score test's 0.04."""
    old, new = [0.0] * 3 + [1.0] * 97, [1.0] * 100
    groups = [*range(99), 98]
    better = one(SUPERIOR, reading(new, groups=groups), reading(old, groups=groups))
    assert (better.decision, better.p) == ("INCONCLUSIVE", pytest.approx(mcnemar_better_p(3, 0), abs=0.01))
    worse = one(SUPERIOR, reading(old, groups=groups), reading(new, groups=groups))
    assert worse.decision == "INCONCLUSIVE"
    apart = [i // 5 for i in range(100)]
    old, new = [0.0] * 10 + [1.0] * 90, [1.0] * 100
    assert pair(reading(old).rows, reading(new).rows, "exact").better_p() == mcnemar_better_p(10, 0) < 0.001
    grouped = pair(reading(old, groups=apart).rows, reading(new, groups=apart).rows, "exact")
    assert grouped.better_p() > 0.1, "two groups of twenty"


def test_counts_of_groups_are_not_rounded_down_for_the_exact_test():
    """One broken row beside an effect of 3 is a third of one: none by rounding."""
    values = [1.0] * 90
    old = reading(values, groups=[i // 3 for i in range(90)])
    new = reading([0.0] * 4 + values[4:], groups=[i // 3 for i in range(90)])
    found = pair(old.rows, new.rows, "exact")
    n = round(90 / found.effect)
    assert 1 < 4 / found.effect < 2
    assert found.exact_p(0.1) == exact_non_inferior_p(0, 2, n, 0.1)
    assert found.exact_worse_p(0.01) == exact_non_inferior_p(round(4 / found.effect), 0, n, -0.01, gamma=1e-6)


def test_counts_of_groups_are_no_more_than_the_items_they_stand_for():
    """Three rows of two groups stand for one item: it is counted as broken, and not as fixed too."""
    old, new = (reading(values, groups=["a", "a", "b"]) for values in ([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]))
    found = pair(old.rows, new.rows, "exact")
    assert round(3 / found.effect) == round(2 / found.effect) == 1
    assert found.exact_p(0.02) == 1.0


def arms(*values):
    base = {"usd_per_1k_calls_at_capacity": None, "predicted_p95_ms": None, "probability_best": 0.5}
    named = zip(("prompt", "lora"), values, (2.0, 1.0), strict=True)
    return [
        {**base, "arm": arm, "metrics": {"exact": {"value": value}}, "usd_per_1k_calls": cost}
        for arm, value, cost in named
    ]


def test_an_arm_within_two_points_is_one_that_the_gate_would_pass():
    """133 items of which none differs: Tango's p is 0.0499, the exact one's 0.069."""
    for n, chosen in ((133, "prompt"), (160, "lora")):
        side = reading([1.0] * n)
        found = winner(arms(1.0, 1.0), {"prompt": side, "lora": side}, "exact", p95_ms=None)
        assert found["arm"] == chosen
        passed = one(NON_INFERIOR, side, side)
        assert (passed.decision == "PASS") == (chosen == "lora")
        assert [each["need_n"] for each in found["undecided"]] == ([] if chosen == "lora" else [passed.need_n])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_bake_off_asks_for_as_many_items_as_the_gate(grouped):
    generator = random.Random(5)
    before = [generator.uniform(0.4, 0.6) for _ in range(100)]
    after = [v + (0.3 if i % 2 else -0.3) - 0.01 for i, v in enumerate(before)]
    if grouped:
        before, after = [1.0] * 100, [0.0 if i // 5 == 3 else 1.0 for i in range(100)]
    groups = [i // 5 for i in range(100)] if grouped else None
    old, new = reading(before, groups=groups), reading(after, groups=groups)
    found = winner(arms(1.0, 0.5), {"prompt": old, "lora": new}, "exact", p95_ms=None)
    (undecided,) = found["undecided"]
    paired = pair(old.rows, new.rows, "exact")
    assert undecided["need_n"] == need_pairs(paired, -0.02, alpha=0.05) == one(NON_INFERIOR, new, old).need_n
    plain = pairs_for_difference((paired.fixed + paired.broken + 1) / 102, 0.02, alpha=0.05)
    assert undecided["need_n"] > 1.5 * plain


def graded(n=80):
    generator = random.Random(6)
    before = [generator.uniform(0.4, 0.6) for _ in range(n)]
    return reading(before), reading([v + generator.uniform(-0.3, 0.3) for v in before], name="new")


def test_power_and_ladder_take_the_spread_of_graded_differences(monkeypatch):
    """Fixed and broken count no graded pair: the share that differ was told as 1 / (n + 2)."""
    old, new = graded()
    paired = pair(old.rows, new.rows, "exact")
    spread = sum((d - paired.value) ** 2 for d in paired.differences) / 80
    assert paired.spread == describe(paired, alpha=0.05, margin=0.02)["spread"] == pytest.approx(spread)
    monkeypatch.setattr(ladder, "lock", lambda *_, **__: ([], []))
    change = ladder._change(SimpleNamespace(name="merged", before="adapter"), old, new, "exact", 0.05)
    assert change["detectable"] == detectable_difference(80, paired.spread, alpha=0.05)
    told = {"n": 80, "comparison": compare(old, new), "task": new.report["task"]}
    monkeypatch.setattr(commands, "open_reading", lambda *_, **__: SimpleNamespace(report=told))
    monkeypatch.setattr(commands.EvalReport, "open", lambda _: None)
    found = commands.power_of(None, SimpleNamespace(name="r"), discordance=None, margin=0.02, alpha=0.05, power=0.8)
    assert (found["discordance"], found["discordance_from"]) == (paired.spread, "report")
    assert found["need_n"] == pairs_for_difference(paired.spread, 0.02, alpha=0.05)
    less = commands.power_of(500, None, discordance=0.1, margin=0.00001, alpha=0.05, power=0.8)
    assert less["need_n"] is None


def test_what_no_set_of_items_decides_is_told_so():
    """It was told as 10000000 items."""
    old, new = graded()
    tiny = {**NON_INFERIOR, "margin": 0.00001}
    found = one(tiny, old, old)
    assert (found.decision, found.need_n) == ("INCONCLUSIVE", None)
    assert found.reason.endswith(BEYOND)
    near = one({"metric": "exact", "rule": "at_least", "value": 0.8 - 1e-7}, reading([1.0] * 80 + [0.0] * 20))
    assert (near.decision, near.need_n) == ("INCONCLUSIVE", None)
    assert near.reason.endswith(BEYOND)
    open_ = one(NON_INFERIOR, new, old)
    paired = pair(old.rows, new.rows, "exact")
    assert open_.need_n == pairs_for_mean(paired.spread, 0.02, alpha=0.05)
    assert BEYOND not in open_.reason


def test_a_failure_is_told_with_the_p_of_what_it_shows():
    old, new = reading([1.0] * 100), reading([0.0] * 30 + [1.0] * 70)
    for condition in (NON_INFERIOR, SUPERIOR):
        found = one(condition, new, old)
        assert found.decision == "FAIL"
        assert found.p < 0.05
        assert found.reason.endswith("p < 0.0001")
    generator = random.Random(3)
    base = [generator.uniform(0.5, 0.7) for _ in range(60)]
    found = one(NON_INFERIOR, reading([v - 0.3 for v in base]), reading(base))
    assert (found.decision, found.p < 0.05) == ("FAIL", True)
