"""When two rows ask the same and when they teach the same: every learnt answer counts, operators count, and the two sides of a
split are compared and told of truly."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.commands import run
from tunegate.core.rows import Row, parse_row
from tunegate.train.data import near, twins
from tunegate.train.data.cli import app
from tunegate.train.data.dedup import DedupConfig, contradictions, deduplicate
from tunegate.train.data.normalize import input_key
from tunegate.train.data.sides import without_leaks

LEXICAL = DedupConfig(near_model="lexical")
LONG = "Is a laptop from the online outlet, opened and used for a week, to be taken back under our policy"


def turns(*texts: str | dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation: the user's turns and the assistant's, in turn; an object adds its keys to a turn."""
    said = [{"content": text} if isinstance(text, str) else text for text in texts]
    return [{"role": ("user", "assistant")[at % 2], **turn} for at, turn in enumerate(said)]


def rows(*conversations: list[dict[str, Any]], **more: Any) -> list[Row]:
    return [parse_row({"messages": m, **more}, "f.jsonl", line) for line, m in enumerate(conversations, 1)]


def written(path: Path, conversations: list[list[dict[str, Any]]], **more: Any) -> str:
    path.write_text("".join(json.dumps({"messages": m, **more}) + "\n" for m in conversations))
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> dict[str, Any]:
    assert run(app, prog="ft data", argv=[*map(str, argv), "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def call(name: str) -> dict[str, Any]:
    calls = [{"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}]
    return {"content": "", "tool_calls": calls}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes, it is.", "No, it is not."),
        ("a*b", "a/b"),
        ("x = [1]", "X = (1)"),
        ({"content": "42", "reasoning_content": "by A"}, {"content": "42", "reasoning_content": "by B"}),
        (call("take_back"), call("refuse")),
    ],
)
def test_an_earlier_answer_that_contradicts_is_a_conflict(one: Any, other: Any) -> None:
    found = deduplicate(rows(turns(LONG, one, "Thanks", "ok"), turns(LONG, other, "Thanks", "ok")), LEXICAL)
    assert (len(found.kept), len(found.conflicts), len(found.contrast_pairs)) == (2, 1, 0)
    near_ones = deduplicate(rows(turns(LONG, one, "Thanks", "ok"), turns(LONG + "y", other, "Thanks", "ok")), LEXICAL)
    assert (len(near_ones.kept), len(near_ones.contrast_pairs)) == (2, 1)


def test_the_same_answers_on_the_way_are_still_a_duplicate() -> None:
    found = deduplicate(rows(turns(LONG, "Yes", "Thanks", "ok"), turns(LONG + "!", "Yes ", "thanks", "ok")), LEXICAL)
    assert [item.reason for item in found.rejected] == ["duplicate_normalized"]
    found = deduplicate(rows(turns(LONG, "Yes", "Thanks", "ok"), turns(LONG + "y", "Yes", "Thanks", "ok")), LEXICAL)
    assert [item.reason for item in found.rejected] == ["duplicate_near"]


@pytest.mark.parametrize("place", [1, 3])
def test_another_weight_is_neither_a_duplicate_nor_a_conflict(place: int) -> None:
    texts: list[Any] = [LONG, "Yes", "Thanks", "ok"]
    unlearnt = [*texts[:place], {"content": texts[place], "weight": 0}, *texts[place + 1 :]]
    found = deduplicate(rows(turns(*texts), turns(*unlearnt)), LEXICAL)
    assert (len(found.kept), len(found.conflicts)) == (2, 0)
    given = [*texts[:place], {"content": texts[place], "weight": 1}, *texts[place + 1 :]]
    assert len(deduplicate(rows(turns(*texts), turns(*given)), LEXICAL).rejected) == 1


@pytest.mark.parametrize("pair", ["**Apple** is|Apple is", "on/off|on off", "#tag|tag", "* a list|a list"])
def test_emphasis_and_headings_are_not(pair: str) -> None:
    one, other = pair.split("|")
    train, held_out = rows(turns(f"Say what {one} means", "5")), rows(turns(f"say what {other} means", "5"))
    assert len(without_leaks(train, held_out)[1]) == 1


@pytest.mark.parametrize("pair", ["12 * 1|12 - 1", "12 / 1|12 1", "50%|50", "C#|C", "!x|x", "a & b|a b", "me@x|me x"])
def test_operators_are_asked(pair: str) -> None:
    one, other = pair.split("|")
    train, held_out = rows(turns(f"What is {one}?", "5")), rows(turns(f"what is {other}", "5"))
    assert deduplicate([*train, *held_out], LEXICAL).rejected == []
    assert without_leaks(train, held_out) == (train, [])


def test_brackets_are_asked_where_there_are_operators() -> None:
    assert len({input_key(row) for row in rows(turns("(1 + 2) * 3", "9"), turns("1 + (2 * 3)", "7"))}) == 2


@pytest.mark.parametrize("pair", ["Hello!|Hello", "Hello! How?|hello, how", "a card - what|A card, what", "(so)|so"])
def test_what_only_ends_or_parts_a_sentence_is_not_asked(pair: str) -> None:
    one, other = pair.split("|")
    train, held_out = rows(turns(one, "5")), rows(turns(other, "5"))
    assert len(deduplicate([*train, *held_out], LEXICAL).rejected) == 1
    assert len(without_leaks(train, held_out)[1]) == 1


def test_prepare_keeps_what_asks_for_another_operation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sums = [turns(f"What is {n} {op} 3?", f"{n}{op}") for n in range(40) for op in "+-*/"]
    source = written(tmp_path / "a.jsonl", sums)
    found = asked(capsys, "prepare", source, "--out", tmp_path / "d", "--near-model", "lexical")
    assert (found["rejected"], found["conflicts"], found["train"] + found["eval"]) == ({}, 0, 160)


def test_grams_are_made_once_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def grams(text: str) -> frozenset[str]:
        made.append(text)
        return near.grams(text)

    monkeypatch.setattr(near, "_grams", near._Memo(grams))
    texts = [f"Please book me a table in {chr(97 + i)}{chr(98 + i)} tonight" for i in range(20)]
    assert all(near.jaccard(a, b) > 0.5 for a in texts for b in texts)
    assert made == texts
    monkeypatch.setattr(near, "MEMO_MOST", 100)
    memo = near._Memo(near.grams)
    assert all(memo[text] == near.grams(text) for text in texts * 2)
    assert sum(map(len, memo)) <= 100


def test_the_near_step_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    some = rows(*(turns(f"{LONG} {i}", "a") for i in range(5)))
    deduplicate(some, LEXICAL)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(twins, "BLOCK", 2)
    deduplicate(some, LEXICAL)
    assert "near duplicates: rows compared: 5/5 after" in capsys.readouterr().err


def filler(n: int) -> list[list[dict[str, Any]]]:
    return [turns(f"{word} number {n * 7}", f"answer {word} {n}") for n in range(n) for word in ("apple", "river")]


def test_copies_on_both_sides_are_called_what_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [json.dumps({"messages": m, "group": f"g{at}"}) for at, m in enumerate([*filler(40), *filler(40)])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines).replace('"group"', '"topic"'))
    source = str(tmp_path / "a.jsonl")
    options = ("--group", "topic", "--out", tmp_path / "d", "--yes")
    lines = [line.replace('"group"', f'"id": "r{at}", "topic"') for at, line in enumerate(lines)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = asked(capsys, "split", source, *options)
    assert found["same_input"] > 10
    assert found["same_user_text"] == 0
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "d" / "pairs.jsonl").read_text().splitlines()]
    assert kinds.count("same_input") == found["same_input"]
    assert run(app, prog="ft data", argv=["split", source, *map(str, options), "--force"]) == 0
    said = capsys.readouterr().out
    assert "have the same input" in said
    assert "under another prompt" not in said


