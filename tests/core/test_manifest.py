"""A manifest finds every change to its folder, keeps no secret, and says what a folder was made from."""

import json
import shutil

import pytest

from tunegate.core import artifacts, manifest
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, sha256_text
from tunegate.train.release.verify_cli import app as verify_app


@pytest.fixture
def folder(tiny_dataset, tmp_path):
    return shutil.copytree(tiny_dataset.path, tmp_path / "data")


def change_byte(folder):
    path = folder / "train.jsonl"
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)


def edit(folder, **changes):
    path = folder / "manifest.json"
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(document))


def swap_for_link(folder):
    (folder / "eval.jsonl").rename(folder.parent / "elsewhere")
    (folder / "eval.jsonl").symlink_to(folder.parent / "elsewhere")


def link_folder(folder):
    (folder / "sub").symlink_to(folder.parent)


DAMAGE = {
    "byte": (change_byte, "train.jsonl", "content changed"),
    "longer": (lambda f: (f / "eval.jsonl").open("a").write("x"), "eval.jsonl", "bytes, expected"),
    "extra": (lambda f: (f / "extra.txt").write_text("x"), "extra.txt", "not in the manifest"),
    "hidden": (lambda f: (f / ".hidden").write_text("x"), ".hidden", "not in the manifest"),
    "nested": (lambda f: ((f / "d").mkdir(), (f / "d" / "x").write_text("")), "d/x", "not in the manifest"),
    "missing": (lambda f: (f / "eval.jsonl").unlink(), "eval.jsonl", "missing"),
    "renamed": (lambda f: (f / "eval.jsonl").rename(f / "e.jsonl"), "eval.jsonl", "missing"),
    "link": (swap_for_link, "eval.jsonl", "is a symlink"),
    "link to a folder": (link_folder, "sub", "is a symlink"),
    "manifest": (lambda f: edit(f, facts={"train": 9999}), "manifest.json", "the manifest itself was changed"),
    "created": (lambda f: edit(f, created="2020-01-01T00:00:00Z"), "manifest.json", "the manifest itself was changed"),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds(folder, damage, capsys):
    assert manifest.verify(folder) == []
    act, path, says = DAMAGE[damage]
    act(folder)
    problems = manifest.verify(folder)
    assert [p["path"] for p in problems if says in p["problem"]] == [path]
    assert run(verify_app, prog="ft verify", argv=[str(folder), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["problems"] == problems


def test_a_forged_manifest_is_found_by_its_digest(folder):
    """Whoever also mends the manifest's own hash cannot keep the digest that others know the folder by."""
    known = manifest.read(folder).digest
    change_byte(folder)
    document = json.loads((folder / "manifest.json").read_text())
    document.pop("self_sha256")
    for item in document["outputs"]:
        item["sha256"] = manifest.sha256_file(folder / item["path"])
    (folder / "manifest.json").write_text(
        json.dumps({**document, "self_sha256": sha256_text(canonical_json(document))})
    )
    assert [p["problem"] for p in manifest.verify(folder)] == ["digest does not match the files listed"]
    assert manifest.digest_of("dataset", document["outputs"]) != known


def test_verify_says_ok_and_shows_the_lineage(folder, tmp_path, capsys):
    made = tmp_path / "report"
    made.mkdir()
    (made / "w").write_text("w")
    data = artifacts.Dataset.open(folder)
    manifest.write(made, "eval_report", inputs=[data.as_input("dataset")], config={"rank": 4}, seeds={"seed": 1})
    then = tmp_path / "gate"
    then.mkdir()
    (then / "w").write_text("w")
    manifest.write(then, "gate_decision", inputs=[artifacts.EvalReport.open(made).as_input("candidate")], config={})
    shutil.rmtree(folder)
    shutil.rmtree(made)
    assert run(verify_app, prog="ft verify", argv=[str(then), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["problems"], document["kind"]) == (True, [], "gate_decision")
    assert [(row["depth"], row["role"], row["kind"]) for row in document["lineage"]] == [
        (1, "candidate", "eval_report"),
        (2, "dataset", "dataset"),
    ]
    assert document["lineage"][1]["digest"] == data.digest
    assert run(verify_app, prog="ft verify", argv=[str(then)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verify: OK"


def test_equal_content_has_an_equal_digest_wherever_and_whenever_it_was_made(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "manifest.json").unlink()
    again = manifest.write(other, "dataset", inputs=[], config={"another": 1})
    assert again.digest == manifest.read(folder).digest
    assert manifest.digest_of("run", again.outputs) != again.digest


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (["--api-key", "abc"], ["--api-key", "***"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--hf-token", "abc", "--seed", "1"], ["--hf-token", "***", "--seed", "1"]),
        (["--password=x y"], ["--password=***"]),
        (["--api-key-file", "key.txt"], ["--api-key-file", "key.txt"]),
        (["sk-abcdefgh1234"], ["***"]),
        (["url?k=hf_abcdefgh12345"], ["url?k=***"]),
        (["--label-key", "intent"], ["--label-key", "***"]),
        (["--api-key", "--seed"], ["--api-key", "--seed"]),
    ],
)
def test_secrets_are_not_kept(argument, shown):
    assert manifest.redact(argument) == shown


def test_a_key_on_the_command_line_is_not_in_the_file(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/ft", "eval", "--api-key", "very-secret-value", "sk-0123456789abcdef"])
    (folder / "manifest.json").unlink()
    manifest.write(folder, "dataset", inputs=[], config={})
    text = (folder / "manifest.json").read_text()
    assert "very-secret-value" not in text
    assert "0123456789abcdef" not in text
    assert json.loads(text)["command"] == ["ft", "eval", "--api-key", "***", "***"]


def test_a_newer_schema_is_refused_in_words(folder):
    edit(folder, schema_version=manifest.SCHEMA_VERSION + 1)
    with pytest.raises(UserError, match="written by a newer version") as caught:
        manifest.read(folder)
    assert caught.value.hint == "upgrade tunegate"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"kind": "dataset"}', '{"kind": "dataset", "schema_version": "1"}', "nul"]
)
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        manifest.read(folder)


def test_a_damaged_manifest_is_a_user_error(folder):
    document = json.loads((folder / "manifest.json").read_text())
    for key in ("outputs", "inputs", "digest"):
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in document.items() if k != key}))
        with pytest.raises(UserError, match="damaged manifest"):
            manifest.read(folder)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_lists_files_outside_its_folder_is_refused(folder, path):
    edit(folder, outputs=[{"path": path, "sha256": "0" * 64, "bytes": 1}])
    with pytest.raises(UserError, match="leads out of the folder"):
        manifest.read(folder)


@pytest.mark.parametrize("value", [None, 7, [1], ["x"], [{"path": "train.jsonl"}], [{"path": "a", "sha256": 1}]])
def test_damaged_lists_in_a_manifest_are_no_bug_of_ours(folder, value, capsys):
    for key in ("outputs", "inputs"):
        keep = (folder / "manifest.json").read_text()
        edit(folder, **{key: value})
        assert run(verify_app, prog="ft verify", argv=[str(folder), "--json"]) == 2, key
        assert "internal" not in capsys.readouterr().out
        with pytest.raises(UserError):
            artifacts.Dataset.open(folder)
        (folder / "manifest.json").write_text(keep)


def test_opening_another_kind_or_an_unfinished_or_truncated_folder(folder, tmp_path):
    with pytest.raises(UserError, match="is a folder of kind dataset, one of kind run is needed here"):
        artifacts.Run.open(folder)
    with pytest.raises(UserError, match="no such folder"):
        artifacts.Run.open(tmp_path / "none")
    with pytest.raises(UserError, match="is a file, a dataset folder is needed here") as caught:
        artifacts.Dataset.open(folder / "train.jsonl")
    assert "ft data prepare" in caught.value.hint
    raw = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").write_bytes(raw[:-1])
    with pytest.raises(UserError, match=f"train.jsonl has {len(raw) - 1} bytes, its manifest says {len(raw)}"):
        artifacts.open_any(folder)
    (folder / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl is missing"):
        artifacts.Dataset.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json: not a Tunegate folder, or one that was never finished"):
        artifacts.Dataset.open(folder)


def test_an_unknown_kind_is_named(folder):
    edit(folder, kind="datasets")
    with pytest.raises(UserError, match="unknown kind 'datasets'"):
        artifacts.open_any(folder)


def test_every_kind_opens_by_its_name(tmp_path):
    for kind, cls in artifacts.KINDS.items():
        made = tmp_path / kind
        made.mkdir()
        (made / "f").write_text(kind)
        manifest.write(made, kind, inputs=[], config={}, facts={"method": "lora", "base": "b", "quantization": "none"})
        assert type(artifacts.open_any(made)) is cls
