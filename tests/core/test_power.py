"""The chance that a gate shows non-inferiority: with few items it is summed over what a gate would decide."""

import pytest
from scipy import stats

from tunegate.core.power import detectable_difference, pairs_for_difference, power_of_margin
from tunegate.core.statistics import exact_non_inferior_p, non_inferior_p


@pytest.mark.parametrize(("n", "discordance", "margin"), [(28, 0.1, 0.1), (14, 0.3, 0.1), (40, 0.02, 0.05)])
def test_below_the_n_that_passes_when_all_are_alike_it_is_the_sum_over_all_tables(n, discordance, margin):
    expected = 0.0
    for fixed in range(n + 1):
        for broken in range(n + 1 - fixed):
            chances = [discordance / 2, discordance / 2, 1 - discordance]
            mass = stats.multinomial.pmf([fixed, broken, n - fixed - broken], n, chances)
            shown = mass > 1e-5 and non_inferior_p(fixed, broken, n, margin) < 0.05
            if shown and exact_non_inferior_p(fixed, broken, n, margin) < 0.05:
                expected += mass
    assert expected > 0.005
    assert power_of_margin(n, discordance, margin, alpha=0.05) == pytest.approx(expected, abs=0.002)


def test_few_items_have_a_chance_and_alike_ones_have_none():
    found = {n: power_of_margin(n, 0.04, 0.02, alpha=0.05) for n in (100, 140, 149, 150)}
    assert (found[100], found[140]) == (pytest.approx(0.219, abs=0.002), pytest.approx(0.277, abs=0.002))
    assert found[150] - found[149] < 0.1  # 149 alike pairs do not pass, 150 do; but few sets are all alike
    assert power_of_margin(149, 0.2, 0.02, alpha=0.05) == pytest.approx(0.123, abs=0.02)  # many differ: not summed
    assert (power_of_margin(149, 0.0, 0.02, alpha=0.05), power_of_margin(150, 0.0, 0.02, alpha=0.05)) == (0.0, 1.0)


@pytest.mark.parametrize("power", [0.3, 0.8, 0.95])
@pytest.mark.parametrize(("discordance", "margin"), [(0.0, 0.02), (0.005, 0.02), (0.04, 0.02), (0.1, 0.1), (0.4, 0.05)])
def test_the_items_that_are_asked_for_have_the_power_asked_for(discordance, margin, power):
    need = pairs_for_difference(discordance, margin, alpha=0.05, power=power)
    assert power_of_margin(need, discordance, margin, alpha=0.05) >= power
    shown = detectable_difference(need, discordance, alpha=0.05, power=power)
    assert power_of_margin(need, discordance, shown * (1 + 1e-9), alpha=0.05) >= power - 1e-6
