"""What was not seen: rare scores at an end of the scale, groups of uneven size, tails that resamples are too few for."""

import math
import random

import pytest
from scipy import stats

from tunegate.core.bootstrap import bootstrap_mean
from tunegate.core.distributions import student_quantile, student_sf
from tunegate.core.power import GAMMA, LARGEST, items_for_rate, pairs_for_difference, pairs_for_mean
from tunegate.core.statistics import (
    clustered_se,
    design_effect,
    effective_clusters,
    exact_non_inferior_p,
    mcnemar_better_p,
    non_inferior_p,
    percentile,
)


def limit(draws, alpha=0.05):
    return alpha + 2.6 * math.sqrt(alpha * (1 - alpha) / draws)


@pytest.mark.parametrize(("n", "broken_p"), [(20, 0.05), (50, 0.02), (100, 0.02)])
def test_answers_that_are_rarely_lost_are_not_excluded_by_not_being_seen(n, broken_p):
    """A fifth of the answers score 0.9, the candidate's are nothing at all with a true drop of the margin (once .1 to .35)."""
    generator, passed = random.Random(n), 0
    for _ in range(100):
        before = [0.9 if generator.random() < 0.2 else 1.0 for _ in range(n)]
        now = [0.0 if generator.random() < broken_p else 0.9 if generator.random() < 0.2 else 1.0 for _ in range(n)]
        differences = [b - a for a, b in zip(before, now, strict=True)]
        passed += bootstrap_mean(differences, level=0.9).p_above(-broken_p * 0.98) < 0.05
    assert passed / 100 <= 0.05


def test_that_all_break_is_excluded_by_one_that_does_not_and_not_where_all_do():
    assert exact_non_inferior_p(0, 10, 10, 1.0) == 1.0
    assert exact_non_inferior_p(0, 9, 10, 1.0) == GAMMA


def test_a_floor_of_graded_scores_is_not_shown_by_zeros_that_were_not_seen():
    generator, passed = random.Random(2), 0
    for _ in range(100):
        scores = [0.0 if generator.random() < 0.05 else generator.uniform(0.98, 1.0) for _ in range(50)]
        passed += bootstrap_mean(scores, level=0.9, lowest=0.0).interval.low > 0.95 * 0.99
    assert passed / 100 <= limit(100)


def test_a_little_noise_shows_no_more_than_none():
    for n in (10, 30, 120):
        flat, noisy = [0.0] * n, [0.001 * (i % 2) for i in range(n)]
        assert bootstrap_mean(noisy, level=0.9).interval.low <= bootstrap_mean(flat, level=0.9).interval.low + 0.001
    assert bootstrap_mean([0.001 * (i % 2) for i in range(400)], level=0.9).p_above(-0.02) < 0.05, "no useless guard"


