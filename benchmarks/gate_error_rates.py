"""How often a gate errs: ours and the naive ones, on equal models and on a real drop of the margin.

    python benchmarks/gate_error_rates.py [--draws N] [--short]

Prints a Markdown table. Draws are pairs (baseline, candidate) of the same items, a tenth of them where rows are in groups; `discordance` is the share that differs: 2 %
is what two models that are right 99 times of 100 can have at most. Rows in groups share their fate nine times of ten.
"""

import argparse
import random
from typing import Any

from tunegate.evalkit.compare import Paired, pair

MARGIN, ALPHA = 0.02, 0.05
# items, share that differs, rows a group
SETTINGS = [(50, 0.04, 1), (50, 0.10, 1), (200, 0.02, 1), (200, 0.04, 1), (200, 0.10, 1), (300, 0.10, 5), (1000, 0.02, 1), (1000, 0.04, 1), (1000, 0.10, 1), (500, 0.02, 5), (1000, 0.02, 10), (400, 0.04, 20)]  # fmt: skip

HEADLINE = (200, 0.10, 1)


def draw(generator: random.Random, n: int, discordance: float, drop: float, size: int) -> tuple[int, ...]:
    """Of each item -1 (broken), 0 or 1 (fixed); the true difference is -drop."""
    broken_p, fixed_p = (discordance + drop) / 2, (discordance - drop) / 2
    found, shared = [], 0.0
    for index in range(n):
        u = generator.random()
        if index % size == 0:
            shared = u
        elif generator.random() < 0.9:
            u = shared
        found.append(1 if u < fixed_p else -1 if u < fixed_p + broken_p else 0)
    return tuple(found)


def paired(differences: tuple[int, ...], size: int) -> Paired:
    """What evalkit/compare.py makes of it."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for index, difference in enumerate(differences):
        for rows, score in zip(sides, (difference < 0, difference > 0), strict=True):
            group = None if size == 1 else index // size
            rows.append({"id": index, "outcome": "fail", "scores": {"m": float(score)}, "group": group})
    return pair(*sides, "m")


def ours(found: Paired) -> str:
    """PASS, FAIL or INCONCLUSIVE as evalkit/gate.py decides non-inferiority."""
    if found.above_p(-MARGIN) < ALPHA:
        exact = found.exact_p(MARGIN)
        return "PASS" if exact is None or exact < ALPHA else "INCONCLUSIVE"
    high = found.interval(level=1 - 2 * ALPHA).high
    if high is None or high >= -MARGIN:
        return "INCONCLUSIVE"
    exact = found.exact_worse_p(MARGIN)
    return "FAIL" if exact is None or exact < ALPHA else "INCONCLUSIVE"


def rates(n: int, discordance: float, size: int, draws: int, seed: int) -> list[float]:
    """Naive false alarms (two gates), our false FAIL, naive misses (two gates), our false PASS."""
    generator = random.Random(seed)
    counts: list[int] = [0] * 6
    cache: dict[tuple[int, ...], str] = {}
    for offset, drop in ((0, 0.0), (3, MARGIN)):
        for _ in range(draws):
            items = draw(generator, n, discordance, drop, size)
            fixed, broken = items.count(1), items.count(-1)
            key = (fixed, broken) if size == 1 else items
            if key not in cache:
                cache[key] = ours(paired(items, size))
            difference = (fixed - broken) / n
            lower, point = difference < 0, difference < -0.01
            counts[offset] += lower if offset == 0 else not lower
            counts[offset + 1] += point if offset == 0 else not point
            counts[offset + 2] += cache[key] == ("FAIL" if offset == 0 else "PASS")
    return [count / draws for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    draws = 300 if arguments.short else arguments.draws
    print(
        "| n | discordance | rows a group | equal: fail if lower | equal: drop > 1 point | equal: ours FAIL | drop 2 points: not lower | drop 2 points: not > 1 point | drop 2 points: ours PASS |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for seed, (n, discordance, size) in enumerate(SETTINGS):
        found = rates(n, discordance, size, draws if size == 1 else max(300, draws // 10), seed)
        print(f"| {n} | {discordance:.0%} | {size} | {' | '.join(f'{rate:.3f}' for rate in found)} |", flush=True)
        if (n, discordance, size) == HEADLINE:
            headline = f'headline | equal models that a gate stops, {n} items | {found[2]:.1%} | {found[0]:.0%}: "fail if lower"'
    print("\n" + headline)


if __name__ == "__main__":
    main()
