"""The profile counts what is there."""

import pytest

from tunegate.core.profile import DatasetProfile, Lengths, is_json, script
from tunegate.core.rows import Row, parse_row


def row(user: str, answer: str, **more: object) -> Row:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return parse_row({"messages": messages, **more}, "f", 1)


ROWS = [
    row("abc", '{"a": 1}', tags={"kind": "x"}),
    row("abcd", "no json", tags={"kind": "x", "n": 3, "deep": {}}),
    row("привет", "[1]", schema={}),
    row("abc", "{", tools=[{"name": "f"}]),
]


def test_counts() -> None:
    profile = DatasetProfile.from_rows(ROWS, label_of=lambda r: r.tags.get("kind"), label_source="kind")
    assert profile.rows == 4
    assert profile.json_outputs == 0.5
    assert profile.labels == {"x": 2}
    assert profile.tags == {"kind": {"x": 2}, "n": {"3": 1}}
    assert (profile.schema_rows, profile.tool_rows, profile.system_prompts) == (1, 1, 0)
    assert profile.distinct_inputs == 4  # the last "abc" also offers a tool
    assert profile.scripts == {"LATIN": 3, "CYRILLIC": 1}
    assert profile.turns == {"2": 4}
    assert (profile.input_characters.longest, profile.input_characters.n) == (len("abc\n" + '[{"name": "f"}]'), 4)


def test_tokens_are_exact_only_with_a_tokenizer() -> None:
    estimated = DatasetProfile.from_rows(ROWS)
    assert not estimated.tokens_exact
    assert "estimate" in estimated.token_source
    exact = DatasetProfile.from_rows(ROWS, count_tokens=lambda ts: [len(t.split()) for t in ts], token_source="words")
    assert exact.tokens_exact
    assert exact.output_tokens.total == 2 + 2 + 1 + 1


def test_no_rows() -> None:
    profile = DatasetProfile.from_rows([])
    assert (profile.rows, profile.json_outputs, profile.input_tokens.n) == (0, 0.0, 0)


def test_percentiles_and_histogram() -> None:
    lengths = Lengths.of([*range(1, 101)])
    assert (lengths.p50, lengths.p90, lengths.p99, lengths.longest, lengths.mean) == (51, 91, 100, 100, 50.5)
    assert sum(count for _, count in lengths.histogram) == 100
    assert lengths.histogram[0] == [1, 1]
    assert [lower for lower, _ in lengths.histogram] == sorted({lower for lower, _ in lengths.histogram})
    assert Lengths.of([0, 0]).histogram == [[0, 2]]
    assert Lengths.of([0, 2, 5]).histogram == [[0, 1], [1, 0], [2, 1], [3, 0], [4, 0], [5, 1]]  # a gap is no bar


def test_the_order_of_rows_does_not_matter() -> None:
    assert DatasetProfile.from_rows(ROWS) == DatasetProfile.from_rows(list(reversed(ROWS)))


@pytest.mark.parametrize(
    ("text", "name"),
    [("hello", "LATIN"), ("日本語テキスト", "KATAKANA"), ("日本語", "CJK"), ("123 !?", "NONE"), ("ملف", "ARABIC")],
)
def test_script(text: str, name: str) -> None:
    assert script(text) == name


@pytest.mark.parametrize(
    ("text", "verdict"), [("{}", True), (" [1]", True), ("1", False), ('"a"', False), ("{", False)]
)
def test_is_json_means_an_object_or_a_list(text: str, verdict: bool) -> None:
    assert is_json(text) is verdict


@pytest.mark.parametrize("text", ['{"n": NaN}', "[Infinity]", '{"a": 1, "a": 2}', '["\\ud800"]', "\u00a0{}", "[1e999]"])
def test_what_eval_cannot_parse_is_no_json(text: str) -> None:
    assert not is_json(text)
