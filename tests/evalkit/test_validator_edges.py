"""Answers and tasks at the edges of what a validator takes: several calls, no query, odd file names, order, blanks, signs."""

import json
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.validators.kinds import make
from tunegate.evalkit.validators.set_match import common_in_order
from tunegate.evalkit.validators.tool_call import matched


def row(expected="x", tool_calls=None, **more):
    answer = {"role": "assistant", "content": expected, **({"tool_calls": tool_calls} if tool_calls else {})}
    return parse_row({"messages": [{"role": "user", "content": "q"}, answer], **more}, "d.jsonl", 1)


def validator(kind, **options):
    return make({"name": "v", "kind": kind, **options}, where="t", base=Path())


def judge(kind, text, expected="x", options=None, **more):
    return validator(kind, **(options or {})).judge(Answer(text=text), row(expected, **more))


# --- tool_call: every expected call ---


def native(name, **arguments):
    return {"type": "function", "id": "c", "function": {"name": name, "arguments": json.dumps(arguments)}}


WEATHER, TIME, OTHER = native("get_weather", city="Rome"), native("get_time", zone="CET"), native("get_news")


def called(*calls, expected=(WEATHER, TIME), options=None, **more):
    return validator("tool_call", **(options or {})).judge(
        Answer(tool_calls=list(calls)), row("", list(expected), **more)
    )


def test_all_expected_calls_are_compared_in_any_order():
    assert called(WEATHER, TIME).passed
    assert called(TIME, WEATHER).passed
    twice = (WEATHER, WEATHER)
    assert called(*twice, expected=twice).passed
    assert not called(WEATHER, TIME, expected=twice).passed, "one given call does not stand for two"
    assert called(WEATHER, expected=(WEATHER,)).passed


@pytest.mark.parametrize(
    ("calls", "cause", "words"),
    [
        ((WEATHER,), "missing_call", 'calls: 2 expected, got 1; missing get_time({"zone": "CET"})'),
        ((WEATHER, TIME, OTHER), "extra_call", "calls: 2 expected, got 3; too many get_news({})"),
        ((TIME, WEATHER, WEATHER), "extra_call", 'too many get_weather({"city": "Rome"})'),
        (
            (native("get_weather", city="Oslo"),),
            "missing_call",
            "missing get_time",
        ),
        (
            (TIME, native("get_weather", city="Oslo")),
            "wrong_field",
            'get_weather: /arguments/city: expected "Rome", got "Oslo"',
        ),
        ((WEATHER, OTHER), "wrong_function", "get_time: expected the function 'get_time', got \"get_news\""),
    ],
)
def test_the_reason_names_the_call_that_lacks_or_is_too_many(calls, cause, words):
    verdict = called(*calls)
    assert (verdict.passed, verdict.parsable, verdict.cause) == (False, True, cause)
    assert words in verdict.reason


def test_a_second_call_is_too_many_where_one_is_admissible():
    sets = [{"name": "f", "arguments": {"n": [1, 2]}}, {"name": "g", "arguments": {"n": [3]}}]
    assert called(native("f", n=2), expected=(native("f", n=1),), accept=sets).passed
    verdict = called(native("f", n=2), native("g", n=3), expected=(native("f", n=1),), accept=sets)
    assert (verdict.passed, verdict.cause) == (False, "extra_call")
    assert "1 expected, got 2" in verdict.reason


def test_a_call_of_lists_is_itself_right_where_nothing_else_is_admissible():
    lists = (native("f", tags=["a", "b"]),)
    assert called(*lists, expected=lists).passed
    assert not called(native("f", tags="a"), expected=lists).passed


def test_overlapping_sets_are_matched_as_far_as_they_can_be():
    """The first call that fits the wide set is the only one for the narrow set."""
    both = (native("f", city=["X", "Y"]), native("f", city=["X"]))
    assert called(native("f", city="X"), native("f", city="Y"), expected=both, options={"form": "sets"}).passed
    assert matched([[0, 1], [0]]) == {0: 1, 1: 0}
    assert len(matched([list(range(2000))] * 2000)) == 2000


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_a_call_without_arguments_may_leave_their_text_empty(arguments):
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    assert called(call, expected=(native("now"),)).passed
    assert called(native("now"), expected=(call,)).passed
    assert called(call, expected=(native("now", zone="CET"),)).cause == "missing_field"


