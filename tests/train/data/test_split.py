"""The hold-out: whole groups, by hash, stable when rows are added."""

import random
from collections import Counter

import pytest

from tunegate.core.errors import UserError
from tunegate.train.data.split import SplitConfig, side, split

GROUPS = [f"g{i}" for i in range(10_000)]


def test_side_is_the_known_hash() -> None:
    """BLAKE2b of `seed NUL group`, first 8 bytes: the same on every machine and in every version."""
    import hashlib

    expected = int(hashlib.blake2b(b"0\x00g1", digest_size=8).hexdigest(), 16) / 2**64
    assert side(0, "g1") == expected
    assert side(0, "g1") == 0.5607827344156117
    assert side(1, "g1") != expected


def test_size_is_near_the_fraction_and_the_seed_matters() -> None:
    first = split(GROUPS, [None] * 10_000, SplitConfig())
    assert 900 < first.n < 1100
    assert first.threshold == 0.1
    assert first == split(GROUPS, [None] * 10_000, SplitConfig())
    assert first.held_out != split(GROUPS, [None] * 10_000, SplitConfig(seed=1)).held_out


def test_adding_rows_moves_no_old_one() -> None:
    before = split(GROUPS, [None] * 10_000, SplitConfig())
    more = [*GROUPS, *(f"new{i}" for i in range(1100))]
    after = split(more, [None] * len(more), SplitConfig())
    assert after.held_out[:10_000] == before.held_out


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = random.Random(3).sample(GROUPS, len(GROUPS))
    sides = dict(zip(shuffled, split(shuffled, [None] * 10_000, SplitConfig()).held_out, strict=True))
    assert [sides[g] for g in GROUPS] == split(GROUPS, [None] * 10_000, SplitConfig()).held_out


def test_a_group_is_never_torn() -> None:
    groups = [f"g{i % 700}" for i in range(5000)]
    chosen = split(groups, [None] * 5000, SplitConfig(eval_fraction=0.2))
    sides: dict[str, set[bool]] = {}
    for group, flag in zip(groups, chosen.held_out, strict=True):
        sides.setdefault(group, set()).add(flag)
    assert {len(s) for s in sides.values()} == {1}


@pytest.mark.parametrize(("rows", "least", "most"), [(858, 100, 100), (150, 50, 50), (9, 3, 3), (3, 1, 1), (2, 0, 0)])
def test_the_minimum_is_filled_up_but_never_beyond_a_third(rows: int, least: int, most: int) -> None:
    chosen = split(GROUPS[:rows], [None] * rows, SplitConfig(eval_fraction=0.01))
    assert least <= chosen.n <= max(most, sum(side(0, g) < 0.01 for g in GROUPS[:rows]))
    if least:
        assert chosen.threshold > 0.01
        assert chosen.held_out == [side(0, g) < chosen.threshold for g in GROUPS[:rows]]


def test_every_label_gets_its_minimum_and_it_is_recorded() -> None:
    labels = ["common"] * 9_990 + ["rare"] * 8 + ["tiny"] * 2
    chosen = split(GROUPS, labels, SplitConfig(eval_fraction=0.0001, min_eval=0))
    counts = Counter(label for label, flag in zip(labels, chosen.held_out, strict=True) if flag)
    assert counts["rare"] >= 1
    assert counts["tiny"] == 0  # two groups only: training on them matters more
    assert len(chosen.pinned) >= 1
    rare = sorted(GROUPS[9_990:9_998], key=lambda g: side(0, g))[0]
    assert rare in chosen.pinned


def test_77_labels_at_five_percent_are_all_there() -> None:
    labels = [f"l{i % 77}" for i in range(10_000)]
    chosen = split(GROUPS, labels, SplitConfig(eval_fraction=0.01))
    assert len({label for label, flag in zip(labels, chosen.held_out, strict=True) if flag}) == 77


def test_kept_rows_stay_with_their_groups() -> None:
    groups = ["a", "a", "b", "c"] * 100
    keep = [False] * 400
    keep[0] = True
    chosen = split(groups, [None] * 400, SplitConfig(eval_fraction=0.0, min_eval=0), keep)
    assert chosen.held_out == [g == "a" for g in groups]
    assert chosen.kept == 200


def test_no_hold_out_when_the_fraction_is_zero() -> None:
    assert split(GROUPS[:100], ["x"] * 100, SplitConfig(eval_fraction=0.0)).n == 0


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"eval_fraction": 0.5}, "--eval-fraction"),
        ({"eval_fraction": -0.1}, "--eval-fraction"),
        ({"min_eval": -1}, "--min-eval"),
    ],
)
def test_bad_settings(options: dict[str, float], where: str) -> None:
    with pytest.raises(UserError) as caught:
        SplitConfig(**options)  # type: ignore[arg-type]
    assert caught.value.where == where
