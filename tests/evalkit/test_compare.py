"""Pairs, their tests, the lock and the comparison, each with the figures worked out by hand or by the functions it names."""

import copy

import pytest

from tunegate.core.bootstrap import bootstrap_mean
from tunegate.core.errors import UserError
from tunegate.core.statistics import (
    exact_non_inferior_p,
    mcnemar_better_p,
    non_inferior_p,
    tango_interval,
)
from tunegate.evalkit.compare import (
    Reading,
    compare,
    compare_slices,
    describe,
    flips_of,
    lock,
    pair,
    slice_values,
)
from tunegate.evalkit.summary import score_interval

REPORT = {
    "metrics": {"exact": {"value": 0.5}},
    "operations": {"latency_p50_ms": {"value": 3.0}},
    "task": {"primary": "exact", "slices": ["half"], "digest": "task"},
    "data": {"items_digest": "items", "questions_digest": "questions", "n": 4},
    "prompt_digest": "prompts",
    "prompt_ids_digest": "ids",
    "generation": {"temperature": 0, "max_tokens": 8},
    "scorer_version": 1,
    "target": {"spec": "base/"},
}


def row(name, score, *, outcome=None, group=None, half=None, cause="", reason="", **scores):
    return {
        "id": name,
        "outcome": outcome or ("pass" if score == 1.0 else "fail"),
        "scores": scores or {"exact": score},
        "tags": {} if half is None else {"half": half},
        "group": group,
        "cause": cause,
        "reason": reason,
    }


def reading(rows, name="base", **changed):
    """A reading whose report differs in the given keys; `data__n=5` stands for report["data"]["n"]."""
    report = copy.deepcopy(REPORT)
    for key, value in changed.items():
        *outer, last = key.split("__")
        (report[outer[0]] if outer else report)[last] = value
    return Reading(name=name, report=report, rows=rows, digest=f"digest of {name}", path=f"/{name}")


def both(fixed, broken, right, wrong, copies=1):
    """Two sides with these four counts; each pair stands `copies` times, in one group."""
    old = [0.0] * fixed + [1.0] * broken + [1.0] * right + [0.0] * wrong
    new = [1.0] * fixed + [0.0] * broken + [1.0] * right + [0.0] * wrong
    return [
        [row(f"{i}.{k}", v, group=str(i) if copies > 1 else None) for i, v in enumerate(values) for k in range(copies)]
        for values in (old, new)
    ]


def test_a_pair_needs_both_sides_scored_and_answered():
    old = [
        row("fixed", 0.0),
        row("broken", 1.0),
        row("right", 1.0),
        row("wrong", 0.0),
        row("lost before", 0.0, outcome="infra_error"),
        row("lost now", 1.0),
        row("scored by another", 1.0, other=1.0),
        row("gone", 1.0),
        row("right too", 1.0),
    ]
    new = [
        row("broken", 0.0),
        row("fixed", 1.0),
        row("right", 1.0),
        row("wrong", 0.0),
        row("lost before", 1.0),
        row("lost now", 0.0, outcome="infra_error"),
        row("scored by another", 1.0),
        row("new", 1.0),
        row("right too", 1.0),
    ]
    found = pair(old, new, "exact")
    assert (found.n, found.fixed, found.broken, found.both_pass, found.both_fail) == (5, 1, 1, 2, 1)
    assert found.differences == (-1.0, 1.0, 0.0, 0.0, 0.0)
    assert found.binary
    assert not found.clustered
    assert pair(new, old[:1], "exact").value == -1.0
    assert not pair([row("a", 0.0)], [row("a", 0.5)], "exact").binary
    assert not pair([row("a", 0.5)], [row("a", 0.0)], "exact").binary


def test_of_no_pair_nothing_is_shown():
    empty = pair([], [], "exact")
    interval = empty.interval(level=0.9)
    assert (interval.value, interval.low, interval.high, interval.n) == (0.0, -1.0, 1.0, 0)
    assert (empty.value, empty.effect, empty.df) == (0.0, 1.0, float("inf"))
    assert (empty.above_p(-0.02), empty.better_p(), empty.worse_p(), empty.two_sided_p()) == (1.0, 1.0, 1.0, 1.0)
    assert empty.exact_p(0.02) is None


def test_single_rows_are_judged_by_mcnemar_and_tango():
    found = pair(*both(3, 11, 20, 10), "exact")
    assert found.interval(level=0.9) == tango_interval(3, 11, 44, level=0.9)
    assert found.value == pytest.approx(-8 / 44)
    assert found.above_p(-0.02) == non_inferior_p(3, 11, 44, 0.02)
    assert found.worse_p() == pytest.approx(0.02869, abs=5e-6)  # as in tests/core/test_statistics.py
    assert found.better_p() == mcnemar_better_p(3, 11)
    assert found.two_sided_p() == pytest.approx(0.05737, abs=5e-6)
    assert found.exact_p(0.02) == exact_non_inferior_p(3, 11, 44, 0.02)
    assert pair(*both(5, 5, 0, 0), "exact").two_sided_p() == 1.0


