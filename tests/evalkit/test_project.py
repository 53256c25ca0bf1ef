"""`ft init` writes a project that runs, or nothing."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models

from tunegate.core.commands import run
from tunegate.core.files import write_jsonl
from tunegate.evalkit.policy import load_policy
from tunegate.evalkit.project.cli import app
from tunegate.evalkit.project.init import _gate, _margin
from tunegate.evalkit.project.sample import sample_rows
from tunegate.evalkit.task import load_task
from tunegate.train.config import from_file, resolve

BIN = Path(sys.executable).parent


def init(capsys, *argv):
    code = run(app, prog="ft init", argv=[str(a) for a in argv])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_the_sample_project_is_read_by_every_stage_and_its_first_steps_run(tmp_path, capsys):
    code, out, err = init(capsys, tmp_path / "p", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["train"] + made["eval"] == 240
    assert made["outputs"] == "json"
    task = load_task(tmp_path / "p/task.yaml")
    assert len(task.rows) == made["eval"]
    assert load_policy(tmp_path / "p/gate.yaml").conditions[0].metric == task.primary == "exact"
    config, settings, notes = resolve([("train.yaml", from_file(tmp_path / "p/train.yaml"))])
    assert config.method == "lora"
    assert notes == []
    assert settings["rank"].origin == "preset recommended"  # commented out, so that the preset still decides
    assert yaml.safe_load((tmp_path / "p/.github/workflows/model-gate.yml").read_text())["jobs"]["gate"]["steps"]
    assert not any("@" in (tmp_path / "p" / name).read_text() for name in ("Makefile", "README.md"))
    plan = subprocess.run(
        ["make", "--no-print-directory", "-n", "gate"],
        cwd=tmp_path / "p",
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    ).stdout
    assert [line.split()[1] for line in plan.splitlines()] == ["train", "merge", "eval", "eval"]
    env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)}
    advice = subprocess.run(
        ["make", "advice"], cwd=tmp_path / "p", capture_output=True, text=True, env=env, check=False
    )
    assert advice.returncode == 0, advice.stderr
    found = yaml.safe_load((tmp_path / "p/recommendation.yaml").read_text())
    assert found["train"]["model"] == found["recommendation"]["model"] == "builtin:smollm2-135m", "the project's own"
    assert ".tunegate/" in (tmp_path / "p/.gitignore").read_text().splitlines(), "where --save-as keeps reports"


def test_ones_own_rows_in_another_format_decide_the_task(tmp_path, capsys):
    rows = [{"instruction": f"Is {i} even?", "input": "", "output": "yes" if i % 2 == 0 else "no"} for i in range(60)]
    (tmp_path / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = init(capsys, tmp_path / "p", "--data", tmp_path / "alpaca.jsonl", "--method", "few_shot")
    assert code == 0
    assert "answers are label; exact decides" in out
    assert "rank" not in (tmp_path / "p/train.yaml").read_text()
    assert "json_valid" not in (tmp_path / "p/gate.yaml").read_text()
    plan = subprocess.run(
        ["make", "--no-print-directory", "-n", "gate"], cwd=tmp_path / "p", capture_output=True, text=True, check=True
    ).stdout
    assert [word for word in ("ft train", "ft eval run ", "ft merge") if word in plan] == ["ft train", "ft eval run "]


def test_two_columns_of_any_name_are_read_again_by_make(tmp_path, capsys):
    """The options that read the rows stand in the Makefile; the gate asks no more than the held-out rows can show."""
    lines = [f"Is {i} even?,{'yes' if i % 2 == 0 else 'no'}" for i in range(90)]
    (tmp_path / "my rows.csv").write_text("\n".join(["The question,it's $answer", *lines]) + "\n")
    assert init(capsys, tmp_path / "p", "--data", tmp_path / "my rows.csv")[0] == 2
    keys = ["--prompt-key", "The question", "--completion-key", "it's $answer"]
    code, out, err = init(capsys, tmp_path / "p", "--data", tmp_path / "my rows.csv", *keys)
    assert code == 0, err
    assert "60 rows to train on, 30 held out" in out
    plan = subprocess.run(
        ["make", "--no-print-directory", "-n", "-B", "data", f"FT={BIN / 'ft'}"],
        cwd=tmp_path / "p",
        capture_output=True,
        text=True,
        check=True,
    )
    command = plan.stdout.strip()
    assert command.startswith(f"{BIN / 'ft'} data prepare data.csv --prompt-key ")
    again = subprocess.run(["bash", "-c", command], cwd=tmp_path / "p", capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    steps = yaml.safe_load((tmp_path / "p/.github/workflows/model-gate.yml").read_text())["jobs"]["gate"]["steps"]
    assert command.split("prepare ")[1].replace("--force", "").strip() in next(
        s["run"] for s in steps if "prepare" in s.get("run", "")
    )


def make(project, *words):
    """Run make in a project, with this checkout's commands first on the path."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=project, capture_output=True, text=True, env=env, check=False
    )


