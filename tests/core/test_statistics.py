"""Check values from the literature, scipy as oracle, and simulations of the promised error rates."""

import math
import random
import statistics as statistics_of_python

import pytest

from tunegate.core import bootstrap
from tunegate.core.bootstrap import bootstrap_mean
from tunegate.core.distributions import beta_cdf, binomial_cdf, binomial_sf, student_quantile, student_sf
from tunegate.core.power import detectable_difference, items_for_rate, pairs_for_difference, power_of_margin
from tunegate.core.statistics import (
    clopper_pearson,
    clustered_se,
    design_effect,
    exact_non_inferior_p,
    holm,
    non_inferior_p,
    percentile,
    quantile,
    tango_interval,
    tango_statistic,
    wilson,
)

stats = pytest.importorskip("scipy.stats")


def test_distributions_agree_with_scipy():
    for x, a, b in [(0.3, 2, 5), (0.99, 400, 3), (1e-6, 0.5, 10), (0.5, 3000, 3000)]:
        assert beta_cdf(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-9)
    for k, n, p in [(0, 5, 0.2), (7, 20, 0.3), (990, 1000, 0.99), (21, 20, 0.5)]:
        assert binomial_sf(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9)
        assert binomial_cdf(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-9)
    for t, df in [(-2.0, 3), (0.0, 9), (1.7, 1), (4.0, 200)]:
        assert student_sf(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9)
    assert student_quantile(0.05, 7) == pytest.approx(stats.t.ppf(0.05, 7), rel=1e-7)


def test_wilson_and_clopper_pearson():
    for k, n in [(0, 10), (3, 10), (81, 263), (50, 50)]:
        for ours, method in ((wilson(k, n), "wilson"), (clopper_pearson(k, n, level=0.95), "exact")):
            theirs = stats.binomtest(k, n).proportion_ci(0.95, method=method)
            assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-8)


def test_tango_at_margin_zero_is_mcnemars_score_test():
    assert tango_statistic(12, 5, 100, 0.0) == pytest.approx((12 - 5) / math.sqrt(17))


def test_tango_interval_ends_where_the_test_rejects():
    interval = tango_interval(1, 9, 44, level=0.95)
    assert interval.low < -8 / 44 < interval.high < 0.0
    bound = stats.norm.ppf(0.975)
    assert tango_statistic(1, 9, 44, interval.low) == pytest.approx(bound, abs=1e-6)
    assert tango_statistic(1, 9, 44, interval.high) == pytest.approx(-bound, abs=1e-6)


