"""Findings about rows that are rows, and what cleaning does with them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.errors import UserError
from tunegate.core.files import write_jsonl
from tunegate.core.profile import row_texts
from tunegate.core.rows import Row, parse_row, read_rows
from tunegate.train.data.check import CODES, check_row, claims_json, short_outputs_matter
from tunegate.train.data.clean import CleanConfig, clean
from tunegate.train.data.read import Reading
from tunegate.train.data.secrets import find_secrets, masked
from tunegate.train.data.steps import check
from tunegate.train.data.tokens import Counter, Size, Sizer, counter, estimate, sizes

DATA = Path(__file__).parents[4] / "shared" / "data"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def row(*messages: dict[str, Any], line: int = 1, **more: Any) -> Row:
    return parse_row({"messages": list(messages), **more}, "f.jsonl", line)


def answered(text: str, **more: Any) -> Row:
    return row(USER, {"role": "assistant", "content": text}, **more)


def call(**function: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": function}


CASES: list[tuple[Row, str, str]] = [
    (row({"role": "user", "content": ""}, ANSWER), "empty_turn", "/messages/0/content"),
    (answered("  \n"), "empty_turn", "/messages/1/content"),
    (row(USER, USER, ANSWER), "role_order", "/messages/1"),
    (row(ANSWER, USER, ANSWER), "role_order", "/messages/0"),
    (row(USER, {"role": "system", "content": "s"}, ANSWER), "role_order", "/messages/1"),
    (answered("not json"), "invalid_json", "/messages/1/content"),
    (answered('{"a": "x"}', schema={"properties": {"a": {"type": "integer"}}}), "schema", "/messages/1/content"),
    (answered("oops", schema={}), "schema", "/messages/1/content"),
    (answered("{}", schema={"type": "objekt"}), "bad_schema", "/schema"),
    (answered("{}", schema={"$ref": "http://nowhere.invalid/s.json"}), "bad_schema", "/schema"),
    (answered('{"a": "b\x07"}'), "control_character", "/messages/1/content"),
    (answered('{"a": "cafÃ©"}'), "mixed_encoding", "/messages/1/content"),
    (answered('{"a": "donâ€™t"}'), "mixed_encoding", "/messages/1/content"),
    (answered("I'm sorry, but I can't help with that."), "refusal", "/messages/1/content"),
    (answered("As an AI language model, I have no opinion."), "boilerplate", "/messages/1/content"),
    (answered("{}", tools=[{"name": "g"}]), "", ""),
    (row(USER, {**ANSWER, "tool_calls": [call(name="f")]}, tools=[{"name": "g"}]), "tool_calls", "/function/name"),
    (row(USER, {**ANSWER, "tool_calls": [call(name="f", arguments="{")]}), "tool_calls", "/function/arguments"),
    (row(USER, {**ANSWER, "tool_calls": [call()]}), "tool_calls", "/tool_calls/0"),
    (
        row(USER, {"role": "tool", "tool_call_id": "c9", "content": "1"}, ANSWER),
        "tool_calls",
        "/messages/1/tool_call_id",
    ),
]


@pytest.mark.parametrize(("value", "code", "pointer"), CASES)
def test_findings_have_a_code_and_a_pointer(value: Row, code: str, pointer: str) -> None:
    found = list(check_row(value, claims_json=True))
    assert all(finding.code in CODES for finding in found)
    if code:
        assert any(f.code == code and f.pointer.endswith(pointer) for f in found), found
    else:
        assert found == []


def test_clean_rows_have_no_findings() -> None:
    agent = row(
        {"role": "system", "content": "s"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call(name="f", arguments="{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {
            "role": "assistant",
            "content": "Sorry to hear that your card is lost. I can help: façade, naïve, 30 °C, Ærø.",
        },
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    assert list(check_row(agent, claims_json=False)) == []


# Not written out whole, so that scanners of this repository do not take them for real.
SECRETS = {
    "aws_access_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + "a1B2" * 9,
    "hugging_face_token": "hf_" + "abcdefGHIJ" * 4,
    "openai_key": "sk-" + "proj-" + "a1B2c3D4" * 4,
    "slack_token": "xoxb-" + "123456789012-abcdef",
    "google_api_key": "AIza" + "Sy0123456789-_abcdefghijklmnopqrstu"[:35],
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "abcdefghijklmnop",
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow==\n-----END RSA " + "PRIVATE KEY-----",
    "password": "password" + " = hunter2hunter2",
    "e-mail": "jane.doe+x@mail.company.co.uk",
    "card_number": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "ip_address": "8.8.8.8",
    "us_ssn": "078-05-1120",
    "phone": "+44 20 7946 0958",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_and_masked(kind: str) -> None:
    text = f"before {SECRETS[kind]} after"
    (found,) = find_secrets(text)
    assert (found.kind, text[found.start : found.end].strip()) == (kind, SECRETS[kind])
    hidden, count = masked(text)
    assert (hidden, count) == (f"before [REDACTED:{kind}] after", 1)


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 is late",  # fails Luhn's check
        "version 1.2.3.4.5 and 192.168.0.1 and 300.1.1.1",
        "DE00 3704 0044 0532 0130 00",
        "call 2024-01-01 at 12:30",
        "the password is wrong: why?",
        "user@example.com wrote sk-learn and risk-taking",
        "0000 0000 0000 0000",
    ],
)
def test_lookalikes_are_not_flagged(text: str) -> None:
    assert list(find_secrets(text)) == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not there")
def test_plain_sentences_are_not_flagged() -> None:
    """Entropy rules flag every one of 3,000 plain sentences; these patterns none."""
    rows = [r for _, r in zip(range(3000), read_rows(DATA / "banking77" / "train.jsonl"), strict=False)]
    assert [r.line for r in rows for text in row_texts(r) for _ in find_secrets(text)] == []


def test_the_rule_of_20_tokens_knows_labels_and_json() -> None:
    assert short_outputs_matter([answered("card_lost")] * 10)[0] is False
    assert short_outputs_matter([answered('{"a": ' + '"x"' * 1 + "}")] * 10)[1] == "answers in JSON are short by nature"
    sentences = answered("A long answer in whole sentences. " * 5)
    assert short_outputs_matter([sentences] * 10)[0] is True
    made = call(name="lookup_the_order", arguments='{"order": 17, "of": "today"}')
    called = row(USER, {"role": "assistant", "content": "", "tool_calls": [made]})
    assert short_outputs_matter([called] * 10) == (False, "tool calls are short by nature")
    assert short_outputs_matter([called] * 6 + [sentences] * 4) == (True, ""), "a call is no empty answer"
    assert claims_json([answered("{}")] * 8 + [answered("x")] * 2)
    assert not claims_json([answered("{}")] * 7 + [answered("x")] * 3)
    assert not claims_json([])


WORDS = Counter(count=lambda texts: [len(text.split()) for text in texts], exact=True, source="words")


def cleaned(rows: list[Row], **options: Any) -> tuple[list[int], list[tuple[int, str]], dict[str, int]]:
    kept, result = clean(rows, [], CleanConfig(**options), Sizer(counter=WORDS))
    return [r.line for r in kept], [(r.line, str(r.reason)) for r in result.rejected], result.findings


def test_nothing_is_removed_unless_asked_for() -> None:
    rows = [answered("I cannot help with that", line=1), answered("As an AI I am", line=2), answered("x", line=3)]
    assert cleaned(rows)[:2] == ([1, 2, 3], [])
    assert cleaned(rows, drop_refusals=True)[:2] == ([3], [(1, "refusal"), (2, "refusal")])


def test_length_rules() -> None:
    rows = [answered("w " * n, line=n) for n in (1, 50, 200)]
    assert cleaned(rows, max_length=100)[:2] == ([1, 50, 200], [])
    assert cleaned(rows, max_length=100)[2]["too_long"] == 1
    assert cleaned(rows, max_length=100, drop_long=True)[:2] == ([1, 50], [(200, "too_long")])
    assert cleaned(rows, max_length=61, drop_long=True)[0] == [1, 50]  # 1 + 50 words and 5 marks a turn
    assert cleaned(rows, max_length=60, drop_long=True)[0] == [1]
    assert cleaned(rows, min_output_tokens=2)[:2] == ([50, 200], [(1, "too_short")])


def test_invalid_answers_and_secrets() -> None:
    good = [answered('{"a": 1}', line=n) for n in range(1, 10)]
    bad = answered("oops", line=10)
    secret = answered('{"mail": "jane@company.org"}', line=11)
    assert cleaned([*good, bad], drop_invalid=True)[1] == [(10, "invalid_output")]
    assert cleaned([*good, secret], secrets="remove")[1] == [(11, "secret")]
    kept, result = clean([secret], [], CleanConfig(secrets="mask"), Sizer(counter=WORDS))
    assert kept[0].expected == '{"mail": "[REDACTED:e-mail]"}'
    assert result.notes == ["1 stretches masked in train (messages, accept, tags, other keys)."]


def test_eval_rows_over_length_are_only_counted() -> None:
    long = answered("w " * 200)
    kept, result = clean([answered("w")], [long], CleanConfig(max_length=100, drop_long=True), Sizer(counter=WORDS))
    assert len(kept) == 1
    assert result.findings == {"too_long": 1}
    assert "0 in train and 1 in eval" in result.notes[0]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"drop_long": True}, "--drop-long"),
        ({"secrets": "hide"}, "--secrets"),
        ({"max_length": 0}, "--max-length"),
        ({"min_output_tokens": -1}, "--min-output-tokens"),
    ],
)
def test_bad_settings(options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        CleanConfig(**options)
    assert caught.value.where == where


def test_tokens_by_a_tokenizer_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(1)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = counter(str(tmp_path))
    assert (found.exact, found.count(["a b b", ""])) == (True, [3, 0])
    rows = [row({"role": "user", "content": "a " * n}, {"role": "assistant", "content": "b"}) for n in range(1500)]
    assert list(sizes(rows, found)) == [Size(prompt=n + 5, total=n + 11, answer=1) for n in range(1500)]


def test_an_estimate_says_so(tmp_path: Path) -> None:
    assert not estimate().exact
    assert "estimate" in counter(None).source
    assert "no tokenizer of some/model here" in counter("some/model").source
    assert "no tokenizer of builtin:other here" in counter("builtin:other").source
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        counter(str(tmp_path))


def test_random_text_never_breaks_a_check() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(chr(draw.choice([draw.randrange(0x300), draw.randrange(0xD800)])) for _ in range(40))
        list(check_row(answered(text), claims_json=True))
        masked(text)


def test_masking_covers_every_copy_and_says_what_it_leaves() -> None:
    mail, hidden = "jane@company.org", "[REDACTED:e-mail]"
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"to": mail})}}
    messages = [
        {"role": "user", "content": f"write to {mail}"},
        {"role": "assistant", "content": f'{{"to": "{mail}", "card": 4111111111111111}}', "tool_calls": [call]},
    ]
    schema = {"properties": {"to": {"const": mail}}}
    accept = [{"to": [mail], "card": 4111111111111111, "n": 7, "yes": True}]
    value = parse_row(
        {"messages": messages, "accept": accept, "tags": {"who": mail}, "note": mail, "schema": schema}, "f", 1
    )
    (kept,), result = clean([value], [], CleanConfig(secrets="mask"), Sizer(counter=WORDS))
    assert kept.accept == [{"to": [hidden], "card": "[REDACTED:card_number]", "n": 7, "yes": True}]
    assert (kept.tags, kept.extra) == ({"who": hidden}, {"note": hidden})
    assert kept.messages[1]["tool_calls"][0]["function"]["arguments"] == json.dumps({"to": hidden})
    assert mail not in json.dumps(kept.messages)
    assert kept.schema == schema
    assert result.notes == [
        "8 stretches masked in train (messages, accept, tags, other keys).",
        "1 answers are no JSON any more: a number in them was masked.",
        "1 train rows still hold such a stretch in id, group, schema or tools, which are not masked.",
    ]


def test_secrets_in_calls_and_accept_are_found() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"to": "jane@company.org"}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    value = row({"role": "user", "content": "q"}, answer, accept=["joe@company.org"])
    found = [(f.code, f.pointer) for f in check_row(value, claims_json=False)]
    assert found == [
        ("personal_data", "/messages/1/tool_calls/0/function/arguments"),
        ("personal_data", "/accept/0"),
    ]


TEMPLATE = (
    "{{ bos_token }}{%- if tools %}{{ tools | tojson }}{% endif %}\n{% for m in messages %}\n"
    "    {% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\n"
    "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|end|>{% endif %}\n"
    "{% if loop.index > 90 %}{% break %}{% endif %}{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def model_folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": None}))
    return tmp_path


def test_rows_are_counted_as_the_template_renders_them(tmp_path: Path) -> None:
    """One token a character here: the counts are the rendered text's length, and transformers renders the same."""
    from transformers import PreTrainedTokenizerFast

    folder = model_folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>")
    tokenizer.chat_template = TEMPLATE
    found = counter(str(folder))
    assert found.template is not None
    rows = [
        row(
            {"role": "system", "content": " be brief "},
            {"role": "user", "content": "qü"},
            {"role": "assistant", "content": "a b"},
        ),
        row({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, tools=[{"name": "f", "d": "é<"}]),
    ]
    for value, size in zip(rows, sizes(rows, found), strict=True):
        texts = [
            tokenizer.apply_chat_template(list(turns), tools=value.tools, add_generation_prompt=ask, tokenize=False)
            for turns, ask in ((value.prompt, True), (value.messages, False))
        ]
        assert [found.template.render(value, answer=answer) for answer in (False, True)] == texts
        assert (size.prompt, size.total, size.answer) == (len(texts[0]), len(texts[1]), len(value.expected))
    refused = row(
        {"role": "user", "content": "q"}, {"role": "tool", "content": "1"}, {"role": "assistant", "content": "a"}
    )
    assert [size.refused for size in sizes([refused, rows[0]], found)] == [True, False]


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        (TEMPLATE, True),  # content alone, as SmolLM2's own
        (TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"), False),
        (TEMPLATE.replace("{{ m.content }}", "{{ m.content or m.tool_calls[0].function.name }}"), False),  # breaks without
    ],
)  # fmt: skip
def test_calls_that_the_template_leaves_out_are_a_finding(tmp_path: Path, template: str, left_out: bool) -> None:
    folder = model_folder(tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    calling = row({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]})
    plain = row({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert [size.calls_left_out for size in sizes([calling, plain], counter(str(folder)))] == [left_out, False]
    write_jsonl(tmp_path / "rows.jsonl", [calling.to_json(), plain.to_json()])
    told = check([str(tmp_path / "rows.jsonl")], Reading(), model=str(folder), max_length=None)
    assert told.findings.get("template", 0) == left_out
    cleaned = clean([calling], [plain], CleanConfig(), Sizer(counter=counter(str(folder))))[1]
    assert cleaned.findings.get("template", 0) == left_out


def test_a_template_in_the_settings_and_one_that_is_not_valid(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "chat_template.jinja").unlink()
    assert counter(str(folder)).template is None
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
    for value in (TEMPLATE, named):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value, "bos_token": "<s>"}))
        template = counter(str(folder)).template
        assert template is not None
        assert template.render(answered("a"), answer=True).endswith("<|assistant|>a<|end|>")
    for broken in ("{% for %}", "{{" + "(" * 50_000 + "}}", "{{ 1" + "0" * 5000 + " }}"):
        (folder / "chat_template.jinja").write_text(broken)
        with pytest.raises(UserError, match="not a valid chat template"):
            counter(str(folder))
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": 7}))
    assert counter(str(folder)).template is None, "as training and a server say"


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    template = counter(str(folder)).template
    assert template is not None
    with pytest.raises(UserError, match="refuses these messages"):
        template.render(answered("a"), answer=True)


def test_rows_with_nothing_left_to_learn_are_counted() -> None:
    rows = [answered("w " * 3), row({"role": "user", "content": "w " * 40}, {"role": "assistant", "content": "a"})]
    found = clean(rows, [], CleanConfig(max_length=40), Sizer(counter=WORDS))[1].findings
    assert (found["untrainable"], found["too_long"]) == (1, 1)
    assert "untrainable" not in clean(rows, [], CleanConfig(max_length=46), Sizer(counter=WORDS))[1].findings
