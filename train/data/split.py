"""The hold-out: chosen before any cleaning, whole groups at a time, by a hash that new rows do not move.

side = blake2b(seed, group) / 2^64 < fraction. A row's side depends on its own group only, so adding rows moves no old one;
the size is then only near the fraction, and a label can end up empty: such labels get their lowest-hash group, recorded as
pinned. A hold-out below the wanted minimum is filled up in hash order, which is the same as a higher fraction.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.core.errors import UserError

LARGEST_SHARE = 1 / 3
# Groups a label needs before one of them is pinned to the hold-out: below that, training on it matters more.
GROUPS_TO_PIN = 3
# n of a paired non-inferiority test at alpha 0.05 one-sided and power 0.8: (1.645 + 0.842)^2 = 6.18 (Tango 1998,
# Stat. Med. 17:891, large-sample form with discordance d and margin M: n = 6.18 d / M^2).
POWER_CONSTANT = 6.18


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the hold-out is chosen."""

    eval_fraction: float = 0.1
    """share of groups held out, 0 to 1/3"""
    min_eval: int = 100
    """rows held out at least, when the set allows it (never more than a third of the rows)"""
    min_per_label: int = 1
    """groups of each label held out at least, where the label has at least 3"""
    seed: int = 0
    """another seed, another hold-out"""

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction <= LARGEST_SHARE:
            raise UserError("must be between 0 and 1/3", where="--eval-fraction")
        for name in ("min_eval", "min_per_label"):
            if getattr(self, name) < 0:
                raise UserError("must not be negative", where=f"--{name.replace('_', '-')}")


@dataclass(frozen=True, kw_only=True)
class Split:
    """held_out: one flag a row. threshold: the share of hash space held out in the end. pinned: groups held out for the
    sake of their label. kept: rows held out because an earlier evaluation set holds them."""

    held_out: list[bool]
    threshold: float
    pinned: list[str]
    kept: int

    @property
    def n(self) -> int:
        """Rows held out."""
        return sum(self.held_out)


def side(seed: int, group: str) -> float:
    """Where a group lies in [0, 1): 64 bits of BLAKE2b, the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(
    groups: Sequence[str], labels: Sequence[str | None], config: SplitConfig, keep: Sequence[bool] | None = None
) -> Split:
    """Choose the hold-out over rows given by their group and label (None: no label); `keep` marks rows that stay in it.

    Rows that share a group always land on one side.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    places = {group: side(config.seed, group) for group in members}
    order = sorted(members, key=lambda group: (places[group], group))
    held = {groups[index] for index, flag in enumerate(keep or []) if flag}
    kept = sum(len(members[group]) for group in held)
    held |= {group for group in order if places[group] < config.eval_fraction}
    rows = sum(len(members[group]) for group in held)
    wanted = min(config.min_eval, math.floor(len(groups) * LARGEST_SHARE)) if config.eval_fraction > 0 else 0
    threshold = config.eval_fraction
    for group in order:
        if rows >= wanted:
            break
        if group not in held:
            held.add(group)
            rows += len(members[group])
            threshold = math.nextafter(places[group], 1.0)
    pinned = _pin(order, members, labels, held, config)
    held |= set(pinned)
    return Split(held_out=[group in held for group in groups], threshold=threshold, pinned=pinned, kept=kept)


def detectable_drop(n: int, discordance: float) -> float:
    """The margin M that n paired items can test: M = sqrt(6.18 d / n), as a fraction; d: share of items whose verdict
    differs between the two systems. 80 % power, 5 % error."""
    return math.sqrt(POWER_CONSTANT * discordance / n) if n else math.inf


def _pin(
    order: list[str],
    members: dict[str, list[int]],
    labels: Sequence[str | None],
    held: set[str],
    config: SplitConfig,
) -> list[str]:
    """The groups to add so that each label of enough groups has its minimum, in hash order."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for group in order:
        for label in sorted({label for index in members[group] if (label := labels[index]) is not None}):
            by_label[label].append(group)
    pinned: list[str] = []
    if config.eval_fraction == 0:
        return pinned
    for label in sorted(by_label):
        mine = by_label[label]
        if len(mine) < max(GROUPS_TO_PIN, 3 * config.min_per_label):
            continue
        missing = config.min_per_label - sum(group in held or group in pinned for group in mine)
        free = [group for group in mine if group not in held and group not in pinned]
        pinned += free[: max(0, missing)]
    return pinned