@pytest.mark.parametrize(("fixed", "broken", "exact"), [(0, 1, True), (50, 50, True), (50, 51, False)])
def test_the_exact_test_stands_beside_up_to_a_hundred_pairs_that_differ(fixed, broken, exact):
    found = pair(*both(fixed, broken, 30, 0), "exact")
    assert (found.exact_p(0.02) is not None) is exact


def test_twins_count_as_one():
    """Each pair twice in one group: the design effect is 2 C / (C - 1), and the exact test counts n / effect pairs."""
    single, twins = pair(*both(3, 11, 20, 10), "exact"), pair(*both(3, 11, 20, 10, copies=2), "exact")
    assert twins.clustered
    assert (twins.n, twins.fixed, twins.broken, twins.df) == (88, 6, 22, 43.0)
    assert twins.effect == pytest.approx(2 * 44 / 43)
    around = {"design_effect": twins.effect, "df": twins.df}
    assert twins.interval(level=0.9) == tango_interval(6, 22, 88, level=0.9, **around)
    assert twins.interval(level=0.9).high > single.interval(level=0.9).high
    assert twins.above_p(-0.02) == non_inferior_p(6, 22, 88, 0.02, **around)
    assert (
        twins.better_p()
        == mcnemar_better_p(6 / twins.effect, 22 / twins.effect)
        > non_inferior_p(6, 22, 88, 0.0, **around)
    )
    assert (
        twins.worse_p()
        == mcnemar_better_p(22 / twins.effect, 6 / twins.effect)
        > non_inferior_p(22, 6, 88, 0.0, **around)
    )
    assert twins.exact_p(0.02) == exact_non_inferior_p(3, 11, 43, 0.02)
    assert pair([row("a", 1.0, group="g"), row("b", 1.0, group="g")], [row("a", 1.0, group="g")], "exact").n == 1


def test_all_rows_in_one_group_are_one_item():
    old, new = ([row(str(i), 1.0, group="g") for i in range(30)] for _ in range(2))
    found = pair(old, new, "exact")
    assert (found.effect, found.df) == (30.0, 1.0)
    assert found.exact_p(0.02) == exact_non_inferior_p(0, 0, 1, 0.02)


def test_scores_between_0_and_1_are_judged_by_the_bootstrap():
    before, now = [0.1 * (i % 7) for i in range(40)], [0.1 * (i % 4) + 0.05 * (i % 2) for i in range(40)]
    found = pair([row(str(i), v) for i, v in enumerate(before)], [row(str(i), v) for i, v in enumerate(now)], "exact")
    differences = [b - a for a, b in zip(before, now, strict=True)]
    at90 = bootstrap_mean(differences, level=0.9)
    assert found.interval(level=0.9) == at90.interval
    assert found.interval(level=0.8) == bootstrap_mean(differences, level=0.8).interval != at90.interval
    assert found.above_p(-0.02) == at90.p_above(-0.02)
    assert (found.better_p(), found.worse_p()) == (at90.p_above(0.0), at90.p_below(0.0))
    assert found.exact_p(0.02) is None
    told = describe(found, alpha=0.05, margin=0.02)
    assert (told["fixed"], told["broken"]) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    assert told["fixed"] != told["broken"] != 0.0 in differences
    assert told["test"] == "bootstrap"


def test_a_metric_is_told_whole():
    found = pair(*both(3, 11, 20, 10), "exact")
    interval = tango_interval(3, 11, 44, level=0.8)
    assert describe(found, alpha=0.1, margin=0.05) == {
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": 44,
        "fixed": 3,
        "broken": 11,
        "both_pass": 20,
        "both_fail": 10,
        "mcnemar_p": found.two_sided_p(),
        "non_inferior_p": non_inferior_p(3, 11, 44, 0.05),
        "margin": 0.05,
        "exact_non_inferior_p": exact_non_inferior_p(3, 11, 44, 0.05),
        "test": "tango",
        "design_effect": 1.0,
        "spread": 15 / 46,
    }
    assert describe(pair(*both(3, 1, 2, 1, copies=2), "exact"), alpha=0.1, margin=0.05)["test"] == "tango, clustered"


