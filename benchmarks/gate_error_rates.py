"""How often a gate errs: ours and the naive ones, on equal models and on a real drop of the margin.

    python benchmarks/gate_error_rates.py [--draws N] [--short]

Prints a Markdown table. Draws are pairs (baseline, candidate) of the same items; `discordance` is the share that differs.
"""

import argparse
import random

from tunegate.core.statistics import exact_non_inferior_p, non_inferior_p, tango_interval

MARGIN, ALPHA, EXACT_LIMIT = 0.02, 0.05, 100
SETTINGS = [(50, 0.04), (50, 0.10), (200, 0.04), (200, 0.10), (1000, 0.04), (1000, 0.10)]


def draw(generator: random.Random, n: int, discordance: float, drop: float) -> tuple[int, int]:
    """Fixed and broken items of one experiment; the true difference is -drop."""
    broken_p, fixed_p = (discordance + drop) / 2, (discordance - drop) / 2
    fixed = broken = 0
    for _ in range(n):
        u = generator.random()
        fixed += u < fixed_p
        broken += fixed_p <= u < fixed_p + broken_p
    return fixed, broken


def ours(fixed: int, broken: int, n: int) -> str:
    """PASS, FAIL or INCONCLUSIVE as evalkit/gate.py decides non-inferiority."""
    if non_inferior_p(fixed, broken, n, MARGIN) < ALPHA:
        few = fixed + broken <= EXACT_LIMIT
        return "PASS" if not few or exact_non_inferior_p(fixed, broken, n, MARGIN) < ALPHA else "INCONCLUSIVE"
    high = tango_interval(fixed, broken, n, level=1 - 2 * ALPHA).high
    return "FAIL" if high is not None and high < -MARGIN else "INCONCLUSIVE"


def rates(n: int, discordance: float, draws: int, seed: int) -> list[float]:
    """Naive false alarms (two gates), our false FAIL, naive misses (two gates), our false PASS."""
    generator = random.Random(seed)
    counts, cache = [0] * 6, {}
    for offset, drop in ((0, 0.0), (3, MARGIN)):
        for _ in range(draws):
            pair = draw(generator, n, discordance, drop)
            if pair not in cache:
                cache[pair] = ours(*pair, n)
            difference = (pair[0] - pair[1]) / n
            lower, point = difference < 0, difference < -0.01
            counts[offset] += lower if offset == 0 else not lower
            counts[offset + 1] += point if offset == 0 else not point
            counts[offset + 2] += cache[pair] == ("FAIL" if offset == 0 else "PASS")
    return [count / draws for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    draws = 300 if arguments.short else arguments.draws
    print(
        "| n | discordance | equal: fail if lower | equal: drop > 1 point | equal: ours FAIL | drop 2 points: not lower | drop 2 points: not > 1 point | drop 2 points: ours PASS |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for seed, (n, discordance) in enumerate(SETTINGS):
        print(
            f"| {n} | {discordance:.0%} | "
            + " | ".join(f"{rate:.3f}" for rate in rates(n, discordance, draws, seed))
            + " |"
        )


if __name__ == "__main__":
    main()