@pytest.mark.parametrize("tail", [0.2, 0.05, 0.005, 0.0005, 1e-6])
@pytest.mark.parametrize("grouped", [False, True])
def test_interval_and_test_end_at_the_same_place(tail, grouped):
    generator = random.Random(8)
    values = [generator.random() - 0.4 for _ in range(30)]
    groups = [i // 3 for i in range(30)] if grouped else None
    for more in (0.0, 0.3):
        shifted = [min(1.0, v + more) for v in values]
        test = bootstrap_mean(shifted, groups, level=1 - 2 * tail)
        low, high = test.interval.low, test.interval.high
        assert test.p_above(low - 1e-6) < tail * (1 + 1e-9) or low == -1.0
        assert test.p_above(low + 1e-6) >= tail * (1 - 1e-9)
        assert test.p_below(high + 1e-6) < tail * (1 + 1e-9) or high == 1.0
        assert test.p_below(high - 1e-6) >= tail * (1 - 1e-9)


def test_one_more_of_a_group_is_a_group():
    values, groups = [0.1 * (i % 4) for i in range(24)], [i // 6 for i in range(24)]
    test = bootstrap_mean(values, groups, level=0.9, lowest=0.0)
    more, within = [*values, *[0.0] * 6], [*groups, *[9] * 6]
    assert test.below.guard_se == clustered_se(more, within)
    assert test.below.guard_mean == pytest.approx(sum(more) / 30)
    assert (test.below.guard_df, test.below.count) == (4.0, 4.0)


def test_a_strict_tail_is_no_nearer_than_students_t():
    """Of 6 or 10 values 4,000 draws say little about a tail of 1 in 2,000: the most extreme ones decide it."""
    generator = random.Random(4)
    for n in (6, 10, 20):
        values = [generator.gauss(0.0, 0.01) for _ in range(n)]
        below = bootstrap_mean(values, level=0.9).below
        for tail in (0.004, 0.0005, 1e-5, 1e-9):
            assert below._resampled_quantile(tail) >= student_quantile(1 - tail, n - 1)
            t = below._resampled_quantile(tail)
            assert below._resampled_p(t + 1e-6) < tail <= below._resampled_p(t - 1e-6)
        assert below._resampled_p(40.0) >= student_sf(40.0, n - 1)
        assert below._resampled_p(1e9) < 1e-9, "a strict alpha can be met"


def test_uneven_groups_count_as_fewer():
    assert effective_clusters([3] * 7) == pytest.approx(7)
    assert effective_clusters([1] * 160 + [40]) == pytest.approx((160 + 1600) ** 2 / (160 + 40**4))
    values, groups = [1.0] * 20 + [0.0] * 2 + [1.0] * 18, [*range(38), "big", "big"]
    assert design_effect(values, groups)[1] == pytest.approx(effective_clusters([1] * 38 + [2]) - 1)
    # one of two groups of two and one of two singles are wrong: all of a group alike, so rho is 1 and the effect (4 + 4 + 2) / 6
    assert design_effect([1, 1, 0, 0, 1, 0], "aabbcd")[0] >= 10 / 6 - 1e-12


def test_the_correlation_within_groups_is_that_of_the_analysis_of_variance():
    """Groups of 4, 2 and 1: mean squares of 13/28 between them and 1/8 within, an effective size of 2, so rho is 19/33; two of them
    deviate, beside which two that share their fate are counted."""
    effect, _ = design_effect([0, 0, 0, 0, 0, 1, 1], "aaaabbc")
    assert effect == pytest.approx(1 + (19 / 33 + 14 / 33 * 2 / 4) * ((16 + 4 + 1) / 7 - 1))


@pytest.mark.parametrize("sizes", ["geometric", "one of 40"])
def test_groups_of_uneven_size_keep_the_error_rate(sizes):
    """Groups that break as a whole, with a true drop of the margin: .08 to .22 when their number alone counted."""
    generator, passed = random.Random(6), 0
    for _ in range(200):
        counts = [1] * 160 + [40]
        if sizes == "geometric":
            counts = [1 + int(math.log(generator.random()) / math.log(0.8)) for _ in range(60)]
        broken = [generator.random() < 0.1 for _ in counts]
        differences = [-float(b) for b, size in zip(broken, counts, strict=True) for _ in range(size)]
        groups = [i for i, size in enumerate(counts) for _ in range(size)]
        effect, df = design_effect(differences, groups)
        bad = int(-sum(differences))
        passed += non_inferior_p(0, bad, len(groups), 0.1, design_effect=effect, df=df) < 0.05
    assert passed / 200 <= 0.05


def test_mcnemar_of_counts_that_are_no_whole_numbers():
    for b, c in ((8, 1), (3, 11), (0, 4), (5, 0)):
        assert mcnemar_better_p(b, c) == pytest.approx(stats.binomtest(b, b + c, alternative="greater").pvalue)
    assert mcnemar_better_p(3, 0) > mcnemar_better_p(3.5, 0.0) > mcnemar_better_p(4, 0)


@pytest.mark.parametrize("probability", [0.5, 0.95])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_copies_of_values_have_the_percentile_interval_of_the_values(probability, level):
    generator = random.Random(3)
    values = [generator.random() for _ in range(70)]
    one, copied = (percentile(v, probability, level=level, effective_n=70) for v in (values, values * 4))
    assert one == percentile(values, probability, level=level)
    assert (copied.low, copied.high, copied.n) == (one.low, one.high, 280)
    assert percentile(values * 4, 0.95, level=0.9, effective_n=58.9).high is None


def test_what_no_set_can_show_is_none():
    assert items_for_rate(0.9, 0.9 - 1e-6, alpha=0.05) is None
    assert pairs_for_difference(0.5, 1e-6, alpha=0.05) == pairs_for_mean(0.5, 1e-6, alpha=0.05) == LARGEST
    assert pairs_for_mean(0.04, 0.02, alpha=0.05) == pairs_for_difference(0.04, 0.02, alpha=0.05) + 100


def test_the_items_for_a_mean_give_the_power():
    """Equal models whose differences have a standard deviation of 0.1, by the test itself."""
    n, shown = pairs_for_mean(0.01, 0.04, alpha=0.05), 0
    generator = random.Random(12)
    for _ in range(100):
        differences = [generator.gauss(0.0, 0.1) for _ in range(n)]
        shown += bootstrap_mean(differences, level=0.9).p_above(-0.04) < 0.05
    assert shown / 100 > 0.7
