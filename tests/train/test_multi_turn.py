"""Conversations of several answers on templates that take thoughts out of earlier ones, as Qwen3 does."""

import itertools
import json
from importlib.resources import files
from types import SimpleNamespace

import pytest

from tunegate.core.chat_template import MaskError, RewrittenError, mask, mask_answers, render, render_ids, with_defaults
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.core.rows import parse_row
from tunegate.train import examples, template_check
from tunegate.train.examples import Example
from tunegate.train.release.quantize_worker import write_calibration

QWEN3 = (files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
THOUGHT = "<think>\n\n</think>\n\n"
TEXTS = ("capital of France?", "Paris.", "and of Italy?", "Rome.", "thanks", "{}")


def talk(*texts):
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def learnt(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label >= 0])


@pytest.fixture
def qwen3(makers):
    return makers.tokenizer(QWEN3)


def test_each_answer_follows_the_prompt_that_a_server_makes(qwen3):
    """One rendering cannot hold them: in it only the last answer has the empty thoughts that all are generated with."""
    messages = talk(*TEXTS)
    with pytest.raises(RewrittenError, match="turn 1: the template renders the turn differently once others follow"):
        mask(qwen3, messages, [qwen3.eos_token_id])
    found = mask_answers(qwen3, messages, [qwen3.eos_token_id])
    assert [learnt(qwen3, one.labels) for one in found] == [f"{THOUGHT}{text}<|im_end|>" for text in TEXTS[1::2]]
    for number, one in enumerate(found):
        prompt = render_ids(qwen3, messages[: 2 * number + 1], generate=True)
        assert one.input_ids[: len(prompt)] == prompt
        assert set(one.labels[: len(prompt)]) == {-100}
        assert one.labels[len(prompt)] >= 0


def test_one_answer_and_templates_that_rewrite_nothing_stay_one_conversation(qwen3, makers):
    assert len(mask_answers(qwen3, talk("q", "a"), [qwen3.eos_token_id])) == 1
    plain = makers.tokenizer()
    (found,) = mask_answers(plain, talk(*TEXTS), [plain.eos_token_id])
    assert learnt(plain, found.labels) == "".join(f"{text}<|im_end|>" for text in TEXTS[1::2])


def test_the_lines_that_calibrate_are_counted_not_the_rows(qwen3, makers, tmp_path):
    """`ft quantize` holds this count against what its worker used."""
    rows = [parse_row({"id": str(i), "messages": talk(*TEXTS)}, "x", 1) for i in range(2)]
    for tokenizer, expected in ((qwen3, 6), (makers.tokenizer(), 2)):
        lines, tokens = write_calibration(rows, tokenizer, [tokenizer.eos_token_id], tmp_path / "c.jsonl")
        written = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
        assert (lines, tokens) == (expected, sum(len(line["input_ids"]) for line in written))
        assert lines == len(written)


def test_thoughts_are_learnt_where_they_are_asked_for(qwen3):
    """A thought in an earlier answer is learnt there and is not in the prompt of the next one."""
    found = mask_answers(qwen3, talk("q", "<think>\nhm\n</think>\n\na", "r", "b"), [qwen3.eos_token_id])
    assert learnt(qwen3, found[0].labels) == "<think>\nhm\n</think>\n\na<|im_end|>"
    assert "hm" not in found[1].text
    assert learnt(qwen3, found[1].labels) == f"{THOUGHT}b<|im_end|>"


