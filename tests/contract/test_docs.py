"""The documents beside the code say what the code does."""

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def script(place):
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_that_of_the_code():
    reference = script(ROOT / "docs" / "cli_reference.py")
    assert (ROOT / "docs" / "cli.md").read_text() == reference.page(), "run: python docs/cli_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    absent = [t for t in targets if not re.match(r"[a-z]+:", t) and not (page.parent / t).exists()]
    assert absent == []


def test_commands_that_pages_show_exist():
    """`ft WORD` and `ftadvise WORD` in code of the pages are commands; options in them are options of some command."""
    known = set(
        re.findall(r"^#+ (ft(?:advise)? [a-z-]+(?: [a-z-]+)?)$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    )
    first = {" ".join(name.split()[:2]) for name in known}
    odd = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
            for tool, word in re.findall(r"(?:^|[\s$(])(ft|ftadvise) ([a-z][a-z-]*)", "".join(block)):
                if f"{tool} {word}" not in first:
                    odd.append(f"{page.relative_to(ROOT)}: {tool} {word}")
    assert odd == []


# The help pages whose example is one line for a shell.
PASTED = ("ft", "ftadvise", "ft doctor", "ft serve", "ft loadtest", "ft eval", "ft gate", "ft report", "ft data", "ft init",
          "ft release", "ft verify", "ft merge", "ft quantize", "ft export", "ft push", "ft train")  # fmt: skip
OTHERS = ("cd", "make", "ollama")  # programs that are not ours, in such a line


def test_examples_of_the_help_can_be_pasted():
    """Every word of an example is taken by the command it names: no prose in it that a shell would pass on, or choke on."""
    reference = script(ROOT / "docs" / "cli_reference.py")
    roots = {"ft": reference.ft, "ftadvise": reference.ftadvise}
    commands = {tool: typer.main.get_command(app) for tool, app in roots.items()}
    looked_at = 0
    for tool, command in commands.items():
        for path, found in reference.commands(command, tool):
            if path not in PASTED and not path.startswith(tuple(f"{name} " for name in PASTED[1:])):
                continue
            example = (found.epilog or "").removeprefix("Example: ")
            for part in example.split("&&") if example else []:
                words = shlex.split(part)
                assert words[0] in (*commands, *OTHERS), f"{path}: {part}"
                assert not {"then", "or", "and"} & set(words), f"{path}: {part}"
                if words[0] in commands:
                    _taken(commands[words[0]], words)
                looked_at += 1
    assert looked_at > 40


@pytest.mark.parametrize("spec", ["builtin:smollm2-135m", "my model/"])
def test_the_command_that_training_names_for_calibrating_is_taken(capsys, tmp_path, monkeypatch, spec):
    from tunegate.core.model_source import ModelSource
    from tunegate.train import preflight
    from tunegate.train.config import TrainConfig

    monkeypatch.chdir(tmp_path)
    shape = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256}  # fmt: skip
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "config.json").write_text(json.dumps(shape))
    source = ModelSource(spec, "folder", str(tmp_path / "my model"), "m")
    load = preflight.Load(rows=100, longest=64, mean=40.4, label_share=0.5)
    found = preflight.forecast(source, TrainConfig(device="cpu", per_device_train_batch_size=2), load, "cpu")
    found.measured(1000.0, 1.0)
    words = shlex.split(capsys.readouterr().err.rpartition(" by: ")[2])
    assert words[:3] == ["ftadvise", "calibrate", "RUN"]
    taken = _taken(typer.main.get_command(script(ROOT / "docs" / "cli_reference.py").ftadvise), words)
    assert taken["gpu"] == "cpu"
    assert [taken[key] for key in ("model", "method", "batch", "seq")] == [None] * 4, "they come from the Run"


def _taken(command, words):
    """The parameters of `words`, parsed as the command line does, calling nothing."""
    name, *rest = words
    context = command.make_context(name, list(rest))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)
    return context.params


def test_tests_that_pages_name_exist():
    named = {
        m for page in PAGES for m in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    odd = [
        f"{path}::{name}"
        for path, name in sorted(named)
        if not (ROOT / path).is_file() or (name and f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert odd == []


def test_published_figures_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    publish = script(ROOT / "benchmarks" / "publish.py")
    shown = set()
    for page in publish.pages():
        text = page.read_text(encoding="utf-8")
        assert publish.filled(text) == text, f"{page.name}: run python benchmarks/publish.py fill"
        shown |= {name for _, name, _ in publish.BLOCK.findall(text)}
    assert shown - {"headlines", "commands"} == {place.stem for place in publish.RESULTS.glob("*.md")}
    assert all((ROOT / "benchmarks" / command[0]).is_file() for command in publish.PUBLISHED.values())


def test_a_result_begins_with_its_published_command(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    publish = script(ROOT / "benchmarks" / "publish.py")
    commands = {**publish.PUBLISHED, "one-go": ("publish.py", "one-go")}
    first = {
        place.stem: re.match(r"`python benchmarks/([^`]+)`: ", place.read_text(encoding="utf-8"))[1]
        for place in publish.RESULTS.glob("*.md")
    }
    assert first == {name: " ".join(commands[name]) for name in first}


def test_make_bench_runs_every_script_and_each_has_a_short_form(monkeypatch):
    listed = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"benchmarks/(\w+\.py)", listed))
    assert names == {place.name for place in (ROOT / "benchmarks").glob("*.py")} - {"peers.py", "publish.py"}
    assert all('"--short"' in (ROOT / "benchmarks" / name).read_text(encoding="utf-8") for name in names)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    publish = script(ROOT / "benchmarks" / "publish.py")
    assert {command[0] for command in publish.SMALL.values()} == names - {"serve_latency.py"}


def test_the_readme_promotes_what_the_demo_made():
    """What is pasted after `make demo` finds its folders, and the screen shown is the one of the on-call page, cut."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = shlex.split(re.search(r"^\$ (ft release promote .*)$", text, re.MULTILINE)[1])
    demo = (ROOT / "examples" / "demo" / "demo.py").read_text(encoding="utf-8")
    assert 'RELEASE, QUANTIZED = BUILD / "release", BUILD / f"release-{SCHEME}"' in demo
    assert 'BASE_REPORT, REPORT = BUILD / "eval-base", BUILD / f"eval-{SCHEME}"' in demo
    assert [words[3], words[words.index("--gate") + 1]] == ["build/demo/release-awq", "build/demo/eval-awq/gate"]
    shown = text.partition("$ ft release show champion\n")[2].partition("```")[0].splitlines()
    whole = (ROOT / "docs" / "on-call.md").read_text(encoding="utf-8").splitlines()
    assert len(shown) > 6
    assert [line for line in shown if line != "..." and line not in whole] == []


def test_the_readme_and_the_bakeoff_page_name_the_demos_own_score():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    score = re.search(r"│ admissible +│[^│]*│ +([\d.]+)% ", text)[1]
    assert f"reaches the {float(score):.0f} % above" in text
    assert f"reaches {float(score):.0f} %" in (ROOT / "docs" / "bakeoff.md").read_text(encoding="utf-8")


def test_the_failed_start_that_a_page_quotes_is_one_that_can_come(tmp_path):
    """The rank of an adapter is held against --max-lora-rank before vLLM is started; a misspelt flag only vLLM knows."""
    from tunegate.serve.vllm_failures import explain

    log = tmp_path / "8000.log"
    log.write_text("api_server.py: error: unrecognized arguments: --max-modle-len 5\n")
    told = explain(log, 2).line().replace(str(log), "...")
    assert f"error: {told}" in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
