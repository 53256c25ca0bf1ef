"""The hold-out: chosen before any cleaning, whole groups at a time, by a hash that new rows do not move.

side = blake2b(seed, group) / 2^64 < fraction. A row's side depends on its own group only, so adding rows moves no old one;
the size is then only near the fraction, and a label can end up empty: such labels get their lowest-hash group, recorded as
pinned. A hold-out below the wanted minimum is filled up in hash order, which is the same as a higher fraction.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunegate.core.errors import UserError

LARGEST_SHARE = 1 / 3
# A group of at most this share of the rows stays where its hash puts it, even past a third: at a fraction near a third, rows
# would otherwise move when others are added.
SMALL = 0.01
# Groups a label needs before one of them is pinned to the hold-out: below that, training on it matters more.
GROUPS_TO_PIN = 3


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the hold-out is chosen."""

    eval_fraction: float = 0.1
    """share of groups held out, 0 to 1/3"""
    min_eval: int = 100
    """rows held out at least, when the set allows it (never more than a third of the rows)"""
    min_per_label: int = 1
    """groups of each label held out at least, where the label has at least 3 (never more than a third of its groups)"""
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
    sake of their label. kept: rows held out because an earlier evaluation set holds them. too_large: groups of over a
    third of the rows, which stay in train. short: labels that get fewer groups than asked for, with how many."""

    held_out: list[bool]
    threshold: float
    pinned: list[str]
    kept: int
    too_large: list[str] = field(default_factory=list)
    short: dict[str, int] = field(default_factory=dict)

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

    Rows that share a group always land on one side. The hold-out ends at a third of the rows, except that kept rows stay,
    and that where they are many, groups of a few rows stay where their hash puts them.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    places = {group: side(config.seed, group) for group in members}
    order = sorted(members, key=lambda group: (places[group], group))
    held = _Held(members=members, most=math.floor(len(groups) * LARGEST_SHARE))
    for group in {groups[index] for index, flag in enumerate(keep or []) if flag}:
        held.take(group)
    kept = held.rows
    threshold = config.eval_fraction
    if config.eval_fraction == 0:
        return Split(held_out=[group in held.groups for group in groups], threshold=0.0, pinned=[], kept=kept)
    for group in order:
        if places[group] < threshold and held.fits(group, SMALL * len(groups)):
            held.take(group)
    for group in order:
        if held.rows >= min(config.min_eval, held.most):
            break
        if group not in held.groups and held.fits(group):
            held.take(group)
            threshold = math.nextafter(places[group], 1.0)
    pinned, short = _pin(order, labels, held, config, max(1, SMALL * len(groups)))
    return Split(
        held_out=[group in held.groups for group in groups],
        threshold=threshold,
        pinned=pinned,
        kept=kept,
        too_large=[group for group in order if held.is_too_large(group) and group not in held.groups],
        short=short,
    )


@dataclass(kw_only=True)
class _Held:
    """The groups held out so far. members: the rows of every group. most: rows that may be held out, a third of all."""

    members: dict[str, list[int]]
    most: int
    groups: set[str] = field(default_factory=set)
    rows: int = 0

    def fits(self, group: str, small: float = 0) -> bool:
        """Whether the group can be added without passing a third; one of at most `small` rows always can."""
        size = len(self.members[group])
        return size <= small or self.rows + size <= self.most

    def is_too_large(self, group: str) -> bool:
        return len(self.members[group]) > self.most

    def take(self, group: str) -> None:
        if group not in self.groups:
            self.groups.add(group)
            self.rows += len(self.members[group])


def _pin(
    order: list[str], labels: Sequence[str | None], held: _Held, config: SplitConfig, small: float
) -> tuple[list[str], dict[str, int]]:
    """Hold out more groups, in hash order, so that each label of enough groups has its minimum: (which, the labels that get
    fewer, since a third of their groups is less or a group would take the hold-out past a third of the rows)."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for group in order:
        for label in sorted({label for index in held.members[group] if (label := labels[index]) is not None}):
            by_label[label].append(group)
    pinned: list[str] = []
    short: dict[str, int] = {}
    for label in sorted(by_label):
        mine = by_label[label]
        if len(mine) < GROUPS_TO_PIN:
            continue
        wanted = min(config.min_per_label, math.floor(len(mine) * LARGEST_SHARE))
        got = sum(group in held.groups for group in mine)
        for group in mine:
            if got >= wanted:
                break
            if group not in held.groups and held.fits(group, small):
                held.take(group)
                pinned.append(group)
                got += 1
        if got < config.min_per_label:
            short[label] = got
    return pinned, short
