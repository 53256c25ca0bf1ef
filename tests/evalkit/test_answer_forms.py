"""Answers as models write them: blanks that are not JSON's, labels that a normalisation would leave empty, reasoning, signs."""

import sqlite3
from pathlib import Path

import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.evalkit.extract import thinking
from tunegate.evalkit.outcomes import Answer, Outcome, outcome_of
from tunegate.evalkit.validators.base import NotJsonError, strict_json
from tunegate.evalkit.validators.kinds import make
from tunegate.evalkit.validators.number import numbers
from tunegate.evalkit.validators.sql import is_ordered


def judge(kind, text, expected, **options):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": expected}]
    validator = make({"name": "v", "kind": kind, **options}, where="t", base=Path())
    return validator.judge(Answer(text=text), parse_row({"messages": messages}, "d.jsonl", 1))


@pytest.mark.parametrize("blank", ["\u00a0", "\u2028", "\u3000", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_the_blanks_of_json_stand_around_json(blank):
    for text in (blank + "{}", "{}" + blank):
        assert not judge("json", text, "{}").parsable
    with pytest.raises(NotJsonError):
        strict_json(blank + "[1]")
    assert strict_json(" \t\r\n[1]\r\n\t ") == [1]


@pytest.mark.parametrize(
    ("text", "expected", "steps"),
    [
        ("", "A", ["articles", "strip"]),
        ("the", "A", ["case", "articles"]),
        ("", "The", ["articles"]),
        ("-", "+", ["punctuation"]),
        ("...", "?", ["punctuation"]),
        ("", "A.", ["punctuation", "articles"]),
    ],
)
def test_a_label_that_a_step_would_empty_is_met_by_no_other(text, expected, steps):
    for kind in ("exact_match", "any_of", "set"):
        assert not judge(kind, text, expected, normalize=steps).passed, kind
        assert judge(kind, expected, expected, normalize=steps).passed, kind


@pytest.mark.parametrize("text", ["“cat”", "cat。", "¿cat?", "cat…", "«cat»", "–cat", "$cat^"])
def test_punctuation_is_that_of_every_script(text):
    assert judge("exact_match", text, "cat", normalize=["punctuation"]).passed


def test_an_apostrophe_of_either_form_is_punctuation():
    assert judge("exact_match", "don’t", "don't", normalize=["punctuation"]).passed


@pytest.mark.parametrize("text", ["The answer is B", "The answer is (B)"])
def test_a_pattern_of_two_forms_finds_either(text):
    pattern = r"is \((\w)\)|is (\w)"
    assert judge("regex", text, "B", pattern=pattern).passed
    assert not judge("regex", text, "A", pattern=pattern).passed


def test_a_group_without_part_in_the_match_finds_nothing():
    assert judge("regex", "b", "", pattern="(a)?b").passed
    assert not judge("regex", "b", "b", pattern="(a)?b").passed


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b", "b"),
        (" \n<think>\na\n</think>\n\nb", "\n\nb"),
        ("a, so b\n</think>\nb", "\nb"),  # the opening tag stood in the prompt
        ("<think>5 + 5 = 10", ""),  # cut off before there was an answer
        ("b <think>a</think>", "b <think>a</think>"),
        ("b", "b"),
    ],
)
def test_reasoning_is_no_answer(text, left):
    assert thinking(text) == left


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\u20135", [-5]),
        ("\uff0d5", [-5]),
        ("3\u20135", [3, 5]),
        ("1\u00a0234", [1234]),
        ("1\u202f234\u202f567.5", [1234567.5]),
        ("1 234", [1, 234]),
        ("2024\u00a0100", [2024, 100]),
    ],
)
def test_signs_and_thousands_as_typesetters_write_them(text, found):
    assert [float(n) for n in numbers(text)] == found


