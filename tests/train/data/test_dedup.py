"""Duplicates go only for a direct twin that is kept, with the same answer; everything else is listed and stays."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row, content_id, parse_row, read_rows
from tunegate.train.data.dedup import DedupConfig, deduplicate, refuse_mass_removal
from tunegate.train.data.judge import judge
from tunegate.train.data.leakage import leakage
from tunegate.train.data.near import NearIndex, band_keys, band_width, jaccard, similarity
from tunegate.train.data.normalize import alphanumeric, answer_key, lower_spaces, normalized, prompt_key
from tunegate.train.data.rejected import Reason
from tunegate.train.data.twins import near_text

DATA = Path(__file__).parents[4] / "shared" / "data"
LONG = "please book a table at the italian restaurant near the station for two people on friday evening"


def row(user: str, answer: str = "a", line: int = 1, **more: Any) -> Row:
    system = [{"role": "system", "content": more.pop("system")}] if "system" in more else []
    messages = [*system, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return parse_row({"messages": messages, **more}, "f.jsonl", line)


def by_letters(**options: Any) -> DedupConfig:
    """Near by overlap of 4-grams, the rule whose values follow from the texts."""
    return DedupConfig(near_model="lexical", **options)


def reasons(rows: list[Row], **options: Any) -> list[tuple[int, str, str | None]]:
    found = deduplicate(rows, by_letters(**options))
    return [(item.line, str(item.reason), item.kept) for item in found.rejected]


def test_exact_normalized_and_near_name_the_kept_row() -> None:
    rows = [
        row(LONG, id="r1", line=1),
        row(LONG, id="r2", line=2),
        row(LONG.capitalize() + "!", id="r3", line=3),
        row(LONG.replace("evening", "evenings"), id="r4", line=4),
    ]
    found = deduplicate(rows, by_letters())
    assert [(r.line, str(r.reason), r.kept) for r in found.rejected] == [
        (2, "duplicate_exact", "r1"),
        (3, "duplicate_normalized", "r1"),
        (4, "duplicate_near", "r1"),
    ]
    assert [r.id for r in found.kept] == ["r1"]
    assert all(item.rule and item.score is not None for item in found.rejected)
    assert 0.9 <= (found.rejected[2].score or 0) < 1


def test_conflicts_and_contrast_pairs_are_kept() -> None:
    rows = [
        row(LONG, "yes", line=1),
        row(LONG + "?", "no", line=2),
        row(LONG.replace("evening", "evenings"), "maybe", line=3),
    ]
    found = deduplicate(rows, by_letters())
    assert (len(found.kept), found.rejected) == (3, [])
    assert [(p.a.line, p.b.line) for p in found.conflicts] == [(1, 2)]
    assert [p.b.line for p in found.contrast_pairs] == [3]


def test_a_chain_keeps_its_far_end() -> None:
    """Of a chain A~B~C with A far from C, C stays: it has no kept twin. (marin#6854, text-dedup#96, D11)"""
    words = [f"word{chr(97 + i)}" for i in range(20)]
    a = " ".join(words)
    b = " ".join([*words[:-1], "zebra"])
    c = " ".join([*words[:-2], "quartz", "zebra"])
    threshold = 0.8
    assert similarity(a, b) >= threshold > similarity(a, c)
    assert similarity(b, c) >= threshold
    found = deduplicate([row(a, line=1), row(b, line=2), row(c, line=3)], by_letters(near_threshold=threshold))
    assert [r.line for r in found.kept] == [1, 3]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away"]),
        max_size=30,
    ),
    st.data(),
)
def test_every_removed_row_is_near_its_kept_twin(words: list[str], data: st.DataObject) -> None:
    texts = []
    for _ in range(data.draw(st.integers(1, 12))):
        copy = list(words)
        for _ in range(data.draw(st.integers(0, 2))):
            if copy:
                copy[data.draw(st.integers(0, len(copy) - 1))] = data.draw(st.sampled_from(["cat", "hat", "x"]))
        loud = data.draw(st.sampled_from([str, str.upper, lambda text: text + "!"]))
        texts.append(loud(" ".join(copy)))
    answers = data.draw(st.lists(st.sampled_from("ab"), min_size=len(texts), max_size=len(texts)))
    rows = [row(t, a, line=i, id=f"r{i}") for i, (t, a) in enumerate(zip(texts, answers, strict=True))]
    found = deduplicate(rows, by_letters())
    kept = {r.id: r for r in found.kept}
    assert len(found.kept) + len(found.rejected) == len(rows)
    for item in found.rejected:
        twin, gone = kept.get(item.kept or ""), rows[item.line]
        assert twin is not None
        assert answer_key(twin) == answer_key(gone)
        if "overlap" in (item.rule or ""):
            assert similarity(near_text(twin), near_text(gone)) >= 0.9
        else:
            assert prompt_key(twin) == prompt_key(gone)
    assert found.count(Reason.DUPLICATE_EXACT) == len(rows) - len({content_id(r.messages, r.tools) for r in rows})
    assert all({pair.a.id, pair.b.id} <= set(kept) for pair in [*found.conflicts, *found.contrast_pairs])


