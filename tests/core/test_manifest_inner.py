"""A folder inside an artifact that has a manifest of its own is verified by itself."""

from tunegate.core import manifest


def make(folder, text):
    folder.mkdir()
    (folder / "f.txt").write_text(text)
    manifest.write(folder, "gate_decision", inputs=[], config={})


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