def test_test_and_interval_agree():
    generator = random.Random(3)
    for _ in range(200):
        n = generator.randint(20, 500)
        b, c = generator.randint(0, n // 8), generator.randint(0, n // 8)
        low = tango_interval(b, c, n, level=0.9).low
        assert (non_inferior_p(b, c, n, 0.02) < 0.05) == (low > -0.02) or low == pytest.approx(-0.02, abs=1e-9)


def test_exact_guard_where_the_score_test_errs():
    # With a true drop of 2 points and nothing ever fixed, 133 items without a broken one happen with 0.98^133 = 6.8 %.
    assert non_inferior_p(0, 0, 133, 0.02) < 0.05
    assert exact_non_inferior_p(0, 30, 60, 0.02) == 1.0
    assert exact_non_inferior_p(0, 0, 133, 0.02) == pytest.approx(0.98**133 + 0.001, abs=1e-4)
    assert exact_non_inferior_p(0, 0, 0, 0.02) == 1.0


@pytest.mark.parametrize(
    ("n", "broken_p", "margin"), [(50, 0.05, 0.02), (100, 0.1, 0.02), (200, 0.03, 0.01), (133, 0.02, 0.02)]
)
def test_size_with_the_guard_is_at_most_alpha(n, broken_p, margin):
    """P(pass | the drop is exactly the margin), computed over all outcomes and not simulated."""
    size = 0.0
    share = (broken_p - margin) / (1 - broken_p)
    for c in range(n + 1):
        mass = stats.binom.pmf(c, n, broken_p)
        if mass < 1e-6:
            continue
        for b in range(n - c + 1):
            joint = mass * stats.binom.pmf(b, n - c, share)
            if joint > 1e-6 and non_inferior_p(b, c, n, margin) < 0.05 and exact_non_inferior_p(b, c, n, margin) < 0.05:
                size += joint
    assert size <= 0.05


def test_sample_size_check_values():
    assert [
        pairs_for_difference(d, m, alpha=0.05) for d, m in [(0.05, 0.02), (0.05, 0.03), (0.1, 0.02), (0.1, 0.03)]
    ] == [773, 344, 1546, 687]
    assert detectable_difference(773, 0.05, alpha=0.05) == pytest.approx(0.02, abs=1e-5)
    assert power_of_margin(773, 0.05, 0.02, alpha=0.05) == pytest.approx(0.8, abs=1e-3)
    # equal models whose every answer is alike: the first number that the exact test lets pass
    assert pairs_for_difference(0.0, 0.02, alpha=0.05) == 150
    assert exact_non_inferior_p(0, 0, 150, 0.02) < 0.05 < exact_non_inferior_p(0, 0, 149, 0.02)
    assert items_for_rate(1.0, 0.95, alpha=0.05) == 59  # 0.95^59 is the first power under 0.05
    assert items_for_rate(0.95, 0.95, alpha=0.05) is None


@pytest.mark.parametrize(("discordance", "margin"), [(0.001, 0.02), (0.009, 0.02), (0.02, 0.1), (0.1, 0.3), (0.1, 0.1)])
def test_the_promised_power_is_there_where_few_pairs_differ(discordance, margin):
    """Of equal models: summed over the pairs broken and fixed, by the gate's own test."""
    n, power = pairs_for_difference(discordance, margin, alpha=0.05), 0.0
    share = discordance / 2 / (1 - discordance / 2)

    def shown(fixed, broken):
        return non_inferior_p(fixed, broken, n, margin) < 0.05 and exact_non_inferior_p(fixed, broken, n, margin) < 0.05

    for broken in range(n):
        mass = stats.binom.pmf(broken, n, discordance / 2)
        if mass > 1e-5:
            least = next((fixed for fixed in range(n - broken + 1) if shown(fixed, broken)), n + 1)
            power += mass * stats.binom.sf(least - 1, n - broken, share)
    assert power > 0.74
    assert power_of_margin(n, discordance, margin, alpha=0.05) == pytest.approx(0.8, abs=0.04)


def test_a_rate_needs_the_items_that_give_the_power():
    for rate, bound in ((0.99, 0.95), (0.9, 0.95), (0.7, 0.5)):
        n = items_for_rate(rate, bound, alpha=0.05)
        above = rate > bound
        at = [
            k
            for k in range(n + 1)
            if (stats.binom.sf(k - 1, n, bound) if above else stats.binom.cdf(k, n, bound)) < 0.05
        ]
        assert sum(stats.binom.pmf(k, n, rate) for k in at) >= 0.8


def test_clustered_se():
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    mean = sum(values) / 6
    usual = math.sqrt(sum((v - mean) ** 2 for v in values) / (6 * 5))
    assert clustered_se(values, range(6)) == pytest.approx(usual)
    doubled = [v for v in values for _ in range(2)]
    twins = [i for i in range(6) for _ in range(2)]
    assert clustered_se(doubled, twins) == pytest.approx(usual)  # each row twice is no more information
    assert design_effect(doubled, twins)[0] == pytest.approx(2.0 * 6 / 5)
    assert design_effect([0.0] * 8, [0, 0, 0, 0, 1, 1, 1, 1])[0] == 4.0  # nothing varies: the worst is assumed


def test_clusters_keep_the_error_rate():
    """On a drop of exactly the margin in groups of five that fail together, the plain test passes far too often."""
    generator = random.Random(5)
    plain = ours = 0
    for _ in range(400):
        differences, groups = [], []
        for group in range(60):
            u = generator.random()
            for _ in range(5):
                v = u if generator.random() < 0.9 else generator.random()
                differences.append(1.0 if v < 0.04 else -1.0 if v < 0.10 else 0.0)
                groups.append(group)
        b, c, n = differences.count(1.0), differences.count(-1.0), len(differences)
        effect, df = design_effect(differences, groups)
        plain += non_inferior_p(b, c, n, 0.02) < 0.05
        ours += non_inferior_p(b, c, n, 0.02, design_effect=effect, df=df) < 0.05
    assert plain / 400 > 0.12
    assert ours / 400 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 400)