def test_a_copy_of_a_row_that_goes_names_the_row_that_stays() -> None:
    """The equal twin r2 itself goes for r1: its copy r3 and its variant r4 are as near r1, by the rule and score named."""
    near = LONG.replace("evening", "evenings")
    rows = [row(t, id=f"r{i}", line=i) for i, t in enumerate([LONG, near, near, near + "!"], 1)]
    found = deduplicate(rows, by_letters())
    assert [(r.line, str(r.reason), r.kept) for r in found.rejected] == [
        (2, "duplicate_near", "r1"),
        (3, "duplicate_exact", "r1"),
        (4, "duplicate_normalized", "r1"),
    ]
    assert len({r.score for r in found.rejected}) == 1
    assert all((r.rule or "").endswith(found.rejected[0].rule or "") for r in found.rejected)


def test_exact_counts_what_has_an_equal_row_before_it() -> None:
    """Whatever becomes of that row: of three equal ones after a variant, two."""
    rows = [row(text, id=f"r{i}", line=i) for i, text in enumerate(["play x now", *["Play x now."] * 3])]
    assert reasons(rows) == [
        (1, "duplicate_normalized", "r0"),
        (2, "duplicate_exact", "r0"),
        (3, "duplicate_exact", "r0"),
    ]


def test_numbers_are_never_near() -> None:
    """D6: with digits deleted, "table for 2" is "table for 3"."""
    two, three = (row(f"{LONG} at number {n}", "a", line=n) for n in (2, 3))
    assert jaccard(near_text(two), near_text(three)) >= 0.9
    assert reasons([two, three]) == []
    assert normalized("table for 2") != normalized("table for 3")
    assert alphanumeric("30.5") == "305"


def test_equal_answers_do_not_lift_unlike_inputs() -> None:
    """D10: the answer is compared, never mixed into the similarity."""
    answer = "a very long answer " * 50
    assert reasons([row("where is my card", answer), row("when does it open", answer, 2)]) == []


def test_new_rows_do_not_change_old_verdicts() -> None:
    """D9: cleanlab's threshold moves with the median distance."""
    rows = [row(LONG, line=1), row(LONG + "s", line=2), row("where is the nearest bank", line=3)]
    more = [
        row(f"something else about topic {chr(97 + i)}{chr(97 + j)}", line=10 + 26 * i + j)
        for i in range(8)
        for j in range(26)
    ]
    before = reasons(rows)
    assert before
    assert [r for r in reasons([*rows, *more]) if r[0] < 10] == before


def test_system_text_and_tools_must_be_equal() -> None:
    tools = [{"name": "f"}], [{"name": "g"}]
    assert reasons([row(LONG, tools=tools[0]), row(LONG, line=2, tools=tools[1])]) == []
    assert reasons([row(LONG, system="name the intent"), row(LONG + "s", line=2, system="translate this")]) == []
    assert len(reasons([row(LONG, system="Translate!"), row(LONG + "s", line=2, system="translate")])) == 1


def test_tool_calls_are_the_answer() -> None:
    def called(arguments: str, identity: str, line: int) -> Row:
        call = {"id": identity, "type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return parse_row({"messages": [{"role": "user", "content": LONG}, answer]}, "f.jsonl", line)

    same = [called('{"a":1,"b":2}', "c1", 1), called('{"b": 2, "a": 1}', "c2", 2)]
    other = [called('{"a":1}', "c1", 1), called('{"a":2}', "c1", 2)]
    assert [r[1] for r in reasons(same)] == ["duplicate_normalized"]
    assert reasons(other) == []
    assert len(deduplicate(other, by_letters()).conflicts) == 1


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ('{"a": 1}', '{"a": 1.0}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ("card  lost\n", "card lost", True),
        ("Card lost", "card lost", False),
        ("[1]", "[1 ]", True),
        ("{oops", "{oops", True),
    ],
)
def test_when_answers_are_the_same(a: str, b: str, same: bool) -> None:
    assert (answer_key(row("x", a)) == answer_key(row("x", b))) is same


def test_longest_keeps_the_longest_and_the_order_of_rows() -> None:
    rows = [row(LONG, line=1), row("something else entirely", line=2), row(LONG + "!!!", line=3)]
    assert [r.line for r in deduplicate(rows, by_letters(keep="longest")).kept] == [2, 3]
    assert [r.line for r in deduplicate(rows, by_letters()).kept] == [1, 2]


def test_best_keeps_the_highest_number_under_a_key() -> None:
    rows = [row(LONG, line=1, tags={"score": 0.5}), row(LONG + "s", line=2, score=7), row(LONG + "!", line=3, score=2)]
    found = deduplicate(rows, by_letters(keep="best:score"))
    assert [r.line for r in found.kept] == [2]
    assert {item.kept for item in found.rejected} == {rows[1].id}
    with pytest.raises(UserError, match="no number under 'score'") as caught:
        deduplicate([*rows, row("another", line=9, score="7")], by_letters(keep="best:score"))
    assert caught.value.where == "f.jsonl:9"


