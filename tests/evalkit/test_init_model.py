"""`ft init` refuses a model that no later stage could take, before it writes anything."""

import pytest

from tunegate.core.commands import run
from tunegate.evalkit.project.cli import app


@pytest.mark.parametrize(
    "model", ["nosuch", "./nosuch", "a/b/c", "/nosuch/model", "models/nosuch.gguf", "builtin:nosuch"]
)
def test_a_model_that_can_be_none_is_refused_with_a_hint(tmp_path, capsys, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert run(app, prog="ft init", argv=["p", "--model", model]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "nosuch" in lines[0] or "a/b/c" in lines[0]
    assert not (tmp_path / "p").exists()
    if model == "nosuch":
        assert "not a folder, a hub id (owner/name) or a builtin (known: builtin:smollm2-135m)" in lines[0]


@pytest.mark.parametrize("model", ["owner/name", "http://127.0.0.1:9/v1", "builtin:smollm2-135m"])
def test_what_may_be_a_model_later_is_taken(tmp_path, capsys, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert run(app, prog="ft init", argv=["p", "--model", model]) == 0, capsys.readouterr().err
    assert f"model: {model}" in (tmp_path / "p" / "train.yaml").read_text()
