"""Names for reports: history kept, two writers at once, tampering seen."""

import json
import shutil
import subprocess
import sys

import pytest

from tunegate.core import manifest, registry
from tunegate.core.artifacts import EvalReport
from tunegate.core.errors import UserError


def make_report(folder, text="x"):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"text": text}))
    manifest.write(folder, "eval_report", inputs=[], config={})
    return EvalReport.open(folder)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_is_named_is_copied_in(tmp_path):
    report = make_report(tmp_path / "report")
    registry.save("base", report)
    shutil.rmtree(report.path)
    found = registry.find_report("base")
    assert found.digest == report.digest
    assert found.report() == {"text": "x"}
    assert registry.has_report("base")
    assert not registry.has_report("other")


def test_a_name_moves_on_and_its_history_stays(tmp_path, home):
    first, second = make_report(tmp_path / "a", "a"), make_report(tmp_path / "b", "b")
    registry.save("base", first)
    registry.save("base", second)
    assert registry.find_report("base").digest == second.digest
    entries = json.loads((home / "registry.json").read_text())["entries"]
    assert [e["digest"] for e in entries["eval_report/base"]] == [first.digest, second.digest]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", ".hidden", "http://x", "a\n"])
def test_names_that_could_be_paths_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="not a usable name"):
        registry.save(name, make_report(tmp_path / "report"))


def test_an_unknown_name_offers_the_nearest(tmp_path):
    with pytest.raises(UserError, match="'base'") as caught:
        registry.find_report("base")
    assert "--save-as base" in caught.value.hint
    registry.save("baseline", make_report(tmp_path / "report"))
    with pytest.raises(UserError) as caught:
        registry.find_report("basline")
    assert '"baseline"' in caught.value.hint


def test_a_tampered_store_is_refused(tmp_path):
    stored = registry.save("base", make_report(tmp_path / "report"))
    (stored / "report.json").write_text(json.dumps({"text": "longer than before"}))
    with pytest.raises(UserError, match="its manifest says"):
        registry.find_report("base")
    shutil.rmtree(stored)
    other = make_report(tmp_path / "other", "y")
    shutil.copytree(other.path, stored)
    with pytest.raises(UserError, match="was changed"):
        registry.find_report("base")


def test_a_tampered_store_of_the_same_size_is_refused(tmp_path):
    stored = registry.save("base", make_report(tmp_path / "report"))
    (stored / "report.json").write_text(json.dumps({"text": "y"}))
    with pytest.raises(UserError, match="changed"):
        registry.find_report("base")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"entries": 4}', '{"entries": {"eval_report/base": 4}}', "{}", "[" * 100_000, '{"entries": NaN}', "\x00",
        '{"entries": {"eval_report/base": [{"path": "../../etc", "digest": "a"}]}}',
        '{"entries": {"eval_report/base": [{"path": "a", "digest": 7}]}}',
    ],
)  # fmt: skip
def test_a_damaged_registry_is_a_user_error(tmp_path, home, text):
    home.mkdir()
    (home / "registry.json").write_text(text)
    with pytest.raises(UserError, match="registry file is damaged"):
        registry.find_report("base")


SAVER = """
import sys
from pathlib import Path
from tunegate.core import registry
from tunegate.core.artifacts import EvalReport
report = EvalReport.open(Path(sys.argv[1]))
sys.stdin.readline()
for i in range(10):
    registry.save(f"{sys.argv[2]}{i}", report)
"""


def test_two_processes_saving_at_once_lose_nothing(tmp_path, home):
    report = make_report(tmp_path / "report")
    savers = [
        subprocess.Popen([sys.executable, "-c", SAVER, str(report.path), name], stdin=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for saver in savers:
        saver.stdin.write("go\n")
        saver.stdin.close()
    assert [saver.wait(60) for saver in savers] == [0, 0]
    entries = json.loads((home / "registry.json").read_text())["entries"]
    assert sorted(entries) == sorted(f"eval_report/{name}{i}" for name in "ab" for i in range(10))
    assert not [p for p in home.rglob("*") if p.name.endswith((".partial", ".old"))]


def promotion(**changed):
    entry = {
        "digest": "d" * 64, "path": "release-d", "at": "2026-01-01T00:00:00Z", "action": "promote", "kind": "release",
        "by": "ada", "from_path": "release", "reason": None, "promoted": None, "facts": {"data": {"path": "data"}},
        "evidence": {"report": "r", "conditions": [{"decision": "PASS", "metric": "m", "rule": "at_least", "reason": "x"}]},
    }  # fmt: skip
    return {name: value for name, value in (entry | changed).items() if value != "absent"}


def write_registry(home, entries, **more):
    home.mkdir(exist_ok=True)
    (home / "registry.json").write_text(json.dumps({"schema_version": 1, "entries": entries, **more}))


@pytest.mark.parametrize(
    "changed",
    [
        {"at": None}, {"at": 5}, {"by": ["ada"]}, {"by": "absent"}, {"reason": 5}, {"promoted": {}}, {"action": None},
        {"facts": None}, {"facts": "x"}, {"facts": {"data": 5}}, {"facts": {"recipe": "x"}}, {"evidence": "absent"},
        {"evidence": None}, {"evidence": {"conditions": []}}, {"evidence": {"report": "r", "conditions": "x"}},
        {"evidence": {"report": "r", "conditions": [{}]}}, {"from_path": "absent"}, {"kind": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_promotion_that_no_reader_could_use_is_a_damaged_registry(home, changed):
    write_registry(home, {"release/champion": [promotion(), promotion(more="of a later version")]})
    assert len(registry.read()["release/champion"]) == 2, "the same without the damage"
    write_registry(home, {"release/champion": [promotion(**changed)]})
    with pytest.raises(UserError, match="registry file is damaged"):
        registry.read()


def test_a_registry_of_a_newer_version_is_neither_read_nor_written_over(tmp_path, home):
    write_registry(home, {"release/champion": "in another form"}, schema_version=2)
    before = (home / "registry.json").read_bytes()
    with pytest.raises(UserError, match="written by a newer version") as told:
        registry.read()
    assert told.value.hint == "upgrade tunegate"
    with pytest.raises(UserError, match="newer version"):
        registry.save("base", make_report(tmp_path / "report"))
    assert (home / "registry.json").read_bytes() == before


def test_a_file_in_the_registry_s_place_is_said(home):
    home.write_text("")
    with pytest.raises(UserError, match="is a file, the registry is a folder"):
        registry.read()
