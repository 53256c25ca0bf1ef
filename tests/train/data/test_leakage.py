"""The ladder of leakage rules, with the counts of the two data sets."""

from pathlib import Path

import pytest

from tunegate.core.rows import Row, parse_row, read_rows
from tunegate.train.data.judge import judge
from tunegate.train.data.leakage import leakage

DATA = Path(__file__).parents[4] / "shared" / "data"


def row(user: str, answer: str = "a", line: int = 1) -> Row:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return parse_row({"messages": messages}, "f.jsonl", line)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not there")
@pytest.mark.parametrize(
    ("name", "counts", "blind"),
    [
        ("snips", {"exact": 4, "lower_spaces": 11, "normalized": 18, "alphanumeric": 19, "ngram": 0}, 0.87),
        ("banking77", {"exact": 6, "lower_spaces": 7, "normalized": 25, "alphanumeric": 29, "ngram": 23}, 0.75),
    ],
)
def test_known_counts(name: str, counts: dict[str, int], blind: float) -> None:
    train, held_out = (list(read_rows(DATA / name / f"{side}.jsonl")) for side in ("train", "test"))
    found = leakage(train, held_out)
    assert {key: found.counts[key] for key in counts} == counts
    assert found.ngram_blind == pytest.approx(blind, abs=0.005)
    assert len(found.clean) == len(held_out) - counts["normalized"]
    same = [hit.same_answer for hit in found.hits if hit.rule in ("exact", "lower_spaces", "normalized")]
    assert len(same) == counts["normalized"]
    if name == "snips":
        assert same.count(False) == 2


TRAIN = [
    row("Where is my card?", "card", 1),
    row("Play Bach", "music", 2),
    row("one two three four five six seven eight nine ten eleven twelve thirteen and then some more", "n", 3),
    row("why did my top up of the account not go through", "topup", 4),
]


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("Where is my card?", "exact", 1),
        ("where  is my CARD?", "lower_spaces", 1),
        ("where is my card!!", "normalized", 1),
        ("whereis my card", "alphanumeric", 1),
        ("so: one two three four five six seven eight nine ten eleven twelve thirteen. Right", "ngram", 3),
        ("why did my top up of the account not go thru", "near", 4),
        ("something of its own", None, 0),
        ("", None, 0),
    ],
)
def test_the_strictest_rule_is_named(text: str, rule: str | None, line: int) -> None:
    found = leakage(TRAIN, [row(text)], near=judge("lexical", 0.8))
    assert [(hit.rule, hit.train_row.line) for hit in found.hits] == ([(rule, line)] if rule else [])
    assert len(found.clean) == (rule in (None, "alphanumeric", "ngram", "near"))


def test_a_twin_with_the_same_answer_is_preferred() -> None:
    found = leakage([row("a b", "x", 1), row("a b", "y", 2)], [row("a b", "y"), row("A b", "z")])
    assert [(h.train_row.line, h.same_answer) for h in found.hits] == [(2, True), (1, False)]


def test_empty_sides() -> None:
    assert leakage([], []).ngram_blind == 0.0
    assert leakage([], TRAIN).hits == []
    assert leakage(TRAIN, []).n == 0