DIFFERENT = [
    ("data", {"data__items_digest": "x", "data__n": 5}, "data: other items or other expected answers (4 items then, 5 now)"),
    ("data", {"data__questions_digest": "x"}, "data: the same ids and expected answers, other questions"),
    ("prompts", {"prompt_digest": "x"}, "prompts: the messages sent differ"),
    ("template", {"prompt_ids_digest": "x"}, "template: the prompts' token ids differ (chat template or tokenizer)"),
    ("scorer", {"scorer_version": 2}, "scorer: validators, extraction or scorer version"),
    ("scorer", {"task__digest": "x"}, "scorer: validators, extraction or scorer version"),
    (
        "generation",
        {"generation": {"temperature": 1, "max_tokens": 8, "top_p": 0.9}},
        "generation: temperature was 0, is 1, top_p was None, is 0.9",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "words"), DIFFERENT)
def test_the_lock_says_what_differs_and_how_to_let_it_through(name, changed, words):
    base, other = reading([]), reading([], "new", **changed)
    with pytest.raises(UserError) as caught:
        lock(base, other, allowed=[])
    hint = f"judge the baseline again with this task, or pass --allow-different {name}"
    assert caught.value.line() == f"not comparable with the baseline 'base': {words} ({hint})"
    assert lock(base, other, allowed=["scorer", name]) == ([name], [])
    assert lock(base, base, allowed=[]) == ([], [])


def test_prompts_that_hold_the_day_s_date_are_compared_by_their_template():
    """A baseline of yesterday under Llama 3.2's template: other token ids, the same prompts but for the day."""
    dated = {"server": {"dated_template": True}, "template_digest": "t"}
    yesterday, today = reading([], **dated), reading([], "new", **dated, prompt_ids_digest="x")
    assert lock(yesterday, today, allowed=[]) == ([], [])
    plain = {"server": {"dated_template": False}, "template_digest": "t"}
    for other in ({**dated, "template_digest": "u"}, {**dated, "template_digest": None}, plain, {"server": {}}):
        with pytest.raises(UserError, match="template: the prompts' token ids differ"):
            lock(yesterday, reading([], "new", **other, prompt_ids_digest="x"), allowed=[])
    nothing = reading([], **{**dated, "template_digest": None})
    with pytest.raises(UserError, match="template: the prompts' token ids differ"):
        lock(nothing, reading([], "new", **{**dated, "template_digest": None}, prompt_ids_digest="x"), allowed=[])


def test_the_lock_names_all_that_differs_at_once_and_refuses_what_is_not_allowed():
    base = reading([])
    other = reading([], "new", prompt_digest="x", data__questions_digest="x", scorer_version=2)
    with pytest.raises(UserError, match="prompts: the messages sent differ; scorer: validators") as caught:
        lock(base, other, allowed=["data"])
    assert caught.value.hint.endswith("--allow-different prompts,scorer")
    assert lock(base, other, allowed=["data", "prompts", "scorer"]) == (["data", "prompts", "scorer"], [])
    whole = reading([], "new", data__items_digest="x", data__questions_digest="x")
    assert lock(base, whole, allowed=["data"]) == (["data"], []), "told once"
    with pytest.raises(UserError, match=r"--allow-different knows no 'promts'") as caught:
        lock(base, base, allowed=["promts"])
    assert 'did you mean "prompts"' in caught.value.hint


@pytest.mark.parametrize("side", [0, 1])
def test_what_one_side_does_not_know_is_not_called_different(side):
    """Outputs recorded elsewhere carry no prompts; their questions are then not compared either."""
    unknown = {"prompt_digest": None, "prompt_ids_digest": None, "generation": None, "data__questions_digest": None}
    sides = [reading([]), reading([], "new", **unknown)]
    assert lock(sides[side], sides[1 - side], allowed=[]) == ([], ["prompts", "template", "generation"])


def test_the_comparison_is_told_whole():
    old, new = both(1, 3, 4, 2)
    for number, (was, now) in enumerate(zip(old, new, strict=True)):
        was["tags"] = now["tags"] = {"half": number % 2}
    found = compare(
        reading(old), reading(new, "new", prompt_digest="x", generation=None), alpha=0.1, allowed=["prompts"]
    )
    paired = pair(old, new, "exact")
    assert found == {
        "baseline": {
            "spec": "base/",
            "digest": "digest of base",
            "name": "base",
            "path": "/base",
            "metrics": REPORT["metrics"],
            "operations": REPORT["operations"],
        },
        "alpha": 0.1,
        "level": 0.8,
        "metrics": {"exact": describe(paired, alpha=0.1, margin=0.02)},
        "flips": flips_of(old, new),
        "flip_causes": {"broken": {"fail": 3}, "fixed": {"fail": 1}},
        "slices": compare_slices(reading(old), reading(new), "exact", alpha=0.1),
        "allowed_differences": ["prompts"],
        "unknown": ["generation"],
    }
    assert len(found["slices"]) == 2
    assert compare(reading(old), reading(new))["level"] == 0.9
    assert compare(reading(old), reading(new), margins={"exact": 0.3})["metrics"]["exact"]["margin"] == 0.3
    bare = reading(old)
    del bare.report["operations"]
    assert compare(bare, reading(new))["baseline"]["operations"] == {}


