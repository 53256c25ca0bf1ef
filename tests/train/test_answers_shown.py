"""What is learnt is the row's answer, whole: content, calls and arguments in the answer's own place; thoughts, or a word of them."""

import json
from importlib.resources import files

import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.train import examples

TURN = (
    "{%% for m in messages %%}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
EACH = "{{ m.content }}{% for c in m.tool_calls or [] %}"
FIRST = "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
ALL = EACH + "{{ c.function | tojson }}{% endfor %}"
NAMES = EACH + "[{{ c.function.name }}]{% endfor %}"
TEXT = EACH + "{{ c.function.name }} {{ c.function.arguments | tojson | tojson }}{% endfor %}"
PYTHON = EACH + "{{ c.function.name }} {{ c.function.arguments }}{% endfor %}"
XML = EACH + (
    "<function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v | tojson if v is mapping else v }}\n</parameter>{% endfor %}{% endfor %}"
)


@pytest.fixture
def build(makers):
    def call(template, *turns):
        tokenizer = makers.tokenizer(template, ("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
        row = parse_row({"messages": list(turns)}, "rows.jsonl", 1)
        stops = [tokenizer.eos_token_id]
        kept, _ = examples.build([row], tokenizer, stops, max_length=5000, max_left_out_share=0.0)
        return [tokenizer.decode([label for label in e.labels if label >= 0]) for e in kept]

    return call


def asked(text="q"):
    return {"role": "user", "content": text}


def answer(content="", **more):
    return {"role": "assistant", "content": content, **more}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def test_an_answer_is_sought_in_its_own_place(build):
    """It was found in the question, and the model learnt to say nothing."""
    mute = TURN % "{{ m.content if m.role == 'user' }}"
    with pytest.raises(UserError, match="turn 1: the template leaves out a part of the answer"):
        build(mute, asked("say abc"), answer("abc"))
    assert build(TURN % "{{ m.content }}", asked("say abc"), answer("abc")) == ["abc<|im_end|>"]
    assert build(TURN % "{{ m.content }}", asked("say abc"), answer("")) == ["<|im_end|>"]


def test_an_answer_may_begin_in_the_prompt(build):
    """DeepSeek-R1's and others' prompts open the thought."""
    opens = (TURN % "{{ m.content }}").replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    texts = build(opens, asked(), answer("<think>\nhm\n</think>\n\na"))
    assert texts == ["hm\n</think>\n\na<|im_end|>"]


def test_every_call_has_its_place(build):
    turns = (
        asked("weather in Rome and Oslo"),
        answer(tool_calls=[call("weather", city="Rome"), call("weather", city="Oslo")]),
    )
    with pytest.raises(UserError, match="turn 1: the template leaves out the call of 'weather'"):
        build(TURN % FIRST, *turns)
    assert len(build(TURN % ALL, *turns)) == 1


def test_arguments_that_are_left_out_are_said(build):
    with pytest.raises(UserError, match="turn 1: the template leaves out 'city' of a call's arguments"):
        build(TURN % NAMES, asked("Rome?"), answer(tool_calls=[call("weather", city="Rome")]))
    keys = EACH + "{{ c.function.name }} {{ c.function.arguments.keys() | list }}{% endfor %}"
    with pytest.raises(UserError, match="leaves out 'Rome' of a call's arguments"):
        build(TURN % keys, asked("Rome?"), answer(tool_calls=[call("weather", city="Rome")]))


@pytest.mark.parametrize("template", [ALL, TEXT, PYTHON, XML])
def test_arguments_are_found_however_they_are_written(build, template):
    odd = 'naïve "café" 🙂 東京 \\d+ C:\\new \t tab\nline it\'s \u00a0 <b> & </b>'
    arguments = {"text": odd, "more": {"deep": [odd, 1, None, True], "none": None}, "empty": ""}
    assert len(build(TURN % template, asked(), answer(tool_calls=[call("f", **arguments), call("f", x=2)]))) == 1


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_that_are_not_learnt_are_said(build, capsys, key):
    turns = asked(), answer("42", **{key: "six times seven"})
    build(TURN % "{{ m.content }}", *turns)
    said = " ".join(capsys.readouterr().err.split())
    assert "leaves out the thoughts (reasoning_content, reasoning, thinking) of the last answer of 1 rows" in said
    assert "the first: rows.jsonl:1" in said
    build(TURN % f"{{{{ m.{key} or '' }}}}{{{{ m.content }}}}", *turns)
    assert "thoughts" not in capsys.readouterr().err


def test_thoughts_of_earlier_answers_may_go(build, capsys):
    qwen3 = (files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    thought = {"reasoning_content": "hm"}
    texts = build(qwen3, asked(), answer("a", **thought), asked("r"), answer("b", **thought))
    assert [text.count("hm") for text in texts] == [1, 1]
    assert "thoughts" not in capsys.readouterr().err


def test_an_answer_to_nothing_is_not_learnt(build):
    """The template's own complaint about no messages at all was shown."""
    turns = answer("hello"), asked(), answer("a")
    with pytest.raises(UserError, match=r'turn 0: nothing comes before this answer.*give the turn "weight": 0'):
        build(TURN % "{{ m.content }}", *turns)
    turns[0]["weight"] = 0
    assert build(TURN % "{{ m.content }}", *turns) == ["a<|im_end|>"]
