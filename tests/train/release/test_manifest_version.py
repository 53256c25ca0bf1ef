"""A manifest whose schema version is no number is damaged, not newer."""

import json
import shutil

import pytest

from tunegate.core.commands import run
from tunegate.train.release.verify_cli import app


@pytest.mark.parametrize(("version", "shown"), [("1", "'1'"), (None, "None"), (1.0, "1.0"), (True, "True"), (0, "0")])
def test_a_schema_version_that_is_none_is_said(version, shown, tiny_dataset, tmp_path, capsys):
    folder = shutil.copytree(tiny_dataset.path, tmp_path / "data")
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "schema_version": version}))
    assert run(app, prog="ft verify", argv=[str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"schema_version must be a whole number from 1 on, found {shown}" in line
    assert "newer" not in line