def test_near_twins_across_the_sides_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    twins_ = [
        turns(f"{LONG} at the branch in {a}{b}{tail}", "a") for a in "abcdefgh" for b in "uvwxyz" for tail in ("", "y")
    ]
    source, out = written(tmp_path / "a.jsonl", twins_), tmp_path / "d"
    found = asked(
        capsys, "prepare", source, "--out", out, "--near-model", "lexical", "--near-threshold", "0.95", "--yes"
    )
    leaks = asked(
        capsys, "leakage", "--train", out, "--eval", out, "--near-model", "lexical", "--near-threshold", "0.95"
    )
    assert found["near_in_eval"] == leaks["near"] > 5
    argv = ["prepare", source, "--out", str(out), "--near-model", "lexical", "--yes", "--force"]
    assert run(app, prog="ft data", argv=argv) == 0
    assert "near twin in train" in " ".join(capsys.readouterr().out.split())
    assert asked(capsys, "prepare", source, "--out", tmp_path / "e", "--no-near")["near_in_eval"] is None


def test_eval_rows_that_no_model_can_pass_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [turns(f"{m[0]['content']}", a) for m in filler(30) for a in ("yes", "no")])
    found = asked(capsys, "prepare", source, "--out", tmp_path / "d", "--near-model", "lexical")
    assert found["eval_conflicts"] == found["eval"] / 2 > 5
    pairs = [json.loads(line) for line in (tmp_path / "d" / "pairs.jsonl").read_text().splitlines()]
    assert sum(pair["kind"] == "conflict_eval" for pair in pairs) == found["eval_conflicts"]


def test_what_contradicts_in_eval() -> None:
    assert len(contradictions(rows(turns("q", "a"), turns("Q?", "b"), turns("q", "a")))) == 2
    assert contradictions(rows(turns("q", "a"), turns("q", "a "), turns("12 - 1", "a"), turns("12 * 1", "b"))) == []
    accept = rows(turns("q", "a"), accept=["a", "b"]) + rows(turns("q", "b"), accept=["b"])
    assert contradictions(accept) == []
    assert len(contradictions([*accept, *rows(turns("q", "c"))])) == 1
    assert contradictions(rows(turns("q", "a", "r", "b"), turns("q", "other", "r", "c"))) == []  # another context
