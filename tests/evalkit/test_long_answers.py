"""Long answers, and prose around one: what is read of them, and in a time that grows with their length only."""

import time

import pytest

from tests.evalkit.test_validators import judge
from tunegate.evalkit.extract import extract
from tunegate.evalkit.validators.number import numbers

MB = 1_000_000


def test_the_last_number_of_a_long_answer_counts():
    """A text was cut at 100,000 characters: its last number was missed, and one at the cut was split."""
    thoughts = "so 7 apples, and then " * 10_000
    assert judge("number", f"{thoughts}42", "42").passed
    assert judge("number", f"{'x' * 99_998} 1234", "1234").passed
    assert not judge("number", f"{'x' * 99_998} 1234", "1").passed
    only = judge("number", f"42 {'x' * 200_000} 43", "42", {"which": "only"})
    assert (only.passed, only.reason[:9]) == (False, "2 numbers")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1" + "\u00a0234" * (MB // 4) + "x", 0),
        ("1" + ",234" * (MB // 4) + "x", 0),
        ("1" * MB + "x", 0),
        ("1e" * (MB // 2), 0),
        ("-" * MB, 0),
        ("1." * (MB // 2), 0),
        ("-$" * (MB // 2), 0),
        ("1" + "\u202f234" * (MB // 4), 1),
    ],
    ids=["groups", "commas", "digits", "exponents", "signs", "points", "currencies", "one number"],
)
def test_a_long_answer_is_read_once(text, found):
    """From each of a million characters' groups anew it would take hours."""
    start = time.process_time()
    assert len(numbers(text)) == found
    assert time.process_time() - start < 30


def test_a_number_of_many_digits_is_compared_and_told_short():
    """Beyond 999,999 digits the usual decimal context ends in an error."""
    many = "9" * (MB + 100)
    assert judge("number", many, many).passed
    assert judge("number", f"{many[:-1]}8", many, {"rel_tolerance": 0.1}).passed
    wrong = judge("number", many, "1")
    assert (wrong.passed, len(wrong.reason) < 200) == (False, True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('As in [1], the answer: {"a": 1}', '{"a": 1}'),
        ('Both [1][2, 3] say [{"a": 1}].', '[{"a": 1}]'),
        ('Set {x}: {"a": 1}', '{"a": 1}'),
        ('The set \\{1\\} "gives {"a": "}"}', '{"a": "}"}'),
        ("The answer is [1, 2], not [3].", "[1, 2]"),
        ('[true] and {"a": 1}', "[true]"),
        ('[] for {"a": 1}', "[]"),
        ('{"a": 1} or rather {"a": 2}', '{"a": 1}'),
        ('{a: {"b": 1}} is no JSON', '{a: {"b": 1}}'),
        ('[1] says {"a": ', "[1]"),
        ('says {"a": ', 'says {"a": '),
    ],
)
def test_json_in_prose_is_the_first_that_is_json_and_no_citation(text, found):
    assert extract(text, ("json_in_prose",)) == found


def test_prose_with_many_brackets_is_read_once():
    start = time.process_time()
    for text in ("[" * (MB // 4), "{x}" * (MB // 20), "[1]" * (MB // 20), '{"' * (MB // 8)):
        extract(text, ("json_in_prose",))
    assert time.process_time() - start < 30
