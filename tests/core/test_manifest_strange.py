"""A manifest beside links and pipes, and its command line beside passwords in URLs and counts of tokens."""

import json
import os
import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.train.release.verify_cli import app as verify_app


@pytest.fixture
def folder(tiny_dataset, tmp_path):
    return shutil.copytree(tiny_dataset.path, tmp_path / "data")


def test_a_manifest_that_is_a_link_is_a_problem(folder, tmp_path, capsys):
    (folder / "manifest.json").rename(tmp_path / "elsewhere")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere")
    assert manifest.verify(folder) == [{"path": "manifest.json", "problem": "is a symlink"}]
    assert run(verify_app, prog="ft verify", argv=[str(folder), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.timeout(60)
def test_a_pipe_in_a_files_place_is_a_problem_and_is_not_waited_for(folder, capsys):
    (folder / "eval.jsonl").unlink()
    os.mkfifo(folder / "eval.jsonl")
    os.mkfifo(folder / "more")
    assert run(verify_app, prog="ft verify", argv=[str(folder), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"] == [
        {"path": "eval.jsonl", "problem": "not a plain file"},
        {"path": "more", "problem": "not in the manifest"},
    ]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (["eval", "http://me:hunter2@host:8000/v1"], ["eval", "http://***@host:8000/v1"]),
        (["--registry=mlflow:https://me:p@ss@host/x"], ["--registry=mlflow:https://***@host/x"]),
        (["postgresql+psycopg2://me:pw@db/name"], ["postgresql+psycopg2://***@db/name"]),
        (["hf://owner/name@v2", "s3://bucket/a@b"], ["hf://owner/name@v2", "s3://bucket/a@b"]),
        (["git@host:repo", "a@b.example"], ["git@host:repo", "a@b.example"]),
        (["--max-tokens", "32", "--input-tokens=7"], ["--max-tokens", "32", "--input-tokens=7"]),
        (["--tokenizer", "x", "--keyless", "run"], ["--tokenizer", "x", "--keyless", "run"]),
        (["--token", "x", "--identity-token=y"], ["--token", "***", "--identity-token=***"]),
    ],
)
def test_what_is_hidden_of_a_command_line(argument, shown):
    assert manifest.redact(argument) == shown