@pytest.mark.parametrize("kind", ["set", "tool_call", "json_equal"])
def test_an_answer_nested_deeply_is_wrong_and_ends_no_run(kind):
    deep = "[" * 900 + "]" * 900
    call = '{"name": "f", "arguments": {"a": %s}}'
    text, expected = (call % deep, call % 1) if kind == "tool_call" else (deep, "1")
    verdict = judge(kind, text, expected)
    assert not verdict.passed
    assert "too deeply" in verdict.reason


# --- sql ---


def database(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2);")
    connection.close()
    return {"database": str(path)}


@pytest.mark.parametrize("text", ["", "  \n", "-- nothing", "/* nothing */"])
def test_sql_without_a_query_is_no_query_that_finds_nothing(tmp_path, text):
    options = database(tmp_path / "d.sqlite")
    none = "SELECT a FROM t WHERE a = 3"
    assert judge("sql", none, none, options).passed
    verdict = judge("sql", text, none, options)
    assert (verdict.passed, verdict.parsable) == (False, False)
    assert "no query in it" in verdict.reason
    with pytest.raises(UserError, match="no query in it"):
        validator("sql", **options).check_row(row(text or "  "))


@pytest.mark.parametrize("name", ["a#b.sqlite", "a?mode=rwc.sqlite", "a%23b.sqlite", "ä b.sqlite"])
def test_sql_opens_the_file_of_that_name_and_makes_none(tmp_path, name):
    options = database(tmp_path / name)
    assert judge("sql", "SELECT 1 + 1", "SELECT max(a) FROM t", options).passed
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_sql_says_which_database_cannot_be_opened(tmp_path):
    options = database(tmp_path / "d.sqlite")
    made = validator("sql", **options)
    (tmp_path / "d.sqlite").unlink()
    with pytest.raises(UserError, match="cannot be opened") as caught:
        made.check_row(row("SELECT 1"))
    assert caught.value.where == options["database"]


@pytest.mark.parametrize("words", ["ORDER BY", "ORDER  BY", "order\nby", "Order\t By"])
def test_sql_knows_order_by_however_it_is_spaced(tmp_path, words):
    options, expected = database(tmp_path / "d.sqlite"), f"SELECT a FROM t {words} a"
    assert judge("sql", "SELECT a FROM t ORDER BY a", expected, options).passed
    assert not judge("sql", "SELECT a FROM t ORDER BY a DESC", expected, options).passed


# --- json_equal, partial ---


@pytest.mark.parametrize(
    ("expected", "got", "ignore", "score"),
    [
        ('{"a": 1, "b": 2, "c": 3}', "null", [], 0.0),
        ('{"a": 1, "b": 2, "c": 3}', '"foo"', [], 0.0),
        ('{"a": {"x": 1, "y": 2, "z": 3}}', "{}", [], 0.0),
        ('{"a": {"x": 1, "y": 2, "z": 3}}', '{"a": 5}', [], 0.0),
        ('{"a": {"x": 1, "y": 2, "z": 3}, "b": 4}', '{"b": 4}', [], 0.25),
        ('{"a": 1, "id": 5}', '{"a": 2, "id": 5}', ["/id"], 0.0),
        ('{"a": 1, "b": 2, "id": 5}', '{"a": 1, "b": 3}', ["/id"], 0.5),
        ('{"a": {"x": 1, "id": 5}, "b": 2}', '{"b": 2}', ["/a/id"], 0.5),
        ('{"a": {"id": 5}, "b": 2}', '{"b": 2}', ["/a/id"], 0.5),
        ('{"a/b": {"id": 5, "x": 1}, "b": 2}', "{}", ["/a~1b/id"], 0.0),
        ("[1, 2, 3, 4]", "[1, 2, 4]", [], 0.5),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2, "c": {"d": 3, "e": 4}}', [], 0.5),  # one field too many costs one
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3, "c": 4}', [], 0.0),
        ('{"a": 1}', '{"c": 1, "d": 2}', [], 0.0),
    ],
)
def test_json_equal_partial_is_the_share_of_expected_fields(expected, got, ignore, score):
    verdict = judge("json_equal", got, expected, {"partial": True, "ignore": ignore})
    assert not verdict.passed
    assert verdict.score == pytest.approx(score)
    assert judge("json_equal", expected, expected, {"partial": True, "ignore": ignore}).score == 1.0
    assert judge("json_equal", got, expected, {"ignore": ignore}).score == 0.0