def test_bootstrap_spread_is_that_of_the_mean():
    """Defect B8: dividing the spread of the draws by the root of their number gave a 32 times too small error."""
    values = [i / 99 for i in range(100)]
    test = bootstrap_mean(values, level=0.95)
    assert test.se == pytest.approx(clustered_se(values, range(100)))
    assert (test.interval.high - test.interval.low) / 2 == pytest.approx(
        1.98 * test.se, rel=0.25
    )  # one more at each end
    assert test.p_above(0.4) < 0.01 < 0.3 < test.p_above(0.49)


def test_bootstrap_without_spread_and_with_one_row():
    flat = bootstrap_mean([0.5] * 50, level=0.9, lowest=0.0).interval
    assert flat.low == pytest.approx(0.5 * 0.05 ** (1 / 50))  # the others at 0
    assert flat.high == pytest.approx(1 - 0.5 * 0.05 ** (1 / 50))
    assert bootstrap_mean([0.5], level=0.9).interval.low is None
    assert bootstrap_mean([], level=0.9).p_above(0.0) == 1.0


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_percentile_interval():
    assert percentile(list(range(58)), 0.95, level=0.9).high is None  # 0.95^58 > 0.05
    assert percentile(list(range(59)), 0.95, level=0.9).high == 58
    generator = random.Random(1)
    covered = 0
    for _ in range(500):
        interval = percentile([generator.random() for _ in range(200)], 0.9, level=0.9)
        covered += interval.low <= 0.9 <= interval.high
    assert covered / 500 >= 0.9 - 0.035


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_tango_without_a_discordant_pair_has_its_closed_form(n):
    """With b = c = 0 the statistic at d is -n d / sqrt(n |d| (1 - |d|)): the interval ends at z^2 / (n + z^2) on both sides."""
    z2 = stats.norm.ppf(0.95) ** 2
    interval = tango_interval(0, 0, n, level=0.9)
    assert (interval.low, interval.high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


def test_studentised_p_is_the_share_of_the_draws_beyond():
    values = [((7 * i) % 11) / 11 for i in range(40)]
    test = bootstrap_mean(values, level=0.9)
    for bound in (0.38, 0.45, 0.5):
        t = (test.interval.value - bound) / test.se
        assert test.below._resampled_p(t) == (1 + sum(draw >= t for draw in test.draws)) / (1 + len(test.draws))
        assert test.above._resampled_p(-t) == (1 + sum(-draw >= -t for draw in test.draws)) / (1 + len(test.draws))


def interval_of(interval):
    return interval.value, interval.low, interval.high, interval.n


def test_of_nothing_nothing_is_known():
    assert interval_of(wilson(0, 0)) == interval_of(clopper_pearson(0, 0, level=0.9)) == (0.0, 0.0, 1.0, 0)
    assert interval_of(tango_interval(0, 0, 0, level=0.9)) == (0.0, -1.0, 1.0, 0)
    assert non_inferior_p(0, 0, 0, 0.02) == 1.0
    empty = percentile([], 0.5, level=0.9)
    assert math.isnan(empty.value)
    assert (empty.low, empty.high, empty.n) == (None, None, 0)
    empty = bootstrap_mean([], level=0.9)
    assert (interval_of(empty.interval), empty.draws, empty.se, empty.df) == ((0.0, None, None, 0), (), math.inf, 1.0)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.99])
