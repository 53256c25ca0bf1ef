"""What an audit found in checking and cleaning: secrets where they hide, refusals as models write them, hostile schemas."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.commands import run
from tunegate.core.rows import Row, parse_row
from tunegate.train.data.check import check_row
from tunegate.train.data.clean import CleanConfig, drop
from tunegate.train.data.cli import app
from tunegate.train.data.secrets import find_secrets, mask_in, masked, secrets_in
from tunegate.train.data.tokens import Sizer, estimate

MAIL, HIDDEN = "bob@corp.com", "[REDACTED:e-mail]"
TOKEN = "ghp_" + "a1B2" * 9
CARD = "4111 1111 1111 1111"
BEGIN, END = (f"-----{edge} RSA " + "PRIVATE KEY-----" for edge in ("BEGIN", "END"))


def record(answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}], **more}


def row(answer: str = "a", line: int = 1, **more: Any) -> Row:
    return parse_row(record(answer, **more), "f.jsonl", line)


def dropped(rows: list[Row], **options: Any) -> tuple[list[Row], list[str], list[str]]:
    """(rows kept, what each rejected one went for, notes)."""
    kept, result = drop(rows, CleanConfig(**options), Sizer(counter=estimate()))
    return kept, [str(item.rule) for item in result.rejected], result.notes


def codes(value: Row) -> set[str]:
    return {finding.code for finding in check_row(value, claims_json=False)}


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"x {BEGIN}\nMIIE\nAKIA{'A' * 16}\n{MAIL}\n{END} y {MAIL}", f"x [REDACTED:private_key] y {HIDDEN}"),
        (f"x {BEGIN}\nMIIE\nabc", "x [REDACTED:private_key]"),
        (f"{BEGIN}\nMIIE\n{END}, {BEGIN}\nMIIF\n{END}.", "[REDACTED:private_key], [REDACTED:private_key]."),
        (json.dumps({"k": f"{BEGIN}\nMIIE", "x": 1}), '{"k": "[REDACTED:private_key]", "x": 1}'),
    ],
)
def test_a_private_key_is_masked_with_its_whole_block(text: str, hidden: str) -> None:
    assert masked(text)[0] == hidden


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (json.dumps({"note": f"Dear,\n{MAIL} wrote"}), json.dumps({"note": f"Dear,\n{HIDDEN} wrote"})),
        (json.dumps({"t": f"x\n{TOKEN}"}), json.dumps({"t": "x\n[REDACTED:github_token]"})),
        ('{"m":"\\ud83d\\ude00 bob\\u0040corp.com \\u00e9"}', f'{{"m":"\\ud83d\\ude00 {HIDDEN} \\u00e9"}}'),
        (f'[ 1.50,{10**30} , "é{MAIL}" ,1E5]', None),
        (f'[ 1.50,{10**30} , "é {MAIL}" ,1E5]', f'[ 1.50,{10**30} , "é {HIDDEN}" ,1E5]'),
        (json.dumps({"password": "hunter2hunter2", "n": 1}), '{"password": "[REDACTED:password]", "n": 1}'),
        (
            f'{{"{MAIL}": 1, "amy@corp.com": {{"x": 2}}}}',
            f'{{"{HIDDEN}": 1, "{HIDDEN} 2": {{"x": 2}}}}',
        ),
        (
            json.dumps({"arguments": json.dumps({"to": f"x\n{MAIL}"})}),
            json.dumps({"arguments": json.dumps({"to": f"x\n{HIDDEN}"})}),
        ),
        ('{"a": {"password": null}, "score": 0.4111111111111111}', None),
    ],
)
def test_json_text_is_masked_string_by_string(text: str, hidden: str | None) -> None:
    """Nothing but the strings masked changes, by a byte; keys that would fall together are told apart."""
    if hidden is None:
        hidden = text.replace(f"é{MAIL}", HIDDEN)  # the letter is one of the address
    assert masked(text)[0] == hidden
    json.loads(hidden)


def test_json_values_and_json_text_are_looked_at_alike() -> None:
    value = {MAIL: [MAIL, {"amy@corp.com": None}], "password": "hunter2hunter2", "pwd": 12345678, "n": 1.5, "yes": True}
    text = json.dumps({"a": value})
    hidden, count, broken = mask_in({"a": value, "text": text})
    assert hidden["a"] == {
        HIDDEN: [HIDDEN, {HIDDEN: None}],
        "password": "[REDACTED:password]",
        "pwd": "[REDACTED:password]",
        "n": 1.5,
        "yes": True,
    }
    assert count == 10
    assert len(list(find_secrets(text))) == 5
    assert broken == ["/text"]  # the number
    assert list(secrets_in({"a": hidden["a"]})) == []  # a mask is no password


def test_masked_calls_stay_json_and_the_note_counts_those_that_do_not() -> None:
    def calling(arguments: str) -> Row:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return parse_row({"messages": messages}, "f", 1)

    good, bad = json.dumps({"body": f"To:\n{MAIL}"}), '{"card": 4111111111111111}'
    answers = [row(json.dumps({"t": f"a\n{MAIL}"})), row(bad), calling(good), calling(bad)]
    kept, _, notes = dropped(answers, secrets="mask")
    assert json.loads(kept[0].expected) == {"t": f"a\n{HIDDEN}"}
    assert json.loads(kept[2].messages[1]["tool_calls"][0]["function"]["arguments"]) == {"body": f"To:\n{HIDDEN}"}
    assert notes[1:] == ["2 answers are no JSON any more: a number in them was masked."]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"pay {CARD} 12/27", "pay [REDACTED:card_number] 12/27"),
        (f"pay {CARD} 123", "pay [REDACTED:card_number] 123"),
        ("pay 4111111111111111 123", "pay [REDACTED:card_number] 123"),
        ("3782 822463 10005 12/27", "[REDACTED:card_number] 12/27"),
        (f"1234 {CARD.replace(' ', '-')} 12", "1234 [REDACTED:card_number] 12"),
        ("ES9121000418450200051332 2026 ok", "[REDACTED:iban] 2026 ok"),
        ("ES91 2100 0418 4502 0005 1332 EUR", "[REDACTED:iban] EUR"),
        ("ES9121000418450200051332 DE89370400440532013000 2026", "[REDACTED:iban] [REDACTED:iban] 2026"),
        ("1990 1991 1992 1993 1994 2001 2002 2003", None),
        (" ".join(str(n) for n in range(10, 99)), None),
    ],
)
def test_numbers_behind_a_card_or_an_iban_do_not_hide_it(text: str, hidden: str | None) -> None:
    assert masked(text)[0] == (hidden or text)


CARDS = (
    *("4111111111111111", CARD, CARD.replace(" ", "-"), "4222222222222", "5500005555555559", "6011 0009 9013 9424"),
    *("378282246310005", "3782 822463 10005", "3782-822463-10005", "3056 930902 5904", "2223003122003222"),
)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "text", ["{}", "card.{}, please", "No. 7: {}. Thanks", "0.5 {} 0.50", "visa-{}", '"{}"', "a\n{}\n"]
)
def test_a_card_number_is_found_in_all_its_spellings(card: str, text: str) -> None:
    assert masked(text.format(card))[0] == text.format("[REDACTED:card_number]")


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"x": 0.4444218515250037}\n```',
        'so {"x": -12.4444218515250037, "y": 4111111111111111.25}',
        '{"at": 1700000000004, "and": 2000000000008}',
        "done at 20261201161100",
        "id_4111111111111111 x4111111111111111 0x4111111111111111 4111111111111111b",
        "41111111-1111-4107-8abc-abcdefabcdef",
        "abcdefab-cdef-4abc-4111-111111111111",
    ],
)
def test_a_number_that_is_no_card_stays(text: str) -> None:
    """Luhn's check alone passes one in ten: a fraction's digits were masked, which left no JSON."""
    assert masked(text) == (text, 0)


PLACES: list[dict[str, Any]] = [
    {"tags": {"who": MAIL}},
    {"tags": {MAIL: "who"}},
    {"note": {"deep": [MAIL]}},
    {"ticket": 4111111111111111},
    {"accept": [{"to": MAIL}]},
    {"messages": [{"role": "user", "content": "q", "name": MAIL}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": MAIL}]},
]


@pytest.mark.parametrize("more", PLACES)
def test_check_mask_and_remove_look_at_the_same_places(more: dict[str, Any]) -> None:
    value = row(**more)
    assert codes(value) == {"personal_data"}
    (kept,), _, notes = dropped([value], secrets="mask")
    assert codes(kept) == set()
    assert notes == ["1 stretches masked in train (messages, accept, tags, other keys)."]
    assert dropped([value], secrets="remove") == ([], ["personal_data"], [])


def test_what_none_of_them_touches_is_said() -> None:
    kept, _, notes = dropped([row(group=MAIL), row(line=2)], secrets="remove")
    assert len(kept) == 2
    assert notes == ["1 train rows still hold such a stretch in id, group, schema or tools, which are not looked at."]


REFUSALS = [
    "I’m sorry, but I can’t assist with that.",
    "I can’t help with that request.",
    "I apologize, but I cannot help with that.",
    "I apologise for the inconvenience, but I'm unable to do so.",
    "My apologies, I can't do that.",
    "I'm unable to assist with this.",
    "I’m very sorry. I won't do that.",
]
NO_REFUSALS = [
    "I apologize for the delay. Your order is on its way.",
    "I'm sorry to hear that your card is lost. I can help.",
    "Sorry, as an update we ship it today.",
    "He said: “I can’t help it.”",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_as_models_write_them(text: str) -> None:
    assert codes(row(text)) == {"refusal"}
    assert dropped([row(text)], drop_refusals=True)[1] == ["refusal"]


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_an_apology_alone_is_no_refusal(text: str) -> None:
    assert codes(row(text)) == set()


def test_boilerplate_with_a_typographic_apostrophe() -> None:
    assert codes(row("I’m an AI and have no opinion.")) == {"boilerplate"}


def test_rows_of_one_line_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A JSON array on one line: ten rows, not one."""
    rows = [record("As an AI language model I do not know.", id="same") for _ in range(10)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert run(app, prog="ft data", argv=["check", str(tmp_path / "a.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == {"boilerplate": 10, "duplicate_id": 9}


DRAFT_4 = {"$schema": "http://json-schema.org/draft-04/schema#"}


@pytest.mark.parametrize(
    ("schema", "answer", "code"),
    [
        ({"pattern": r"^\p{L}+$"}, '"Ünï"', None),
        ({"pattern": r"^\p{L}+$"}, '"a1"', "schema"),
        ({**DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, "1", "schema"),
        ({**DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, "2", None),
        ({"$schema": "http://nowhere.invalid/"}, "1", "bad_schema"),
        ({"format": "date"}, '"2024-13-01"', "schema"),
        ({"$id": "http://a/", "$ref": "http://[x"}, "1", "bad_schema"),
        ({"$ref": "#/x", "x": {"type": 5}}, "1", "bad_schema"),
    ],
)
def test_schemas_are_judged_as_in_an_evaluation(schema: dict[str, Any], answer: str, code: str | None) -> None:
    assert codes(row(answer, schema=schema)) == ({code} if code else set())


def test_a_hostile_pattern_comes_to_an_end() -> None:
    start = time.monotonic()
    assert codes(row(json.dumps("a" * 40 + "!"), schema={"pattern": "^(a+)+$"})) <= {"schema", "bad_schema"}
    assert codes(row(json.dumps("aB" * 40 + "!"), schema={"pattern": "^([a-zA-Z]+[A-Z]*)+$"})) != set()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("depth", [600, 900])
def test_a_deep_value_is_masked(depth: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    deep = "[" * depth + f'"{MAIL}"' + "]" * depth
    objects = f'{{"{MAIL}": ' * depth + "1" + "}" * depth
    text = json.dumps(record())[:-1] + f', "d": {deep}, "e": {objects}}}\n'
    (tmp_path / "a.jsonl").write_text(text)
    argv = ["clean", str(tmp_path / "a.jsonl"), "--secrets", "mask", "--out", str(tmp_path / "out"), "--json"]
    assert run(app, prog="ft data", argv=argv) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith(f"{depth + 1} stretches")
    assert MAIL not in (tmp_path / "out" / "rows.jsonl").read_text()


@pytest.mark.parametrize("command", ["check", "inspect", "clean", "prepare"])
def test_a_model_that_does_not_lie_here_is_warned_of(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    questions = [{"role": "user", "content": f"question {n}"} for n in range(30)]
    source.write_text(
        "".join(json.dumps({"messages": [q, {"role": "assistant", "content": "a"}]}) + "\n" for q in questions)
    )
    more = ["--out", str(tmp_path / "out")] if command in ("clean", "prepare") else []
    assert run(app, prog="ft data", argv=[command, str(source), "--model", "no/such-model", *more]) == 0
    told = capsys.readouterr()
    warning = "no tokenizer of no/such-model lies on this machine: tokens are estimated, 3.6 characters each"
    assert told.err.count(warning) == 1
    if command == "prepare":
        assert "estimated from characters (no tokenizer of no/such-model here)" in told.out