def test_calls_and_their_results_are_one_conversation(qwen3):
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    messages = [
        *talk("q"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    texts = [learnt(qwen3, one.labels) for one in mask_answers(qwen3, messages, [qwen3.eos_token_id])]
    called = '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    assert texts == [f"{THOUGHT}{called}", f"{THOUGHT}Rain.<|im_end|>", f"{THOUGHT}{called}"]


def test_what_no_prompt_leads_to_is_refused_still(makers):
    of = "{% for m in messages %}<|im_start|>{{ m.role }} of {{ messages | length }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = makers.tokenizer(of + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    with pytest.raises(
        MaskError, match="turn 1: the template renders the prompt differently with and without the answer"
    ):
        mask_answers(tokenizer, talk(*TEXTS), [tokenizer.eos_token_id])


@pytest.fixture
def build(qwen3):
    def call(rows, *, max_length=200, share=0.2):
        parsed = [parse_row({"messages": row, "id": f"r{n}"}, "rows.jsonl", n) for n, row in enumerate(rows, 1)]
        stops = [qwen3.eos_token_id]
        return examples.build(parsed, qwen3, stops, max_length=max_length, max_left_out_share=share)

    return call


def test_rows_become_examples_and_it_is_said(build, capsys):
    kept, certificate = build([talk("q", "a"), talk(*TEXTS), talk("q", "a", "r", "b")])
    assert [example.id for example in kept] == ["r1", *["r2"] * 3, *["r3"] * 2]
    assert (certificate.rows, certificate.by_answer) == (3, 2)
    assert certificate.tokens == sum(len(example.input_ids) for example in kept)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of the rows are several examples, 6 in all, each ending with one of their answers" in said
    assert "the first: rows.jsonl:2" in said


def test_a_row_with_an_example_too_long_is_left_out_whole(build):
    kept, certificate = build([talk("q", "a"), talk("q", "a", "r" * 400, "b"), talk("r", "b")], share=0.5)
    assert [example.id for example in kept] == ["r1", "r3"]
    assert (certificate.rows, certificate.too_long, certificate.by_answer) == (2, 1, 0)


def test_of_two_answers_in_a_row_the_last_one_alone_is_learnt_where_it_is_asked_for(makers):
    tokenizer = makers.tokenizer()
    messages = [*talk("capital of France?", "One moment."), {"role": "assistant", "content": "Paris."}]
    found = mask(tokenizer, messages, [tokenizer.eos_token_id], last=True)
    assert learnt(tokenizer, found.labels) == "Paris.<|im_end|>"


def test_an_answer_cut_by_the_template_is_refused(makers):
    """Where the last turn loses its thoughts too, nothing would teach them."""
    strips = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' last' if loop.last and m.role == 'assistant' else '' }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant last\n{% endif %}"
    )
    tokenizer = makers.tokenizer(strips)
    rows = [parse_row({"messages": talk("q", "a", "r", "<think>h</think>b")}, "rows.jsonl", 1)]
    with pytest.raises(UserError, match=r"rows\.jsonl:1 turn 3: the template leaves out a part of the answer"):
        examples.build(rows, tokenizer, [tokenizer.eos_token_id], max_length=200, max_left_out_share=0.0)


def test_a_rows_examples_stay_on_one_side_of_the_validation_split():
    made = [examples.Example(id=f"r{i // 3}", input_ids=[1], labels=[1]) for i in range(300)]
    train, validation = examples.split_validation(made, 0.04, 0)
    assert len(validation) == 12
    assert not {e.id for e in train} & {e.id for e in validation}


@pytest.mark.parametrize("rewrites", [False, True])
def test_turns_of_weight_0_are_not_learnt(makers, qwen3, rewrites):
    """OpenAI's `weight`: a conversation with an answer that is a bad example."""
    tokenizer = qwen3 if rewrites else makers.tokenizer()
    messages = talk(*TEXTS)
    messages[1]["weight"], messages[3]["weight"] = 0, 1
    found = mask_answers(tokenizer, messages, [tokenizer.eos_token_id])
    texts = [learnt(tokenizer, one.labels) for one in found]
    head = THOUGHT if rewrites else ""
    wanted = [f"{head}Rome.<|im_end|>", f"{head}{{}}<|im_end|>"]
    assert texts == (wanted if rewrites else ["".join(wanted)])
    assert all("Paris." in one.text for one in found), "it is still read"
    messages[3]["weight"] = 0.5
    with pytest.raises(MaskError, match=r'"weight" is 0\.5: 0 \(the turn is not learnt\) or 1'):
        mask_answers(tokenizer, messages, [tokenizer.eos_token_id])


def test_the_template_check_asks_for_the_answer_that_is_learnt(qwen3, tmp_path, tiny_model):
    """A last turn of weight 0 is not generated: the prompt before it, in which a thought is left out, is nobody's."""
    messages = talk("q", "<think>\nhm\n</think>\n\na", "r", "b")
    messages[3]["weight"] = 0
    row = parse_row({"id": "r", "messages": messages}, "rows.jsonl", 1)
    kept = [
        Example(id="r", input_ids=one.input_ids, labels=one.labels)
        for one in mask_answers(qwen3, messages, [qwen3.eos_token_id])
    ]
    source = resolve(str(tiny_model))
    ready = SimpleNamespace(tokenizer=qwen3, kept=kept, rows=[row], began="2026-12-01")
    assert template_check.check(ready, source).rows == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_of_which_nothing_is_learnt_is_refused(build, count):
    row = talk(*TEXTS[: 2 * count])
    for turn in row[1::2]:
        turn["weight"] = 0
    with pytest.raises(UserError, match=r"rows\.jsonl:1 no answer of it is learnt"):
        build([row])


