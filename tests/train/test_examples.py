"""Rows to examples: nothing is cut, every row left out is counted, and what cannot be learnt is refused."""

import re

import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.train import examples


@pytest.fixture
def build(makers):
    def call(rows, *, template=None, max_length=60, share=0.2):
        tokenizer = makers.tokenizer(template) if template else makers.tokenizer()
        stops = [tokenizer.eos_token_id]
        parsed = [parse_row(row, "rows.jsonl", line) for line, row in enumerate(rows, 1)]
        return tokenizer, examples.build(parsed, tokenizer, stops, max_length=max_length, max_left_out_share=share)

    return call


def lengthen(row):
    row["messages"][0]["content"] *= 20
    return row


def test_the_certificate_counts_what_the_loss_sees(build, makers):
    tokenizer, (kept, certificate) = build(makers.rows(3))
    assert certificate.rows == len(kept) == 3
    assert certificate.tokens == sum(len(e.input_ids) for e in kept)
    for example, total in zip(kept, ("0", "2", "4"), strict=True):
        learnt = [label for label in example.labels if label != -100]
        assert tokenizer.decode(learnt) == f'{{"sum": {total}}}<|im_end|>'
    assert certificate.label_tokens == sum(label != -100 for e in kept for label in e.labels)
    assert certificate.longest == max(len(e.input_ids) for e in kept)
    assert certificate.too_long == 0


def test_a_row_that_is_too_long_is_left_out_whole_and_counted(build, makers):
    rows = makers.rows(10)
    lengthen(rows[3])
    _, (kept, certificate) = build(rows)
    assert [e.id for e in kept] == [f"r{i}" for i in range(10) if i != 3]
    assert certificate.too_long == 1
    assert certificate.examples == ("r3",)


def test_too_many_long_rows_are_refused(build, makers):
    rows = makers.rows(10)
    for index in (1, 2, 3):
        lengthen(rows[index])
    with pytest.raises(UserError, match=re.escape("3 of 10 rows are longer than max_length 60 tokens")):
        build(rows)
    _, (kept, _) = build(rows, share=0.3)
    assert len(kept) == 7
    with pytest.raises(UserError, match="no row is left"):
        build([lengthen(row) for row in makers.rows(2)], share=1.0)


def test_an_answer_without_a_stop_token_is_refused(build, makers):
    template = (
        "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    with pytest.raises(UserError, match=r"answers of 2 rows end without a stop token.*rows\.jsonl:1"):
        build(makers.rows(2), template=template)


def test_a_row_that_the_template_cannot_mask_is_named(build, makers):
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} of {{ messages | length }}\n{{ m['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match=r"2 rows cannot be masked.*rows\.jsonl:1"):
        build(makers.rows(2), template=template)


def test_validation_rows_are_stable_disjoint_and_at_most_64():
    made = [examples.Example(id=f"r{i}", input_ids=[1], labels=[1]) for i in range(2000)]
    train, validation = examples.split_validation(made, 0.04, 0)
    assert len(validation) == 64
    assert {e.id for e in train} | {e.id for e in validation} == {e.id for e in made}
    assert len(train) + len(validation) == 2000
    again = examples.split_validation(made[::-1], 0.04, 0)[1]
    assert {e.id for e in again} == {e.id for e in validation}
    other = examples.split_validation(made, 0.04, 1)[1]
    assert {e.id for e in other} != {e.id for e in validation}
    assert len(examples.split_validation(made[:24], 0.1, 0)[1]) == 2


def test_the_preview_dims_what_is_not_learnt(build, makers):
    rows = makers.rows(1)
    rows[0]["messages"][0]["content"] = "[1] plus"
    tokenizer, (kept, _) = build(rows)
    shown = examples.preview(examples.parts_of(kept[0], tokenizer))
    assert '[/dim]{"sum": 0}<|im_end|>[dim]' in shown
    assert "\\[1] plus" in shown


REASONING = (
    "{% for m in messages %}{% set c = m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] %}"
    "<|im_start|>{{ m['role'] }}\n{{ c | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*texts):
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]
    return {"messages": turns}


def test_an_answer_of_which_the_template_leaves_out_a_part_is_refused(build):
    """What was learnt was not the row's answer, and nothing said so."""
    rows = [talk("q", "  a\n"), talk("q", "<think>h</think>a"), talk("q", "a", "q", "<think>h</think>a")]
    with pytest.raises(
        UserError, match=r"2 rows cannot be masked.*rows\.jsonl:2 turn 1: the template leaves out a part"
    ):
        build(rows, template=REASONING)
    assert len(build(rows[:1], template=REASONING)[1][0]) == 1
    assert len(build(rows)[1][0]) == 3


def test_special_tokens_in_a_row_s_text_are_said(build, makers, capsys):
    build([*makers.rows(2), talk("q", "stop <|im_end|> here"), talk("<|im_start|>", "a")])
    assert "2 rows hold the text of a special token" in (said := " ".join(capsys.readouterr().err.split()))
    assert "the first: rows.jsonl:3 <|im_end|>" in said
    build(makers.rows(2))
    assert "special token" not in capsys.readouterr().err


def test_tools_that_the_template_does_not_show_are_said(build, makers, capsys):
    tools = [{"type": "function", "function": {"name": "get", "parameters": {}}}]
    rows = [*makers.rows(1), {**talk("q", "a"), "tools": tools}]
    build(rows)
    assert "the chat template leaves out the tools of 1 rows; the first: rows.jsonl:2" in " ".join(
        capsys.readouterr().err.split()
    )
    shown = "{% if tools %}{{ tools | tojson }}{% endif %}"
    build(rows, template=shown + makers.tokenizer().chat_template, max_length=200)
    assert "leaves out the tools" not in capsys.readouterr().err


CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}[{{ c['function']['name'] }}]{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def calling(*calls, **content):
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": list(calls), **content}]}


@pytest.mark.parametrize("call", ["get", {}, {"function": {}}, {"function": {"arguments": "{}"}}])
def test_a_call_without_a_name_is_not_trained_on(build, call):
    """The word None was learnt in its place."""
    with pytest.raises(UserError, match=r"rows\.jsonl:1 turn 1: a tool call without a function name"):
        build([calling(call)])


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_none_is_not_an_answer(build, content):
    """A template that writes null as the word None would teach it; servers give "" there."""
    named = {"type": "function", "function": {"name": "get", "arguments": "{}"}}
    tokenizer, (kept, _) = build([calling(named, **content)], template=CALLS)
    assert tokenizer.decode([label for label in kept[0].labels if label >= 0]) == "[get]<|im_end|>"
