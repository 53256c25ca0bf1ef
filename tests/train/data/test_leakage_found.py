"""What leakage used to pass over: questions inside a conversation, and candidates that only their words bring together."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tunegate.core import embedding
from tunegate.core.rows import Row, parse_row, read_rows
from tunegate.train.data import words
from tunegate.train.data.beginnings import Beginnings, groups_of
from tunegate.train.data.dedup import DedupConfig
from tunegate.train.data.judge import judge
from tunegate.train.data.leakage import leakage
from tunegate.train.data.prepare import PrepareConfig, prepare
from tunegate.train.data.split import SplitConfig

NO_DEDUP = DedupConfig(exact=False, normalized=False, near=False)


def turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation: the user's turns and the assistant's, in turn."""
    said = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


def row(messages: list[dict[str, Any]], line: int = 1, **more: Any) -> Row:
    return parse_row({"messages": messages, **more}, "f.jsonl", line)


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def conversations(n: int) -> list[dict[str, Any]]:
    """Each as two rows: its first question and answer, and the whole."""
    draw = random.Random(1)
    made = [
        turns(*(" ".join(draw.choices(["card", "bank", "late", "fee", "rain"], k=9)) + f" {i}{j}" for j in range(4)))
        for i in range(n)
    ]
    return [{"messages": part} for whole in made for part in (whole[:2], whole)]


@pytest.mark.parametrize("only_split", [False, True])
def test_no_eval_row_stands_inside_a_train_conversation(tmp_path: Path, only_split: bool) -> None:
    source = written(tmp_path / "pre.jsonl", conversations(300))
    config = PrepareConfig(dedup=NO_DEDUP, keep_leaks=only_split)
    dataset, report = prepare([source], tmp_path / "out", config)
    train, held_out = (list(read_rows(path)) for path in (dataset.train_path, dataset.eval_path))
    learnt = {json.dumps(r.messages[:end]) for r in train for end in range(2, len(r.messages) + 1, 2)}
    assert report.rejected == {}
    assert (len(train), len(held_out)) == (500, 100)
    assert not [r for r in held_out if json.dumps(r.messages) in learnt]
    assert leakage(train, held_out).counts["exact"] == 0


def grouped(tmp_path: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]], **options: Any) -> Any:
    """`prepare` over rows whose groups put each on the side it is given for; returns the train lines and the report."""
    rows = [{"messages": m, "group": f"t{at}"} for at, m in enumerate(train)]
    rows += [{"messages": m, "group": "e"} for m in held_out]
    old = written(tmp_path / "old.jsonl", [{"messages": m} for m in held_out])
    config = PrepareConfig(dedup=NO_DEDUP, keep_eval=Path(old), **options)
    dataset, report = prepare([written(tmp_path / "in.jsonl", rows)], tmp_path / "out", config)
    return list(read_rows(dataset.train_path)), report


def test_a_conversation_that_asks_an_eval_question_on_its_way_is_no_train_row(tmp_path: Path) -> None:
    whole = turns("Where is my card?", "on its way", "thanks", "welcome")
    unlearnt = [dict(turn, weight=0) if turn["content"] == "on its way" else turn for turn in whole]
    other = turns("Where is my card?", "on its way", "thanks", "welcome", system="You are a pirate.")
    train, held_out = [whole, unlearnt, other, turns("another", "thing")], [turns("where is my card", "no idea")]
    nothing = SplitConfig(eval_fraction=0)
    kept, report = grouped(tmp_path, train, held_out, split=nothing)
    assert [r.messages for r in kept] == [tuple(m) for m in train[1:]]
    assert report.rejected == {"leaks_eval": 1}
    assert report.same_user_text == 1  # the pirate's


def test_what_leaks_by_option_is_listed(tmp_path: Path) -> None:
    whole = turns("Where is my card?", "on its way", "thanks", "welcome")
    train, held_out = [whole, turns("another", "thing")], [turns("where is my card", "no idea")]
    kept, report = grouped(tmp_path, train, held_out, split=SplitConfig(eval_fraction=0), keep_leaks=True)
    assert (len(kept), report.same_input, report.same_user_text) == (2, 1, 0)


WHOLE = turns("Where is my card?", "on its way", "and my pin?", "by post", "thanks", "welcome")


@pytest.mark.parametrize(
    ("texts", "rule", "same"),
    [
        (("Where is my card?", "on its way"), "exact", True),
        (("where  is my CARD?", "on its way"), "lower_spaces", True),
        (("where is my card!", "lost"), "normalized", False),
        (("whereis my card", "on its way"), "alphanumeric", True),
        (("Where is my card?", "elsewhere", "and my pin?", "by post"), "exact", True),
        (("and my pin?", "by post"), None, False),
        (("Where is my card?", "on its way", "thanks", "welcome"), None, False),
    ],
)
def test_each_question_of_a_conversation_counts(texts: tuple[str, ...], rule: str | None, same: bool) -> None:
    found = leakage([row(turns("of", "its own"), 1), row(WHOLE, 2)], [row(turns(*texts))])
    hits = [(hit.rule, hit.train_row.line, hit.same_answer) for hit in found.hits]
    assert hits == ([(rule, 2, same)] if rule else [])
    assert len(found.clean) == (rule in (None, "alphanumeric"))