def test_glm_stops_with_the_token_that_opens_the_next_turn(makers):
    """Its template closes no turn: the model ends with <|user|>, and after a call with <|observation|>."""
    text = (files("trl") / "chat_templates" / "glm4moe.jinja").read_text(encoding="utf-8")
    roles = ("<|user|>", "<|observation|>")
    tokenizer = makers.tokenizer(text, (*roles, "<|assistant|>", "<|endoftext|>"), "<|endoftext|>")
    stops = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(roles))]
    thought = "\n<think></think>\n"
    (found,) = mask_answers(tokenizer, talk(*TEXTS[:4]), stops)
    assert found.stopped
    assert learnt(tokenizer, found.labels) == f"{thought}Paris.<|user|>{thought}Rome.<|user|>"
    assert len(found.input_ids) == len(found.labels)
    assert found.input_ids[:-1] == render_ids(tokenizer, talk(*TEXTS[:4])), "the last answer's stop is put behind it"
    call = {"type": "function", "function": {"name": "find", "arguments": '{"x": "1"}'}}
    messages = [*talk("q"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    (found,) = mask_answers(tokenizer, messages, stops)
    assert learnt(tokenizer, found.labels).endswith("</tool_call><|observation|>")
    (found,) = mask_answers(tokenizer, messages, [tokenizer.eos_token_id])  # no role is a stop: nothing ends the answer
    assert not found.stopped
    assert len(found.input_ids) == len(found.labels) == len(render_ids(tokenizer, messages))


def test_a_variable_of_the_template_is_kept_in_the_runs_template(makers, tmp_path):
    """Qwen3 without thoughts: the prompt holds the empty ones, and every server renders it so, with no flag."""
    from tunegate.core.model_source import resolve
    from tunegate.train import sft
    from tunegate.train.config import resolve as resolve_config

    model = makers.model(tmp_path / "m")
    (model / "chat_template.jinja").write_text(QWEN3, encoding="utf-8")
    rows = makers.rows(8)
    dataset = makers.dataset(tmp_path / "d", rows[:6], rows[6:])

    def prepared(*defaults):
        return sft.prepare(
            dataset,
            resolve(str(model)),
            resolve_config([("t", {"model": str(model), "template_defaults": list(defaults)})])[0],
        )

    thinking, quiet = prepared(), prepared("enable_thinking=false")
    assert learnt(thinking.tokenizer, thinking.kept[0].labels).startswith(THOUGHT)
    assert learnt(quiet.tokenizer, quiet.kept[0].labels).startswith("{")
    assert thinking.kept[0].input_ids == quiet.kept[0].input_ids, "the same text, another part of it is learnt"
    asked = render(quiet.tokenizer, talk("q"), generate=True)
    assert asked.endswith(THOUGHT)
    assert not render(quiet.tokenizer, talk("q"), generate=True, enable_thinking=True).endswith(THOUGHT), (
        "a request still decides"
    )
    for wrong, words in (
        ("thinking=false", "does not read 'thinking'"),
        ("enable_thinking", "is not NAME=VALUE"),
        ("a b=1", "is not NAME=VALUE"),
    ):
        with pytest.raises(UserError, match=words):
            prepared(wrong)


def test_answers_without_thoughts_where_the_prompt_opens_one_are_told_the_way(makers):
    """Nemotron 3's prompt opens a thought; rows without one need its variable."""
    text = (files("trl") / "chat_templates" / "nemotron_3_nano.jinja").read_text(encoding="utf-8")
    tokenizer = makers.tokenizer(text)
    rows = [parse_row({"messages": talk("q", "a")}, "rows.jsonl", 1)]
    with pytest.raises(UserError, match=r"with and without the answer: '\\n', '</think>") as caught:
        examples.build(rows, tokenizer, [tokenizer.eos_token_id], max_length=900, max_left_out_share=0.0)
    assert caught.value.hint == "answers without thoughts: --template-defaults enable_thinking=false"
    tokenizer.chat_template = with_defaults(text, {"enable_thinking": False})
    kept, _ = examples.build(rows, tokenizer, [tokenizer.eos_token_id], max_length=900, max_left_out_share=0.0)
    assert learnt(tokenizer, kept[0].labels) == "a<|im_end|>"
