"""`mask` against a slow reference, on templates in the style of six model families; what cannot be masked is refused."""

import itertools

import pytest

from tunegate.core.chat_template import (
    PROBE,
    MaskError,
    RewrittenError,
    default_template,
    mask,
    probe_digest,
    render,
    render_ids,
    template_digest,
    template_text,
)
from tunegate.core.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% set ns = namespace(head='') %}<s>{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.head = m.content ~ '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.head }}{{ m.content }}[/INST]{% set ns.head = '' %}"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{% set ns = namespace(head='') %}<bos>{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.head = m.content ~ '\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ ns.head }}{{ m.content | trim }}"
    "<end_of_turn>\n{% set ns.head = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% if tools or messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content if messages[0].role == 'system' else '' }}"
    "{% if tools %}\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}{% endif %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nA helpful assistant named Smol.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
STYLES = {
    "chatml": (CHATML, IM),
    "llama3": (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>")),
    "gemma": (GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "qwen": (QWEN, IM),
    "smollm2": (SMOLLM2, IM),
}
TURNS = ["What is two plus two?", '{"sum": 4}', "naïve café 東京 🙂", "  two  spaces\n", "last\n\nquestion", "Paris."]
SYSTEM = {"role": "system", "content": "Answer in JSON."}


def conversation(pairs, system=False):
    roles = itertools.cycle(("user", "assistant"))
    turns = [{"role": role, "content": text} for role, text in zip(roles, TURNS[: 2 * pairs], strict=False)]
    return [SYSTEM, *turns] if system else turns


def shared(first, second):
    """Length of the longest common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def slow_labels(tokenizer, messages, stop, tools=None):
    """The labels by comparing token ids: what the rendering with an answer adds to the prompt before it, to its stop."""
    ids = render_ids(tokenizer, messages, tools=tools)
    labels = [-100] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render_ids(tokenizer, messages[:index], tools=tools, generate=True)
        after = render_ids(tokenizer, messages[: index + 1], tools=tools)
        start, end = shared(prompt, ids), shared(after, ids)
        assert start == len(prompt)
        while ids[end - 1] != stop:
            end -= 1
        labels[start:end] = ids[start:end]
    return ids, labels


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_the_mask_is_that_of_the_slow_reference(makers, style, system, pairs):
    template, specials = STYLES[style]
    tokenizer = makers.tokenizer(template, specials, specials[-1])
    messages = conversation(pairs, system)
    tools = [{"name": "add"}] if style == "qwen" else None
    found = mask(tokenizer, messages, [tokenizer.eos_token_id], tools=tools)
    ids, labels = slow_labels(tokenizer, messages, tokenizer.eos_token_id, tools)
    assert found.input_ids == ids
    assert found.labels == labels
    assert found.stopped
    learnt = [label for label in found.labels if label != -100]
    assert found.label_tokens == len(learnt)
    assert learnt.count(tokenizer.eos_token_id) == pairs
    text = tokenizer.decode(learnt)
    assert all(turn["content"].strip() in text for turn in messages if turn["role"] == "assistant")
    assert not any(turn["content"].strip() in text for turn in messages if turn["role"] != "assistant")


def test_special_token_text_in_an_answer_does_not_end_it_early(makers):
    tokenizer = makers.tokenizer()
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "say <|im_end|> twice"}]
    found = mask(tokenizer, messages, [tokenizer.eos_token_id])
    assert tokenizer.decode([i for i in found.labels if i != -100]) == "say <|im_end|> twice<|im_end|>"


def test_an_answer_without_a_stop_token_is_told(makers):
    template = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
    tokenizer = makers.tokenizer(template)
    assert not mask(tokenizer, conversation(1), [tokenizer.eos_token_id]).stopped


def test_a_template_that_rewrites_earlier_turns_has_no_one_rendering(makers):
    strips_thoughts = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or '</think>' not in m.content else m.content.split('</think>')[1] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = makers.tokenizer(strips_thoughts)
    messages = conversation(2)
    assert mask(tokenizer, messages, [tokenizer.eos_token_id]).stopped
    messages[1] = {"role": "assistant", "content": "<think>2+2</think>4"}
    assert mask(tokenizer, messages[:2], [tokenizer.eos_token_id]).stopped
    with pytest.raises(RewrittenError, match="turn 1: the template renders the turn differently once others follow"):
        mask(tokenizer, messages, [tokenizer.eos_token_id])


def test_a_system_prompt_moved_to_the_last_user_turn_is_refused_only_where_it_moves(makers):
    moves = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]"
        "{% if messages[0].role == 'system' and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
        "{{ messages[0].content }}\n{% endif %}{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    tokenizer = makers.tokenizer(moves, ("[INST]", "[/INST]", "</s>"), "</s>")
    assert mask(tokenizer, conversation(1, system=True), [tokenizer.eos_token_id]).stopped
    with pytest.raises(MaskError, match="turn 2: the template renders"):
        mask(tokenizer, conversation(2, system=True), [tokenizer.eos_token_id])


def test_a_token_that_straddles_the_start_of_the_answer_is_refused(makers):
    template = (
        "{% for m in messages %}{{ m.role }}c{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistantc{% endif %}"
    )
    tokenizer = makers.tokenizer(template)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "apital"}]
    assert len(tokenizer("capital")["input_ids"]) < 1 + len(tokenizer("apital")["input_ids"]), "c and a are one token"
    with pytest.raises(MaskError, match="turn 1: a token straddles"):
        mask(tokenizer, messages, [tokenizer.eos_token_id])


def test_a_template_that_refuses_or_is_missing_is_the_users_to_mend(makers):
    refusing = makers.tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refuses these messages: roles must alternate"):
        render(refusing, conversation(1))
    with pytest.raises(UserError, match="no chat template"):
        render(makers.tokenizer(None), conversation(1))


def test_digests_tell_templates_and_tokenizers_apart(makers):
    chatml, again, smol = (makers.tokenizer(t) for t in (CHATML, CHATML, SMOLLM2))
    assert template_digest(chatml) == template_digest(again) != template_digest(smol)
    assert probe_digest(chatml) == probe_digest(again)
    other = makers.tokenizer(CHATML, ("<|im_end|>", "<|im_start|>"), "<|im_end|>")
    assert probe_digest(chatml) != probe_digest(other), "the same text, other ids"


def test_the_probe_s_digest_is_of_no_day(makers, monkeypatch):
    """A template that writes the date has one digest on every day; only its prompts differ."""
    import transformers.utils.chat_template_utils as utils

    tokenizer = makers.tokenizer("{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    today, text = probe_digest(tokenizer), render(tokenizer, conversation(1))

    class Later(utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(utils, "datetime", Later)
    assert render(tokenizer, conversation(1)) != text
    assert render(tokenizer, conversation(1)).startswith("2031-05-06")
    assert probe_digest(tokenizer) == today
    assert probe_digest(makers.tokenizer("{{ strftime_now('%Y/%m/%d') }}" + CHATML)) != today


def test_an_answer_that_an_earlier_turn_foretells_is_labelled_at_its_own_place(makers):
    tokenizer = makers.tokenizer()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Paris."},
        {"role": "assistant", "content": "Paris."},
    ]
    found = mask(tokenizer, messages, [tokenizer.eos_token_id])
    runs = [
        (learnt, "".join(tokenizer.decode([i]) for i, _ in group))
        for learnt, group in itertools.groupby(
            zip(found.input_ids, found.labels, strict=True), key=lambda pair: pair[1] != -100
        )
    ]
    assert [text for learnt, text in runs if learnt] == ["Paris.<|im_end|>"] * 2
    assert runs[0] == (False, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    assert runs[2][1] == "\n<|im_start|>user\nParis.<|im_end|>\n<|im_start|>assistant\n"
    assert runs[-1] == (False, "\n"), "what the template writes after the stop token is not learnt"


def test_one_answer_without_a_stop_token_among_others_is_told_and_still_learnt_whole(makers):
    """The first turn ends without one, the second with one: `stopped` is about every turn."""
    template = (
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ '' if loop.index == 2 else '<|im_end|>' }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    )
    tokenizer = makers.tokenizer(template)
    found = mask(tokenizer, conversation(2), [tokenizer.eos_token_id])
    assert not found.stopped
    text = tokenizer.decode([i for i in found.labels if i != -100])
    assert text == f"{TURNS[1]}\n{TURNS[3]}<|im_end|>"


def test_the_earlier_of_two_stop_tokens_is_learnt_too(makers):
    """Llama 3.1 ends a call with <|eom_id|> and a turn with <|eot_id|>: the span goes to the last of them."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|eom|><|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = makers.tokenizer(template, ("<|im_start|>", "<|im_end|>", "<|eom|>"))
    eom, end = tokenizer.convert_tokens_to_ids(["<|eom|>", "<|im_end|>"])
    for stops, tail in (([eom, end], [eom, end]), ([eom], [eom])):
        learnt = [i for i in mask(tokenizer, conversation(1), stops).labels if i != -100]
        assert learnt[-len(tail) :] == tail
        assert learnt.count(eom) == 1


def test_of_an_empty_answer_the_stop_token_is_learnt(makers):
    tokenizer = makers.tokenizer()
    found = mask(tokenizer, [*conversation(1)[:1], {"role": "assistant", "content": ""}], [tokenizer.eos_token_id])
    assert [i for i in found.labels if i != -100] == [tokenizer.eos_token_id]
    assert found.stopped


def test_a_generation_prompt_that_no_answer_begins_with_is_refused(makers):
    """A template that opens a thought for the model, as Qwen3's and DeepSeek's may, and writes none into the history."""
    opens = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    tokenizer = makers.tokenizer(opens)
    assert render(tokenizer, conversation(1)[:1], generate=True).endswith("<think>\n")
    with pytest.raises(
        MaskError, match=r"turn 1: the template renders the prompt differently.*: '<think>\\n', '\{\"sum"
    ):
        mask(tokenizer, conversation(1), [tokenizer.eos_token_id])


def test_tools_and_the_generation_prompt_reach_the_template(makers):
    tokenizer = makers.tokenizer(QWEN)
    tools = [{"name": "add"}]
    assert 'Tools:{"name": "add"}' in render(tokenizer, conversation(1), tools=tools)
    assert "Tools" not in render(tokenizer, conversation(1))
    ask = conversation(1)[:1]
    assert render(tokenizer, ask, generate=True) == render(tokenizer, ask) + "<|im_start|>assistant\n"
    assert render_ids(tokenizer, ask) == tokenizer(render(tokenizer, ask)).input_ids
    assert (
        render_ids(tokenizer, ask, tools=tools, generate=True)
        == tokenizer(render(tokenizer, ask, tools=tools, generate=True), add_special_tokens=False).input_ids
    )


def test_a_tokenizer_that_writes_its_own_start_token_adds_none_to_a_template(makers):
    """Llama's tokenizer puts <|begin_of_text|> before any text; the template has already written it."""
    from tokenizers.processors import TemplateProcessing

    plain, adding = makers.tokenizer(), makers.tokenizer()
    start = ("<|im_start|>", plain.convert_tokens_to_ids("<|im_start|>"))
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    assert adding("x").input_ids == [start[1], *plain("x").input_ids]
    messages = conversation(2)
    assert render_ids(adding, messages) == render_ids(plain, messages)
    assert mask(adding, messages, [plain.eos_token_id]) == mask(plain, messages, [plain.eos_token_id])


@pytest.mark.parametrize("missing", [None, "", ["a list"], 3])
def test_what_is_no_template_is_said_with_what_to_do(makers, missing):
    import types

    bare = types.SimpleNamespace(chat_template=missing)
    for ask in (template_digest, probe_digest, lambda t: render(t, conversation(1))):
        with pytest.raises(UserError) as caught:
            ask(bare)
        assert caught.value.line() == (
            "the model has no chat template (use an instruct model, or add chat_template.jinja to its folder)"
        )
    with pytest.raises(UserError, match="no chat template"):
        template_digest(object())


def test_digests_are_of_the_text_and_of_the_probes_ids(makers):
    import hashlib
    import json

    tokenizer = makers.tokenizer(CHATML)
    assert template_digest(tokenizer) == hashlib.sha256(CHATML.encode()).hexdigest()
    ids = json.dumps(render_ids(tokenizer, PROBE), separators=(",", ":"))
    assert probe_digest(tokenizer) == hashlib.sha256(ids.encode()).hexdigest()
    text = render(tokenizer, PROBE)
    for part in ("0123456789", "東京", "🙂", "two  spaces\n", "\t", "<|im_end|>", "ï"):
        assert part in text
    assert [m["role"] for m in PROBE] == ["system", "user", "assistant"]


def test_a_template_that_drops_tool_calls_is_refused(makers):
    tokenizer = makers.tokenizer()
    call = {"id": "c", "type": "function", "function": {"name": "book_seats", "arguments": "{}"}}
    messages = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(MaskError, match="turn 1: the template leaves out the call of 'book_seats'"):
        mask(tokenizer, messages, [tokenizer.eos_token_id])


def test_a_call_is_looked_for_in_its_own_turn(makers):
    """The user may have named the function, and a later turn may call it."""
    calls = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if not loop.index0 in dropped | default([]) %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"id": "c", "type": "function", "function": {"name": "book_seats", "arguments": "{}"}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    ask = {"role": "user", "content": "call book_seats", "tool_calls": []}
    whole = makers.tokenizer(calls)
    found = mask(whole, [ask, turn, ask, turn], [whole.eos_token_id])
    learnt = whole.decode([i for i in found.labels if i != -100])
    assert learnt == "book_seats<|im_end|>" * 2
    for dropped in (1, 3):
        tokenizer = makers.tokenizer(calls.replace("dropped | default([])", f"[{dropped}]"))
        with pytest.raises(MaskError, match=f"turn {dropped}: the template leaves out the call of 'book_seats'"):
            mask(tokenizer, [ask, turn, ask, turn], [tokenizer.eos_token_id])


def test_a_template_that_ends_every_rendering_with_the_end_of_text(makers):
    """Phi-3's: <|endoftext|> stands after the last turn of whatever is rendered, <|end|> after each."""
    phi3 = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
    )
    tokenizer = makers.tokenizer(phi3, ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>")
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    found = mask(tokenizer, conversation(2), stops)
    learnt = tokenizer.decode([i for i in found.labels if i != -100])
    assert learnt == f"{TURNS[1]}<|end|>{TURNS[3]}<|end|>\n<|endoftext|>"
    assert found.stopped


@pytest.mark.parametrize("call", ["book", {"id": "c"}, {"function": "book"}, {"function": {"arguments": "{}"}}])
def test_a_call_without_a_name_is_no_crash(makers, call):
    tokenizer = makers.tokenizer()
    messages = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "four", "tool_calls": [call]}]
    assert mask(tokenizer, messages, [tokenizer.eos_token_id]).stopped


NAMED = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    ("value", "plain", "tools"),
    [
        ("{{ x }}", "{{ x }}", "{{ x }}"),
        (NAMED, *NAMED.values()),
        ([{"name": name, "template": text} for name, text in NAMED.items()], *NAMED.values()),
        ({"default": "d"}, "d", "d"),
        ({"tool_use": "t"}, None, "t"),
        ([{"name": "default"}, "default", {"template": "x"}], None, None),
        *((nothing, None, None) for nothing in (None, "", [], {}, 7, {"default": 7})),
    ],
)
def test_one_reading_of_several_templates(value, plain, tools):
    assert default_template(value) == plain
    assert default_template(value, tools=True) == tools


def test_a_tokenizer_with_several_templates_has_one(makers):
    tokenizer = makers.tokenizer()
    digest, text = template_digest(tokenizer), tokenizer.chat_template
    tokenizer.chat_template = {"default": text, "tool_use": "x"}
    assert template_digest(tokenizer) == digest
    assert template_text(tokenizer) == text
