"""A folder inside an artifact that has a manifest of its own is verified by itself."""

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport, GgufExport, Release
from tunegate.core.errors import UserError


def make(folder, text, kind="gate_decision"):
    folder.mkdir()
    (folder / "f.txt").write_text(text)
    manifest.write(folder, kind, inputs=[], config={})


def test_inner_artifact_is_not_listed_but_verified(tmp_path):
    outer = tmp_path / "outer"
    make(outer, "a")
    digest = manifest.read(outer).digest
    make(outer / "gate", "b")
    assert manifest.verify(outer) == []
    assert manifest.read(outer).digest == digest
    (outer / "gate" / "f.txt").write_text("c")
    assert [problem["path"] for problem in manifest.verify(outer)] == ["gate/f.txt"]
    (outer / "stray.txt").write_text("x")
    assert "stray.txt" in [problem["path"] for problem in manifest.verify(outer)]


@pytest.mark.parametrize("kind", [Release, GgufExport])
def test_nothing_lies_in_what_is_passed_on_that_its_digest_does_not_cover(tmp_path, kind):
    outer = tmp_path / "outer"
    make(outer, "a", kind.kind)
    assert kind.open(outer).path == outer
    (outer / "below").mkdir()
    make(outer / "below" / "inner", "unjudged", "run")
    with pytest.raises(UserError, match="below/inner/ in it is an artifact of its own") as told:
        kind.open(outer)
    assert told.value.hint == "move it out of that folder"


def test_a_report_holds_its_decision(tmp_path):
    outer = tmp_path / "report"
    make(outer, "a", EvalReport.kind)
    make(outer / "gate", "b")
    assert EvalReport.open(outer).path == outer