def test_metrics_of_both_sides_are_compared_and_a_primary_one_even_without_a_pair():
    old = [row("a", 1.0, exact=1.0, part=0.5), row("b", 1.0, exact=1.0)]
    names = {"exact": {}, "part": {}, "unscored": {}}
    one, two = reading(old, metrics={**names, "old": {}}), reading(old, metrics={**names, "new": {}})
    assert list(compare(one, two)["metrics"]) == ["exact", "part"]
    lost = [row("a", 0.0, outcome="infra_error")]
    found = compare(reading(lost), reading([row("a", 1.0)]))["metrics"]["exact"]
    assert (found["n"], found["low"], found["high"]) == (0, -1.0, 1.0)
    with pytest.raises(UserError, match="no item stands on both sides: nothing can be compared") as caught:
        compare(reading([row("a", 1.0)]), reading([row("b", 1.0)]))
    assert caught.value.where == "base"


def test_flips_carry_the_failing_sides_cause_and_the_broken_stand_first():
    old = [
        row("fixed", 0.0, outcome="truncated", reason="cut"),
        row("same", 1.0),
        row("broken b", 1.0, cause="of the right side"),
        row("broken a", 1.0),
        row("broken by cause", 1.0),
        row("still wrong", 0.0, outcome="refused"),
        row("lost before", 0.0, outcome="infra_error"),
        row("lost now", 1.0),
    ]
    new = [
        row("fixed", 1.0),
        row("same", 1.0),
        row("broken b", 0.0, cause="wrong_field", reason="x"),
        row("broken a", 0.0, cause="wrong_field", reason="y"),
        row("broken by cause", 0.0, cause="extra_field"),
        row("still wrong", 0.0),
        row("lost before", 1.0),
        row("lost now", 0.0, outcome="infra_error"),
        row("not there before", 0.0),
    ]
    assert flips_of(old, new) == [
        {"id": "broken by cause", "direction": "broken", "cause": "extra_field", "reason": ""},
        {"id": "broken a", "direction": "broken", "cause": "wrong_field", "reason": "y"},
        {"id": "broken b", "direction": "broken", "cause": "wrong_field", "reason": "x"},
        {"id": "fixed", "direction": "fixed", "cause": "truncated", "reason": "cut"},
    ]
    causes = compare(reading(old), reading(new))["flip_causes"]
    assert list(causes["broken"].items()) == [("wrong_field", 2), ("extra_field", 1)], "the most common first"
    assert causes["fixed"] == {"truncated": 1}


def test_slices_are_sorted_and_corrected_over_all_of_them():
    old, new = both(0, 8, 12, 0)
    for number, (was, now) in enumerate(zip(old, new, strict=True)):
        tags = {"half": "b" if number < 14 else 0} if number != 19 else {"other": 1}
        was["tags"] = now["tags"] = tags
    assert {value: len(rows) for value, rows in slice_values(new, "half").items()} == {"0": 5, "b": 14}
    assert list(slice_values(new, "half")) == ["0", "b"]
    zero, b = compare_slices(reading(old), reading(new), "exact", alpha=0.1)
    interval = tango_interval(0, 8, 14, level=0.8)
    assert b == {
        "key": "half",
        "value": "b",
        "metric": "exact",
        "n": 14,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "fixed": 0,
        "broken": 8,
        "p": pytest.approx(2 / 2**8),
        "p_holm": pytest.approx(4 / 2**8),
    }
    assert (zero["n"], zero["p"], zero["p_holm"]) == (5, 1.0, 1.0)
    assert compare_slices(reading([]), reading(new), "exact", alpha=0.1) == [], "a slice without a pair is left out"


def test_an_interval_of_graded_scores_stays_on_their_scale():
    """A third of the resamples of these four hold no spread, so a bound may be anywhere: it is the end of the scale."""
    groups = ["a", "b", "c", "d"]
    assert score_interval([0.0, 0.0, 0.0, 0.5], groups, level=0.95).interval.high == 1.0
    assert score_interval([1.0, 1.0, 1.0, 0.5], groups, level=0.95).interval.low == 0.0
    none, some = (
        [{"id": g, "outcome": "fail", "scores": {"exact": s}, "group": None} for g, s in zip(groups, side, strict=True)]
        for side in ([0.0] * 4, [0.0, 0.0, 0.0, 0.5])
    )
    assert pair(none, some, "exact").interval(level=0.95).high == 1.0
    assert pair(some, none, "exact").interval(level=0.95).low == -1.0