def test_json_equal_partial_takes_the_best_of_what_is_admissible():
    accept = [{"a": {"x": 1, "y": 2, "z": 3}}, {"a": 5, "b": 6, "c": 7}]
    assert judge("json_equal", '{"a": 5}', options={"partial": True}, accept=accept).score == pytest.approx(1 / 3)


# --- python ---


def of_mine(folder, monkeypatch, body):
    (folder / "mine_edges.py").write_text(body)
    monkeypatch.delitem(sys.modules, "mine_edges", raising=False)
    return make({"name": "v", "kind": "python", "function": "mine_edges:right"}, where="t", base=folder)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\ndef right(text, row): sys.exit(0)\n", "raised SystemExit: 0"),
        ("import sys\nsys.exit(0)\ndef right(text, row): return True\n", "SystemExit: 0"),
        ("import pytest\ndef right(text, row): pytest.fail('not equal')\n", "raised Failed: not equal"),
        ("raise GeneratorExit\n", "cannot import 'mine_edges:right': GeneratorExit"),
    ],
)
def test_python_that_exits_ends_in_an_error_not_in_a_pass(tmp_path, monkeypatch, body, words):
    with pytest.raises(UserError, match=words):
        of_mine(tmp_path, monkeypatch, body).judge(Answer(text="x"), row())


def test_python_prints_to_standard_error(tmp_path, monkeypatch, capsys):
    made = of_mine(tmp_path, monkeypatch, "print('read')\ndef right(text, row):\n    print('asked')\n    return True\n")
    assert made.judge(Answer(text="x"), row()).passed
    print("own")
    assert capsys.readouterr() == ("own\n", "read\nasked\n")


def test_python_gets_a_copy_of_the_row_and_leaves_the_process_as_it_was(tmp_path, monkeypatch, capfd):
    """A function that tidies the row up in place, judges by a program that prints, and works in a folder of its own."""
    body = """import os, subprocess, tempfile
def right(text, row):
    for message in row["messages"]:
        message["content"] = message["content"].lower()
    subprocess.run(["echo", "judged"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
    return True
"""
    asked, here = row(), Path.cwd()
    before = asked.to_json()
    before["messages"] = [dict(message) for message in before["messages"]]
    assert of_mine(tmp_path, monkeypatch, body).judge(Answer(text="x"), asked).passed
    assert (asked.to_json(), Path.cwd()) == (before, here)
    assert capfd.readouterr() == ("", "judged\n")


def test_python_in_threads_gives_standard_output_back(tmp_path, monkeypatch, capsys):
    """Where the task asks a judge too, items are judged in threads; standard output is one for all of them."""
    body = "import time\ndef right(text, row):\n    print('asked')\n    time.sleep(float(text))\n    return True\n"
    made, out = of_mine(tmp_path, monkeypatch, body), sys.stdout
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.judge, Answer(text="0.05"), row())
        time.sleep(0.02)
        second = pool.submit(made.judge, Answer(text="0.1"), row())
        assert first.result().passed
        assert second.result().passed
    assert sys.stdout is out
    assert capsys.readouterr() == ("", "asked\nasked\n")


# --- number ---