def test_the_rules_can_be_turned_off() -> None:
    rows = [row(LONG, id="a"), row(LONG, id="b", line=2), row(LONG + "!", line=3), row(LONG + "s", line=4)]
    assert [r[1] for r in reasons(rows, exact=False, normalized=False, near=False)] == []
    assert [r[1] for r in reasons(rows, near=False)] == ["duplicate_exact", "duplicate_normalized"]


def test_losing_over_half_of_a_source_stops() -> None:
    rows = [row(LONG, line=i, id=f"r{i}") for i in range(5)]
    found = deduplicate(rows, by_letters())
    with pytest.raises(UserError, match="would remove 4 of 5 rows") as caught:
        refuse_mass_removal(rows, found.rejected, yes=False)
    assert "--yes" in (caught.value.hint or "")
    refuse_mass_removal(rows, found.rejected, yes=True)
    refuse_mass_removal(rows, found.rejected[:2], yes=False)


def test_twins_are_met_by_their_bands() -> None:
    """Of texts at 0.9 and above, all but one in ten thousand share a band: here all of 200."""
    texts = [f"{LONG} {chr(97 + i % 26)}{chr(97 + i // 26)} and bring the bill to the door" for i in range(200)]
    twins = [text[:-1] for text in texts]
    keys, others = list(band_keys(texts)), list(band_keys(twins))
    met = sum(bool(set(a) & set(b)) for a, b in zip(keys, others, strict=True))
    assert met == 200
    assert all(jaccard(a, b) >= 0.9 for a, b in zip(texts, twins, strict=True))


@pytest.mark.parametrize(("threshold", "width"), [(1, 8), (0.9, 8), (0.85, 8), (0.84, 7), (0.75, 5), (0.7, 4)])
def test_bands_meet_pairs_at_the_threshold(threshold: float, width: int) -> None:
    assert band_width(threshold) == width
    assert 1 - (1 - threshold**width) ** (128 // width) >= 0.99


def test_twins_at_a_low_threshold_are_found() -> None:
    """All that a comparison of every pair gives; bands of 8 missed one in four."""
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    texts = [draw.choices(words, k=14) for _ in range(300)]
    twins = [" ".join([*text[:12], *draw.choices(words, k=2)]) for text in texts]
    rows = [row(text, id=f"r{n}", line=n) for n, text in enumerate([*(" ".join(text) for text in texts), *twins])]
    near = [n for n, text in enumerate(texts) if similarity(" ".join(text), twins[n]) >= 0.7]
    assert len(near) > 100
    found = deduplicate(rows, by_letters(near_threshold=0.7)).rejected
    assert [item.line - 300 for item in found] == near
    met = leakage(rows[:300], rows[300:], near=judge("lexical", 0.7))
    assert met.counts["near"] == len(near)


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["", "a", "abc", "abcd", LONG, "日本語のテキスト", "\ud800 lone"] * 3
    together = list(band_keys(texts))
    assert together == [next(iter(band_keys([text]))) for text in texts]


def test_full_buckets_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunegate.train.data.near.BUCKET_MOST", 2)
    index = NearIndex()
    (keys,) = band_keys([LONG])
    for _ in range(5):
        index.add(LONG, keys)
    assert len(index.near(LONG, keys, 0.9)) == 2
    assert index.skipped == 3 * 16


def test_normalisation_rules() -> None:
    assert lower_spaces("  A\t b\u00a0c ") == "a b c"
    assert normalized("Ｗｈａｔ’s  “up”—now?") == "what s up now"
    assert normalized("> 30 EUR") != normalized("< 30 EUR")
    assert normalized("Straße") == normalized("STRASSE")
    assert prompt_key(row("a", system="x")) != prompt_key(row("a", system="y"))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"near_threshold": 0.3}, "--near-threshold"),
        ({"near_threshold": 1.3}, "--near-threshold"),
        ({"keep": "best"}, "--keep"),
        ({"keep": "best:"}, "--keep"),
        ({"keep": "KEY"}, "--keep"),
        ({"near_model": "no/such-encoder"}, "no/such-encoder"),
    ],
)
def test_bad_settings(options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        deduplicate([row(LONG)], DedupConfig(**options))
    assert caught.value.where == where


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not there")
@pytest.mark.parametrize(("name", "exact", "normalised", "conflicts"), [("snips", 167, 79, 5), ("banking77", 4, 24, 1)])
def test_known_counts_of_real_data(name: str, exact: int, normalised: int, conflicts: int) -> None:
    rows = list(read_rows(DATA / name / "train.jsonl"))
    found = deduplicate(rows, DedupConfig(near=False))
    assert found.count(Reason.DUPLICATE_EXACT) == exact == len(rows) - len({canonical_json(r.messages) for r in rows})
    assert found.count(Reason.DUPLICATE_NORMALIZED) == normalised
    assert len(found.conflicts) == conflicts
    assert len(found.kept) + len(found.rejected) == len(rows)