def test_rates_at_other_levels(level):
    for k, n in [(0, 1), (1, 1), (0, 4), (1, 4), (3, 10), (4, 4)]:
        for ours, method in ((wilson(k, n, level=level), "wilson"), (clopper_pearson(k, n, level=level), "exact")):
            theirs = stats.binomtest(k, n).proportion_ci(level, method=method)
            assert interval_of(ours) == pytest.approx((k / n, theirs.low, theirs.high, n), abs=1e-8)
    # effective counts of clustered rows are no whole numbers; the tails are those of the beta distribution
    real = clopper_pearson(7.5, 12.4, level=level)
    tail = (1 - level) / 2
    assert stats.beta.cdf(real.low, 7.5, 12.4 - 7.5 + 1) == pytest.approx(tail, abs=1e-9)
    assert stats.beta.sf(real.high, 7.5 + 1, 12.4 - 7.5) == pytest.approx(tail, abs=1e-9)
    assert (real.value, real.n) == (7.5 / 12.4, 12)


def likelihood_statistic(b, c, n, d):
    """Tango's statistic with the share of broken pairs found by maximising the likelihood over a grid of 1e-6."""
    import numpy as np

    q = np.linspace(max(0.0, -d), (1.0 - d) / 2.0, 1_000_001)[1:-1]
    rest = np.maximum(1.0 - 2.0 * q - d, 1e-300)
    best = q[np.argmax(b * np.log(q + d) + c * np.log(q) + (n - b - c) * np.log(rest))]
    return (b - c - n * d) / math.sqrt(n * (2.0 * best + d * (1.0 - d)))


@pytest.mark.parametrize(("b", "c", "n"), [(1, 9, 44), (7, 3, 30), (5, 5, 12), (2, 1, 100)])
def test_tangos_statistic_takes_the_likeliest_discordance(b, c, n):
    for d in (-0.3, -0.02, 0.05, 0.4):
        assert tango_statistic(b, c, n, d) == pytest.approx(likelihood_statistic(b, c, n, d), rel=1e-4)


def test_tangos_statistic_at_the_ends():
    assert tango_statistic(0, 0, 10, 0.0) == 0.0
    assert tango_statistic(3, 0, 10, 1.0) == -math.inf
    assert tango_statistic(0, 3, 10, -1.0) == math.inf
    assert tango_statistic(10, 0, 10, 1.0) == tango_statistic(0, 10, 10, -1.0) == 0.0


def test_tangos_interval_in_clusters_is_wider_by_design_effect_and_student():
    found = tango_interval(6, 22, 88, level=0.9, design_effect=2.0, df=7)
    bound = stats.t.ppf(0.95, 7) * math.sqrt(2.0)
    assert (found.value, found.n) == (-16 / 88, 88)
    assert tango_statistic(6, 22, 88, found.low) == pytest.approx(bound, abs=1e-6)
    assert tango_statistic(6, 22, 88, found.high) == pytest.approx(-bound, abs=1e-6)
    p = non_inferior_p(6, 22, 88, 0.1, design_effect=2.0, df=7)
    assert p == pytest.approx(stats.t.sf(tango_statistic(6, 22, 88, -0.1) / math.sqrt(2.0), 7), rel=1e-9)


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"), [(0, 0, 30, 0.05), (1, 0, 20, 0.1), (2, 3, 25, 0.1), (6, 1, 18, 0.02), (9, 2, 12, 0.3)]
)
def test_exact_p_against_every_outcome(b, c, n, margin):
    """P(T >= T observed), summed over all tables, at its largest over a fine grid of the Clopper-Pearson interval of c / n."""
    observed = tango_statistic(b, c, n, -margin)
    beyond = [
        (x, y) for x in range(n + 1) for y in range(n + 1 - x) if tango_statistic(x, y, n, -margin) >= observed - 1e-10
    ]
    box = clopper_pearson(c, n, level=0.999)
    low, high = max(margin, box.low), min((1 + margin) / 2, max(margin, box.high))
    largest = 0.0
    for i in range(401):
        q = low + (high - low) * i / 400
        tables = stats.multinomial(n, [q - margin, q, max(0.0, 1 - 2 * q + margin)])
        largest = max(largest, float(tables.pmf([(x, y, n - x - y) for x, y in beyond]).sum()))
    found = exact_non_inferior_p(b, c, n, margin)
    assert found == pytest.approx(min(1.0, largest + 0.001), rel=2e-3)
    assert exact_non_inferior_p(b, c, n, margin, gamma=1e-6) != found


