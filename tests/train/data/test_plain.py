"""The quick way through plain rows gives what the exact reader gives, or leaves the block to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunegate.core.rows import content_id, parse_json, parse_row
from tunegate.train.data.lines import Fault
from tunegate.train.data.plain import plain_id, plain_rows
from tunegate.train.data.read import Reading, read_file, read_records

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(['"', "\\", "\u2028", "\x7f"])
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "nobody"]), "content": TEXT | st.none()},
    optional={"weight": st.integers(0, 1), "tool_calls": st.just([])},
)
RECORD = st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=3)},
    optional={"id": TEXT | st.integers(), "group": TEXT, "tags": st.just({"a": "b"}), "label": TEXT},
)
ANSWERED = RECORD.map(lambda r: {**r, "messages": [*r["messages"], {"role": "assistant", "content": "yes"}]})


def seen(items: Any) -> list[Any]:
    return [item.error.line() if isinstance(item, Fault) else item for item in items]


@given(
    records=st.lists(RECORD | ANSWERED, min_size=1, max_size=4),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_and_faults(records: list[Any], ascii_only: bool, end: str, tmp_path: Path) -> None:
    text = end.join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("utf-8"))
    assert seen(read_file(path, Reading())) == seen(item for item, _, _ in read_records(path, Reading()))


@given(st.lists(TEXT, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_same_id(texts: list[str]) -> None:
    turns = [{"role": "assistant", "content": text} for text in texts]
    assert plain_id(tuple(turns)) == content_id(turns, None)  # type: ignore[arg-type]


PLAIN = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a \\" \\n"}], "id": "1"}'


def test_plain_lines_are_taken() -> None:
    rows = plain_rows(f"{PLAIN}\n{PLAIN}".encode(), "f", 5)
    assert rows == [parse_row(parse_json(PLAIN.encode(), ""), "f", line) for line in (5, 6)]


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ('"id": "1"', '"id": "1", "id": "2"'),
        ('"id": "1"', '"id": 1'),
        ('"id": "1"', '"label": "1"'),
        ('"content": "q"', '"content": "q", "content": "r"'),
        ('"content": "q"', '"content": "q", "name": "n"'),
        ('"content": "q"', '"content": "q", "weight": 0'),
        ('"content": "q"', '"content": "\\u0022", "name": 1'),
        ('"content": "q"', '"content": "\\ud800"'),
        ('"content": "q"', '"content": null'),
        ('"user"', '"nobody"'),
        ('"assistant"', '"user"'),
        ("}\n", "}\n\n"),
        (
            "{",
            "[",
        ),
    ],
)
def test_everything_else_is_left_to_the_exact_reader(part: str, other: str) -> None:
    block = f"{PLAIN}\n{PLAIN}\n"
    assert plain_rows(block.replace(part, other, 1).encode(), "f", 1) is None
