"""Check values from the literature, scipy as oracle, and simulations of the promised error rates."""

import math
import random

import pytest

from tunegate.core.distributions import beta_cdf, binomial_cdf, binomial_sf, student_quantile, student_sf
from tunegate.core.power import detectable_difference, items_for_rate, miller_n, pairs_for_difference, power_of_margin
from tunegate.core.statistics import (
    bootstrap_mean,
    clopper_pearson,
    clustered_se,
    design_effect,
    exact_non_inferior_p,
    holm,
    mcnemar,
    newcombe,
    non_inferior_p,
    percentile,
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


def test_mcnemar_check_values():
    p = mcnemar(3, 11)
    assert p.two_sided == pytest.approx(0.05737, abs=5e-6)
    assert p.worse == pytest.approx(0.02869, abs=5e-6)
    assert p.mid_p == pytest.approx(0.03516, abs=5e-6)
    assert mcnemar(0, 5).two_sided > 0.05  # at most five discordant pairs can never reach 0.05 two-sided
    assert mcnemar(0, 0).two_sided == 1.0


def test_wilson_and_clopper_pearson():
    for k, n in [(0, 10), (3, 10), (81, 263), (50, 50)]:
        for ours, method in ((wilson(k, n), "wilson"), (clopper_pearson(k, n, level=0.95), "exact")):
            theirs = stats.binomtest(k, n).proportion_ci(0.95, method=method)
            assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-8)


def test_newcombe_published_example():
    # Newcombe 1998 (Statistics in Medicine 17:873-890), table II, method 10: 56/70 - 48/80
    interval = newcombe(56, 70, 48, 80)
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


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
    assert miller_n(1 / 9, 0, 0, difference=0.03, k_a=1, k_b=1, alpha=0.05, power=0.8) == 969
    assert miller_n(1 / 9, 1 / 6, 1 / 6, difference=0.03, k_a=1, k_b=1, alpha=0.05, power=0.8) == 3876
    assert detectable_difference(773, 0.05, alpha=0.05) == pytest.approx(0.02, abs=1e-5)
    assert power_of_margin(773, 0.05, 0.02, alpha=0.05) == pytest.approx(0.8, abs=1e-3)
    assert items_for_rate(1.0, 0.95, alpha=0.05) == 59  # 0.95^59 is the first power under 0.05
    assert items_for_rate(0.95, 0.95, alpha=0.05) is None


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
    assert (test.interval.high - test.interval.low) / 2 == pytest.approx(1.98 * test.se, rel=0.1)
    assert test.p_above(0.4) < 0.01 < 0.3 < test.p_above(0.49)


def test_bootstrap_without_spread_and_with_one_row():
    assert bootstrap_mean([0.5, 0.5, 0.5], level=0.9).interval.low == 0.5
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
    for bound in (0.3, 0.45, 0.5):
        t = (test.interval.value - bound) / test.se
        assert test.p_above(bound) == (1 + sum(draw >= t for draw in test.draws)) / (1 + len(test.draws))
        assert test.p_below(bound) == (1 + sum(-draw >= -t for draw in test.draws)) / (1 + len(test.draws))