def test_design_effect_of_whole_clusters():
    assert design_effect([1.0, 0.0, 1.0], "abc") == (1.0, math.inf)
    assert design_effect([1.0, 0.0, 1.0], "aaa") == (3.0, 1.0), "one cluster: the correlation cannot be seen"
    assert design_effect([0.0] * 6, "aaaabb") == ((16 + 4) / 6, 1.0)
    assert design_effect([1.0, 0.0, 0.0, 1.0], "aabb") == (1.5, 1.0), (
        "less than independent is independent; two tell little of it"
    )
    values, groups = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], "aabbcc"
    assert design_effect(values, groups) == (clustered_se(values, groups) ** 2 / (0.25 / 6), 2.0)
    assert clustered_se(values, groups) == pytest.approx(math.sqrt(3 / 2 * (1.0 + 0.0 + 1.0)) / 6)
    assert clustered_se([1.0, 0.0], "aa") == math.inf


def test_studentised_draws_by_hand():
    """Each draw's mean and standard error from the rows of the clusters it takes, one after the other."""
    import numpy as np

    values, groups = [0.1, 0.9, 0.4, 0.3, 0.8, 0.5, 0.0, 0.7], "aabbbcde"
    test = bootstrap_mean(values, list(groups), level=0.8, draws=200, seed=3)
    names, mean = sorted(set(groups)), sum(values) / 8
    expected = []
    for taken in np.random.default_rng(3).integers(0, 5, size=(200, 5)):
        rows = [(v, k) for k, j in enumerate(taken) for v, g in zip(values, groups, strict=True) if g == names[j]]
        drawn, se = sum(v for v, _ in rows) / len(rows), clustered_se([v for v, _ in rows], [k for _, k in rows])
        expected.append((drawn - mean) / max(se, 1e-9))
    assert list(test.draws) == pytest.approx(sorted(max(-1e6, min(1e6, t)) for t in expected), rel=1e-6, abs=1e-9)
    assert (test.interval.value, test.interval.n, test.df) == (pytest.approx(mean), 8, pytest.approx(16**2 / 100 - 1))
    assert test.se == clustered_se(values, groups)
    # 0.1 * 201: p of 19 draws beyond, (1 + 19) / (1 + 200), is the largest under a tenth
    # 20 of 200 draws and fewer do not tell a tail alone: there it is Student's t where that is wider
    student = stats.t.ppf(0.9, 1.56)
    assert test.below._resampled_quantile(0.1) == pytest.approx(max(sorted(expected)[180], student))
    assert test.above._resampled_quantile(0.1) == pytest.approx(max(-sorted(expected)[19], student))
    assert test.below._resampled_quantile(0.2) == pytest.approx(sorted(expected)[200 - 1 - 39])
    assert bootstrap_mean(values, list(groups), level=0.8, draws=200, seed=4).draws != test.draws
    assert len(bootstrap_mean(values, level=0.8).draws) == 4000
    assert bootstrap_mean(values, level=0.8) == bootstrap_mean(values, range(8), level=0.8, draws=4000, seed=0)


def test_draws_are_the_same_in_blocks(monkeypatch):
    values = [((7 * i) % 11) / 11 for i in range(30)]
    at_once = bootstrap_mean(values, level=0.9, draws=501, seed=9).draws
    bootstrap._studentised_draws.cache_clear()
    monkeypatch.setattr(bootstrap, "KEPT_DRAWS", 1000)  # 33 draws a block, the last of 6
    assert bootstrap_mean(values, level=0.9, draws=501, seed=9).draws == pytest.approx(at_once, rel=1e-12)
    assert len(at_once) == 501