@pytest.fixture
def database(tmp_path):
    connection = sqlite3.connect(tmp_path / "d.sqlite")
    connection.executescript("create table t(id integer, v real); insert into t values(1, 0.1), (2, 0.2), (3, 0.3);")
    connection.close()
    return tmp_path / "d.sqlite"


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("select 0.1 + 0.2", "select 0.3", True),
        ("select v from t order by v desc", "select v from t", True),
        ("select sum(v) from t", "select 0.6", True),
        ("select 0.3000001", "select 0.3", False),
        ("select 9007199254740992", "select 9007199254740993", False),
        ("select id, 4 - id from t", "select id, row_number() over (order by id desc) from t", True),
        ("select id from t", "select id from (select id from t order by id desc)", True),
        ("select id from t order by 1 desc", "select id from t where 'order by' <> '' -- order by", True),
        ("select id from t order by id desc", "select id from t order by id", False),
    ],
)
def test_queries_that_find_the_same_rows(database, text, expected, right):
    assert judge("sql", text, expected, database=str(database)).passed is right


def test_order_is_that_of_the_query_itself():
    assert is_ordered("with x as (select 1) select * from x ORDER\n BY max(1, (2))")
    assert is_ordered("select ')' from t order by 1")
    assert not is_ordered("select group_concat(a order by (b)) /* order by */ from t")


@pytest.mark.parametrize(
    "text",
    ["I'm unable to help.", "I’m not able to do that.", "Sorry, but I'm unable to.", "I'm afraid I can't do that."],
)
def test_a_refusal_in_short_forms_is_named(text):
    verdict = judge("exact_match", text, "yes")
    assert outcome_of(Answer(text=text), verdict) is Outcome.REFUSED
    assert outcome_of(Answer(text="I'm able to help."), verdict) is Outcome.FAIL


@pytest.mark.parametrize("pointer", ["a", "", "a/b"])
def test_a_field_to_ignore_is_named_by_a_pointer(pointer):
    with pytest.raises(UserError, match="no JSON pointer") as found:
        judge("json_equal", "{}", "{}", ignore=["/ok", pointer])
    assert found.value.where == "v ignore[1]"


NOTHING = {"tool_call": ("No tool is of use here.", {"no_call": True}), "set": ("[]", {})}
NAMED = dict.fromkeys(("length", "max_tokens", "FinishReason.MAX_TOKENS"), Outcome.TRUNCATED)
NAMED |= dict.fromkeys(("content_filter", "SAFETY", "refusal"), Outcome.REFUSED)
CUT = [{"finish_reason": end} for end in (*NAMED, "abort", "tool_calls", "function_call")]


def nothing(kind, **answer):
    """What is said of an answer to a row that expects no call, or no members."""
    expected, options = NOTHING[kind]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": expected}]
    row = parse_row({"messages": messages}, "d.jsonl", 1)
    verdict = make({"name": "v", "kind": kind, **options}, where="t", base=Path()).judge(Answer(**answer), row)
    return verdict.passed, outcome_of(Answer(**answer), verdict)


@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.parametrize("end", [*CUT, {"finish_reason": "stop", "refusal": "I cannot help."}, {"refusal": "no"}])
def test_an_answer_that_was_cut_or_refused_does_not_say_that_there_is_nothing(kind, end):
    for text in ("", "[]", "<think>hmm f("):
        passed, outcome = nothing(kind, text=text, **end)
        named = NAMED.get(end.get("finish_reason"))
        named = Outcome.REFUSED if "refusal" in end else named or outcome
        assert (passed, outcome) == (False, named)


def test_nothing_is_said_by_a_whole_answer():
    for end in (None, "stop", "STOP", "FinishReason.STOP", "end_turn", "completed", "", "unknown"):
        assert nothing("set", text="[]", finish_reason=end)[0]
        assert nothing("set", text=" , ", finish_reason=end)[0]
        assert nothing("set", text="", finish_reason=end)[0] is (end not in (None, "", "unknown"))
        assert nothing("tool_call", text="It is sunny.", finish_reason=end)[0]
        assert not nothing("tool_call", text=" ", finish_reason=end)[0]  # says nothing at all
    call = {"function": {"name": "f", "arguments": "{}"}}
    assert nothing("tool_call", tool_calls=[call], finish_reason="tool_calls") == (False, Outcome.FAIL)


def test_where_an_empty_text_is_expected_one_that_ended_is_right():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]
    row = parse_row({"messages": messages}, "d.jsonl", 1)
    for kind, (_, options) in NOTHING.items():
        asked = make({"name": "v", "kind": kind, **options}, where="t", base=Path())
        ends = {end: asked.judge(Answer(finish_reason=end), row).passed for end in ("stop", "length", None)}
        assert ends == {"stop": True, "length": False, None: False}
