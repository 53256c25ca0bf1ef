"""Which parser reads a model's tool calls, by its chat template; requests with tools for a model that takes none."""

import json
import subprocess
import sys
from importlib.resources import files

import pytest

from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.model_source import of_folder
from tunegate.serve.served_model import has_dated_template, template_digest
from tunegate.serve.tool_calls import FORMS, check_takes_tools, parser_of, tool_flags
from tunegate.serve.vllm_flags import ServeOptions, build

TEMPLATES = files("trl") / "chat_templates"
# Templates that TRL brings along, each the model's own, and the parser that vLLM's documentation names for the model.
OWN = {
    "qwen2_5": "hermes", "qwen3": "hermes", "qwen3_instruct_2507": "hermes", "qwen3_5_think": "qwen3_coder",
    "qwen3_5_nothink": "qwen3_coder", "qwen3_8": "qwen3_coder", "nemotron_3_nano": "qwen3_coder", "llama3_1": "llama3_json",
    "llama3_2": "llama3_json", "glm4moe": "glm45", "gemma4": "gemma4", "lfm2_v2": "lfm2", "lfm2_2_5": "lfm2",
    "muse_glimmer": "muse_glimmer", "deepseekv3": "deepseek_v3", "gptoss": "openai",
}  # fmt: skip
NONE = ("llama3", "gemma3", "phi3", "smolvlm", "cohere")
ENABLE, PARSER = "--enable-auto-tool-choice", "--tool-call-parser"


def text_of(name):
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def model_with(makers, folder, template):
    makers.model(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return of_folder(folder)


@pytest.mark.parametrize("name", OWN)
def test_a_template_tells_its_parser(name):
    assert parser_of(text_of(name)) == OWN[name]


@pytest.mark.parametrize("name", NONE)
def test_a_template_without_calls_has_none(name):
    assert parser_of(text_of(name)) is None


def test_a_server_takes_tools_where_the_template_does(makers, tmp_path):
    source = model_with(makers, tmp_path / "m", text_of("qwen2_5"))
    arguments = build(source, ServeOptions(max_model_len=256)).arguments
    assert ENABLE in arguments
    assert arguments[arguments.index(PARSER) + 1] == "hermes"
    check_takes_tools(source)


@pytest.mark.parametrize(
    ("extra", "added"),
    [
        ((), [ENABLE, PARSER, "hermes"]),
        ((ENABLE,), [PARSER, "hermes"]),
        ((PARSER, "xlam"), [ENABLE]),
        ((f"{PARSER}=xlam", ENABLE), []),
    ],
)
def test_what_the_user_passes_on_stands(makers, tmp_path, extra, added):
    assert tool_flags(model_with(makers, tmp_path / "m", text_of("qwen3")), extra) == added


def test_the_template_passed_on_counts(makers, tmp_path):
    plain = of_folder(makers.model(tmp_path / "m"))
    assert tool_flags(plain, ()) == []
    own = tmp_path / "own.jinja"
    own.write_text(text_of("llama3_1"), encoding="utf-8")
    assert tool_flags(plain, ("--chat-template", str(own)))[-1] == "llama3_json"


def test_a_form_not_known_is_told(makers, tmp_path, capsys):
    unknown = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}CALL {{ c.function.name }}{% endfor %}{% endfor %}"
    source = model_with(makers, tmp_path / "m", unknown)
    assert tool_flags(source, ()) == []
    assert f"of a form not known here: -- {ENABLE} {PARSER} NAME" in capsys.readouterr().err
    with pytest.raises(UserError, match="a form not known here"):
        check_takes_tools(source)


def test_a_model_without_tools_is_refused_before_anything_starts(makers, tmp_path):
    with pytest.raises(UserError, match="a chat template without tools") as found:
        check_takes_tools(of_folder(makers.model(tmp_path / "m")))
    assert "send_tools: false" in found.value.hint


READ_BACK = """
import json, sys
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager
from tunegate.core.chat_template import render

folder, marks, pairs = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
tools = [{"type": "function", "function": {"name": "find", "description": "d", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}}}]
call = {"id": "call_0001", "type": "function", "function": {"name": "find", "arguments": '{"city": "K\\u00f6ln", "n": 3}'}}
turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.add_special_tokens({"additional_special_tokens": marks})
found = {}
for name, (template, parser) in pairs.items():
    tokenizer.chat_template = template
    text = render(tokenizer, turns, tools=tools)
    written = text[text.rindex("QUESTION") + len("QUESTION"):]
    request = ChatCompletionRequest(model="m", messages=turns[:1], tools=tools)
    read = ToolParserManager.get_tool_parser(parser)(tokenizer, request.tools).extract_tool_calls(written, request)
    found[name] = [[c.function.name, json.loads(c.function.arguments)] for c in read.tool_calls]
print(json.dumps(found))
"""
# Marks that some parsers look up in the vocabulary.
MARKS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_call_start|>",
    "<|tool_call_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>", "<|python_tag|>", "<atem:function_calls>", "</atem:function_calls>", "[TOOL_CALLS]",
]  # fmt: skip
MISTRAL = (
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% endfor %}]</s>{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% endfor %}"
)


@pytest.mark.slow
def test_vllms_parser_reads_back_what_the_template_writes(makers, tmp_path):
    """Each form once through vLLM's own code: rendered by its template, read by the parser that is chosen for it."""
    pairs = {name: (text_of(name), parser) for name, parser in OWN.items() if parser != "openai"}
    pairs["mistral"] = (MISTRAL, parser_of(MISTRAL))
    folder = makers.model(tmp_path / "m")
    words = [sys.executable, "-c", READ_BACK, str(folder), json.dumps(MARKS), json.dumps(pairs)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [["find", {"city": "Köln", "n": 3}]] for name in pairs}
    assert {parser for _, parser in pairs.values()} == {name for name, _ in FORMS} - {"openai", "kimi_k2"}


def test_llama_cpps_server_hands_turns_over_likewise():
    """The worker runs where nothing of ours is installed, so it has a function of its own for it."""
    from tunegate.core.template_input import rendered
    from tunegate.train.release.workers.llama_server import _turn

    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [{**call, "function": {"name": "g", "arguments": ""}}]},
        {"role": "assistant", "content": "a", "tool_calls": []},
    ]
    ours = rendered(lambda found, _: found, turns, None)
    assert [
        {"tool_calls": None, **_turn(turn)} | {"tool_calls": _turn(turn).get("tool_calls") or None} for turn in turns
    ] == [{"tool_calls": None, **turn} for turn in ours]


@pytest.mark.parametrize("names", [("default",), ("tool_use", "default")])
def test_one_of_several_templates_tells_the_parser_and_the_date(makers, tmp_path, names):
    """vLLM renders requests with tools by `tool_use`, where there is one."""
    folder = makers.model(tmp_path / "m")
    plain = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    texts = {"default": "{{ strftime_now('%d') }}" + plain, names[0]: "{{ strftime_now('%d') }}" + text_of("qwen2_5")}
    named = [{"name": name, "template": texts[name]} for name in ("default", *names[:-1])]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    source = of_folder(folder)
    assert tool_flags(source, ()) == [ENABLE, PARSER, "hermes"]
    check_takes_tools(source)
    assert has_dated_template(source)
    assert template_digest(source) == sha256_text(texts["default"])