@pytest.mark.parametrize(
    ("text", "expected", "which", "passed"),
    [
        ("The answer is \N{MINUS SIGN}5", "-5", "last", True),
        ("The answer is \N{MINUS SIGN}5", "5", "last", False),
        ("-5", "\N{MINUS SIGN}5", "last", True),
        ("10\N{MINUS SIGN}3", "3", "last", True),  # a sign after a digit is no sign, as with -
        ("3 of 5", "3 of 5", "first", True),
        ("3 of 5", "3 of 5", "last", True),
        ("5", "3 of 5", "first", False),
        (".5e3", "500", "last", True),
        ("-.5E-1", "-0.05", "last", True),
        ("0.5e3", "500", "last", True),
        (".5ex", "0.5", "last", False),
    ],
)
def test_number_reads_both_texts_by_one_rule(text, expected, which, passed):
    made = validator("number", which=which)
    made.check_row(row(expected))
    assert made.judge(Answer(text=text), row(expected)).passed is passed


def test_number_only_needs_one_number_in_what_is_expected():
    with pytest.raises(UserError, match="holds several numbers") as caught:
        validator("number", which="only").check_row(row("3 of 5"))
    assert caught.value.line().startswith("d.jsonl:1: ")
    validator("number", which="only").check_row(row("3 of 5", accept=["3 of 5", 3]))
    with pytest.raises(UserError, match="holds no number"):
        validator("number", which="only").check_row(row("none"))


# --- set ---


def test_set_needs_a_separator():
    with pytest.raises(UserError, match="cannot stand between members") as caught:
        validator("set", separator="")
    assert caught.value.where == "v separator"


def test_set_normalises_members_of_admissible_lists():
    options = {"normalize": ["strip", "case"]}
    assert judge("set", "A,B", options=options, accept=[["A", "B"]]).passed
    assert judge("set", "a, b", options=options, accept=[["A", " B "]]).passed
    assert not judge("set", "a,b", accept=[["A", "B"]]).passed


@pytest.mark.parametrize(
    ("text", "expected", "score", "reason"),
    [
        ("b,a", "a,b", 0.5, "in another order"),
        ("a,a,b", "a,b", 0.8, 'missing [], too many ["a"]'),
        ("a", "a,b", 2 / 3, 'missing ["b"], too many []'),
        ("c,b,a,d", "a,b,c", 2 / 7, 'missing [], too many ["d"]'),
    ],
)
def test_set_in_order_scores_what_is_in_order(text, expected, score, reason):
    verdict = judge("set", text, expected, {"ordered": True, "partial": True})
    assert (verdict.passed, verdict.score, verdict.reason) == (False, pytest.approx(score), reason)
    assert judge("set", expected, expected, {"ordered": True, "partial": True}).score == 1.0


def test_set_without_order_counts_a_member_once():
    assert judge("set", "b,a,a", "a,b", {"partial": True}).passed
    assert judge("set", "a,a,c", "a,b", {"partial": True}).score == 0.5
    assert judge("set", "z,y,x", "a", {}).reason == 'missing ["a"], too many ["z", "y", "x"]'
    nothing = judge("set", "a", options={"partial": True}, accept=[])
    assert (nothing.score, nothing.reason) == (0.0, "the row accepts nothing")


def test_common_in_order_of_lists():
    words = lambda text: [("text", letter) for letter in text]  # noqa: E731
    for one, two, length in (("abcbdab", "bdcaba", 4), ("", "a", 0), ("a", "", 0), ("aaa", "aa", 2), ("abc", "xyz", 0)):
        assert common_in_order(words(one), words(two)) == length
        assert common_in_order(words(two), words(one)) == length


# --- normalisations ---


@pytest.mark.parametrize(
    ("text", "expected", "steps"),
    [
        ("cat.", "cat", ["strip", "case", "punctuation"]),
        ("cat", "(cat)", ["strip", "punctuation"]),
        ("yes, sir", "yes sir", ["punctuation"]),
        ("The cat", "cat", ["strip", "case", "articles"]),
        ("on the mat", "on mat", ["strip", "articles"]),
        ("A cat, the cat!", "cat cat", ["strip", "articles", "punctuation"]),
    ],
)
def test_what_a_step_takes_out_leaves_no_blank(text, expected, steps):
    assert judge("exact_match", text, expected, {"normalize": steps}).passed
    assert judge("any_of", text, expected, {"normalize": steps}).passed
    assert not judge("exact_match", "dog", expected, {"normalize": steps}).passed