def test_the_advisor_is_told_the_model_where_it_knows_it(tmp_path, capsys, tiny_model):
    for model, told in ((tiny_model, True), ("someone/unheard-of", False)):
        project = tmp_path / Path(model).name
        assert init(capsys, project, "--model", model, "--method", "few_shot")[0] == 0
        plan = make(project, "-n", "advice").stdout
        assert (f"recommend dataset --model {model} --out" in plan) == told
        assert ("recommend dataset --out" in plan) != told


def test_make_runs_again_after_an_edit(tmp_path, capsys, tiny_model):
    """The settings edited, the run is made anew; an unfinished one is resumed, over a finished one too."""
    project = tmp_path / "p"
    assert init(capsys, project, "--model", tiny_model, "--method", "prompt")[0] == 0
    first = make(project, "run/manifest.json")
    assert first.returncode == 0, first.stderr
    assert "is up to date" in make(project, "run/manifest.json").stdout
    before = (project / "run/manifest.json").stat().st_ino
    (project / "train.yaml").touch()
    again = make(project, "run/manifest.json")
    assert again.returncode == 0, again.stderr
    assert (project / "run/manifest.json").stat().st_ino != before
    (project / ".run.training").mkdir()
    (project / "train.yaml").touch()
    plan = make(project, "-n", "run/manifest.json").stdout
    assert plan.split("--out run")[1].split() == ["--force", "--resume"]


def test_a_baseline_is_judged_again_when_its_schema_is_edited(tmp_path, capsys):
    """With the old one the gate refuses: another scorer. A project without a schema has no such file to wait for."""
    answers = {"json": '{{"a": {0}}}', "text": "an answer in words, number {0}, and it is a long one"}
    for kind, answer in answers.items():
        turns = ({"role": "user", "content": "question {0}"}, {"role": "assistant", "content": answer})
        rows = [{"messages": [{**t, "content": t["content"].format(n)} for t in turns]} for n in range(30)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        project = tmp_path / kind
        assert init(capsys, project, "--data", tmp_path / f"{kind}.jsonl")[0] == 0
        (project / "reports/baseline").mkdir(parents=True)
        (project / "reports/baseline/manifest.json").write_text("{}")
        assert "Nothing to be done" in make(project, "-n", "baseline").stdout
        if kind == "json":
            os.utime(project / "task.schema.json", (time.time() + 60,) * 2)
            assert "--save-as baseline" in make(project, "-n", "baseline").stdout


def test_workflow_paths_name_every_file_it_reads(tmp_path, capsys):
    """Its steps run in a folder that holds nothing but the files whose change starts it, by the version that wrote them."""
    project, checkout = tmp_path / "p", tmp_path / "checkout"
    write_jsonl(tmp_path / "my+rows.jsonl", sample_rows())
    assert init(capsys, project, "--data", tmp_path / "my+rows.jsonl")[0] == 0
    answers = [{"id": row.id, "output": row.expected} for row in load_task(project / "task.yaml").rows]
    (project / "eval").mkdir()
    for name in ("candidate", "baseline"):
        write_jsonl(project / f"eval/{name}.jsonl", answers)
    workflow = yaml.safe_load((project / ".github/workflows/model-gate.yml").read_text())
    paths = workflow[True]["pull_request"]["paths"]  # YAML 1.1 reads `on` as true
    assert r"my\+rows.jsonl" in paths, "a plus repeats what stands before it"
    started = [
        "eval/candidate.jsonl",
        "eval/baseline.jsonl",
        *(path.replace("\\", "") for path in paths if "*" not in path),
    ]
    for name in started:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / name, checkout / name)
    assert "eval/**" in paths
    install, *steps = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step][:-1]
    assert install.endswith(f" tunegate=={version('tunegate')}")
    for step in steps:
        env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)}
        words = ["bash", "-e", "-c", step]
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads((checkout / "report/report.json").read_text())["decision"]["decision"] == "PASS"