def test_many_scores_need_no_resampling():
    values = [(i % 7) / 7 for i in range(5001)]
    test = bootstrap_mean(values, level=0.9)
    se = statistics_of_python.stdev(values) / math.sqrt(5001)
    assert (test.draws, test.df, test.interval.n) == ((), 5000.0, 5001)
    assert test.se == pytest.approx(se)
    mean = sum(values) / 5001
    for side, sign in ((test.below, 1), (test.above, -1)):
        assert side._resampled_quantile(0.05) == pytest.approx(stats.t.ppf(0.95, 5000))
        assert side._resampled_p(1.0) == pytest.approx(stats.t.sf(1.0, 5000))
        more = [*values, -1.0 if sign > 0 else 1.0]  # what decides: one more at the end of the scale
        guard = sum(more) / 5002 - sign * stats.t.ppf(0.95, 5001) * statistics_of_python.stdev(more) / math.sqrt(5002)
        assert (test.interval.low if sign > 0 else test.interval.high) == pytest.approx(guard)
    assert test.p_above(mean) == test.p_below(mean) == 1.0
    assert len(bootstrap_mean(values[:5000], level=0.9, draws=2).draws) == 2, "up to 5000 clusters are resampled"


def test_scores_without_spread_or_of_one_cluster():
    flat = bootstrap_mean([0.5] * 3, level=0.9)
    assert (flat.draws, flat.se, flat.df, flat.interval.n) == ((), 0.0, 2.0, 3)
    assert (flat.p_above(0.5), flat.p_above(0.6), flat.p_below(0.5), flat.p_below(0.4)) == (1.0,) * 4
    assert flat.p_above(0.4) == pytest.approx((1 - 0.1 / 1.5) ** 3)  # a mean of 0.4: one in 15 at -1, the rest at 0.5
    assert flat.p_below(0.6) == pytest.approx((1 - 0.1 / 0.5) ** 3)
    assert (flat.p_above(-2.0), flat.p_below(2.0)) == (0.0, 0.0)
    for tail in (0.05, 0.2):
        spread = bootstrap_mean([0.5] * 3, level=1 - 2 * tail).interval
        assert (flat.p_above(spread.low), flat.p_below(spread.high)) == pytest.approx((tail, tail))
    sums = [0.1 + 0.2 - value for value in (0.1, 0.1 + 1e-17, 0.1)]
    assert bootstrap_mean(sums, level=0.9).se == 0.0  # digits that rounding leaves are no spread
    alone = bootstrap_mean([0.2, 0.8], "aa", level=0.9)
    assert (interval_of(alone.interval), alone.se, alone.df) == ((0.5, None, None, 2), math.inf, 1.0)
    assert (alone.p_above(0.0), alone.p_below(1.0)) == (1.0, 1.0)


def test_quantiles_are_observations():
    assert [quantile([1, 2, 3, 4], p) for p in (0.0, 0.25, 0.26, 0.5, 0.51, 0.75, 1.0)] == [1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.95, 0.99])
def test_percentile_bounds_are_the_narrowest_ranks_that_hold(probability):
    """P(X_(low) <= quantile) = P(Bin(n, p) >= low); P(X_(high) >= quantile) = P(Bin(n, p) < high); each at least 95 %."""
    for n in (1, 4, 5, 28, 29, 58, 59, 200):
        lows = [r for r in range(1, n + 1) if stats.binom.sf(r - 1, n, probability) >= 0.95]
        highs = [r for r in range(1, n + 1) if stats.binom.cdf(r - 1, n, probability) >= 0.95]
        found = percentile(range(n, 0, -1), probability, level=0.9)
        assert (found.low, found.high) == (max(lows, default=None), min(highs, default=None))
        assert (found.value, found.n) == (math.ceil(round(probability * n, 9)), n)


def test_holm_never_exceeds_one_and_keeps_the_order():
    assert holm([0.5, 0.9, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