def test_a_train_row_that_asks_less_is_no_leak() -> None:
    assert leakage([row(WHOLE[:2])], [row(WHOLE)]).hits == []


def test_groups() -> None:
    """A conversation goes with the shortest row it begins with; what was a group before stays one."""
    rows = [
        row(turns("a b", "1")),
        row(turns("A  b!", "x", "c", "2")),
        row(turns("a b", "1", "c", "2", "d", "3")),
        row(turns("e", "1", "f", "2")),
        row(turns("e", "1", "f", "2", "g", "3")),
        row(turns("h", "1", "i", "2")),
        row(turns("a b", "1", "c", "2"), group="g"),
        row(turns("j", "1"), group="g"),
        row(turns("j", "1", "k", "2")),
    ]
    assert groups_of(rows) == ["a b", "a b", "a b", "e f", "e f", "h i", "g", "g", "j k"]
    assert groups_of([row(turns("", "x"))])[0].startswith("[")


def test_long_conversations_are_cut_only_where_a_row_may_end() -> None:
    held_out = Beginnings([row(turns("q7", "x")), row([{"role": "assistant", "content": "hello"}])])
    long = turns(*(f"{'qa'[at % 2]}{at // 2}" for at in range(100)))
    assert [len(part.messages) for part in held_out.of(row(long))] == [16]
    greeted = [{"role": "assistant", "content": "hello"}, *turns("q7", "a")]
    assert list(held_out.of(row(greeted))) == []
    assert list(held_out.of(row(turns("q7", "a")))) == []


REST = ["my transfer to france was declined", "how old must one be to open an account", "the app asks for a photo",
        "top up by cheque", "is there a fee for cash", "my phone was stolen last night"]  # fmt: skip


def test_near_candidates_by_their_words() -> None:
    """Letters alone do not bring these together; `ft data dedup` found them, `ft data leakage` did not."""
    train = [row(turns(text, "a"), at) for at, text in enumerate(["where do i find my card pin", *REST])]
    held_out = [row(turns(text, "a")) for text in ("where can i locate my card pin", "", "where do i find my 2 pins")]
    found = leakage(train, held_out, near=judge())
    assert [(hit.eval_row, hit.rule, hit.train_row.line) for hit in found.hits] == [(held_out[0], "near", 0)]
    assert found.counts["near"] == 1
    assert found.hits[0].score >= 0.95
    assert leakage(train, held_out, near=judge("lexical")).hits == []
    assert leakage([], held_out, near=judge()).hits == []


def test_blank_texts_are_near_nothing() -> None:
    train = [row(turns(text, "a")) for text in ("", *REST)]
    assert leakage(train, [row(turns(" ", "a"))], near=judge()).hits == []


def test_words_of_others_are_compared_with_the_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of the others are alike, they take no place of the texts."""
    others = ["where can i locate my card pin"] * 3 + ["what is the weather"]
    more = ["play some music by bach", "book a table for tonight", "will it rain tomorrow", "turn off all lights"]
    texts = ["where do i find my card pin", *REST, *more, "where do i find my card pin"]
    expected = [[0, 11]] * 3 + [[]]
    monkeypatch.setattr(words, "MOST", 2)
    assert words.neighbours(texts, embedding.BUILTIN, others) == expected
    monkeypatch.setattr(words, "ROWS", 2)
    monkeypatch.setattr(words, "COLUMNS", 3)
    assert words.neighbours(texts, embedding.BUILTIN, others) == expected
    monkeypatch.setattr(words, "ROWS_MOST", len(texts))
    assert words.neighbours(texts, embedding.BUILTIN, others) == [[]] * 4


def test_a_greeting_makes_no_group_of_all_conversations_and_costs_none(tmp_path: Path) -> None:
    """One row that asks what all conversations begin with: they are no more alike than before."""
    talks = [{"messages": turns("Hi", "Hello!", f"question {i} about rain", f"answer {i}")} for i in range(400)]
    rows = [parse_row(talk, "f.jsonl", at) for at, talk in enumerate([*talks, {"messages": turns("hi", "Hello!")}], 1)]
    assert len(set(groups_of(rows))) == 401
    dataset, report = prepare([written(tmp_path / "in.jsonl", [*talks, {"messages": turns("hi", "Hello!")}])], tmp_path / "out",
                              PrepareConfig(dedup=NO_DEDUP))  # fmt: skip
    assert report.rejected == {}
    assert len(list(read_rows(dataset.eval_path))) >= 50