def test_free_text_has_a_floor_and_copies_of_a_question_count_once(tmp_path, capsys):
    """Beside a baseline that is never right, a model that is never right would be no worse."""
    rows = [
        {"id": str(i), "messages": [{"role": "user", "content": f"What of {i % 30}?"},
                                    {"role": "assistant", "content": f"It is, all in all, {'very ' * i}good."}]}
        for i in range(120)
    ]  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", rows)
    code, out, err = init(capsys, tmp_path / "p", "--data", tmp_path / "rows.jsonl")
    assert code == 0, err
    assert "a paraphrase counts as wrong" in err
    assert "answers are text; exact decides; 80 rows to train on, 40 held out" in out
    assert "the least that 40 held-out rows, 10 distinct questions, can show" in out
    assert "# For 10 different held-out questions" in (tmp_path / "p/gate.yaml").read_text()
    first, *_, floor = load_policy(tmp_path / "p/gate.yaml").conditions
    assert first.margin == _margin(10)
    assert (floor.metric, floor.rule, floor.value) == ("exact", "at_least", 0.1)
    assert "at_least" not in _gate({"primary": "exact", "outputs": "label"}, 40, 0.1)


@pytest.mark.parametrize("n", [10, 30, 53, 100, 400, 2000])
def test_the_gate_of_a_project_can_be_passed_by_an_equal_model(n):
    """Answers that are the baseline's, one of them cut off and no JSON, must get through: else nothing ever would."""
    from tunegate.core.statistics import clopper_pearson, non_inferior_p
    from tunegate.evalkit.policy import make_policy

    text = _gate({"primary": "exact", "outputs": "json"}, n, _margin(n))
    conditions = {c.metric: c for c in make_policy(yaml.safe_load(text), "gate.yaml").conditions}
    assert non_inferior_p(0, 0, n, conditions["exact"].margin) < 0.05
    assert clopper_pearson(1, n, level=0.9).high <= conditions["truncated_rate"].value
    assert clopper_pearson(n - 1, n, level=0.9).low >= conditions["json_valid"].value
    assert n < 2000 or [c.margin or c.value for c in conditions.values()] == [0.02, 0.01, 0.02, 0.95]


@pytest.mark.parametrize(("text", "words"), [("{broken\n", "not valid JSON"), ("", "the file holds no rows")])
def test_bad_rows_leave_nothing(tmp_path, capsys, text, words):
    (tmp_path / "bad.jsonl").write_text(text)
    code, _, err = init(capsys, tmp_path / "p", "--data", tmp_path / "bad.jsonl")
    assert code == 2
    assert words in err
    assert str(tmp_path / "bad.jsonl") in err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_an_existing_folder_stays(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/mine").write_text("x")
    assert init(capsys, tmp_path / "p")[0] == 2
    assert (tmp_path / "p/mine").read_text() == "x"
    assert init(capsys, tmp_path / "q", "--method", "lorra")[0] == 2


def test_force_takes_away_only_what_init_wrote(tmp_path, capsys):
    project = tmp_path / "p"
    assert init(capsys, project)[0] == 0
    assert init(capsys, project, "--force")[0] == 0
    (project / "run").mkdir()
    (project / "run/weights").write_text("trained")
    code, _, err = init(capsys, project, "--force")
    assert (code, "holds run/weights" in err) == (2, True)
    assert (project / "run/weights").read_text() == "trained"


def test_calls_that_the_models_template_leaves_out_are_told_at_once(tmp_path, capsys):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for n in range(40)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    model = tmp_path / "model"
    model.mkdir()
    whole = "{% for m in messages %}<{{ m.role }}>{{ m.content }}CALLS{% endfor %}"
    (model / "chat_template.jinja").write_text(whole.replace("CALLS", ""))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.save(str(model / "tokenizer.json"))
    options = ["--data", tmp_path / "rows.jsonl", "--model", model]
    code, _, err = init(capsys, tmp_path / "p", *options)
    assert code == 0
    assert "leaves the calls out" in err
    assert "leaves the calls out" not in init(capsys, tmp_path / "r", *options, "--method", "few_shot")[2]
    (model / "chat_template.jinja").write_text(whole.replace("CALLS", "{{ m.tool_calls | default('') }}"))
    assert "leaves the calls out" not in init(capsys, tmp_path / "q", *options)[2]
