"""A reader never sees half a file or half a folder, whoever dies when."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.core import artifacts, manifest
from tunegate.core.errors import UserError
from tunegate.core.files import (
    canonical_json,
    folder_bytes,
    new_folder,
    read_json,
    refuse_existing,
    refuse_existing_file,
    relative_files,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old\r\nline ü")
    assert path.read_bytes() == "old\r\nline ü".encode()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path), "a write does not say where: we do"
    assert path.read_bytes() == "old\r\nline ü".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_that_is_not_json_is_never_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "says", "line"),
    [(b'{"a": 1,\n}', "not valid JSON", 2), (b"\xff", "not UTF-8 at byte 0", None), (None, "no such file", None)],
)
def test_a_broken_json_file_is_named_with_its_line(tmp_path, raw, says, line):
    path = tmp_path / "a.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError, match=says) as caught:
        read_json(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))


def test_equal_values_have_equal_text_and_digest():
    assert canonical_json({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"ü"],"b":1}'
    assert sha256_text("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_text("\ud800") != sha256_text("")


def test_a_new_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("x")
        assert not out.exists()
        assert folder.parent == out.parent, "one file system, so that the rename is atomic"
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "x"


def ours(folder):
    """A folder that a stage wrote."""
    folder.mkdir()
    (folder / "old").write_text("old")
    manifest.write(folder, "dataset", inputs=[], config={})
    return folder


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_what_was_there_as_it_was(tmp_path, error):
    out = ours(tmp_path / "out")

    def write():
        with new_folder(out, force=True) as folder:
            (folder / "new").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert relative_files(out) == ["manifest.json", "old"]


def test_a_disk_that_fills_up_is_named_by_what_was_being_made(tmp_path):
    for said in (None, str(tmp_path / ".out.1.partial" / "a")):
        with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device", said)
        assert caught.value.filename == str(tmp_path / "out")


def test_an_existing_folder_is_replaced_only_with_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    refuse_existing(out, force=False)
    out.rmdir()
    ours(out)
    with pytest.raises(UserError, match="exists already") as caught, new_folder(out):
        raise AssertionError("the block must not begin")
    assert "--force" in caught.value.hint
    with new_folder(out, force=True) as folder:
        (folder / "new").write_text("new")
    assert relative_files(out) == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(tmp_path / "out", force=False)


@pytest.mark.parametrize("other", ["nothing", "manifest.json", "sub/manifest.json"])
def test_force_replaces_no_folder_of_the_user_s(tmp_path, other):
    """Only a folder with our manifest is replaced: another's, or one that merely has such a folder in it, is not."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    if other != "nothing":
        (out / other).write_text(
            '{"kind": "dataset", "digest": "x", "outputs": []}' if "/" in other else '{"name": "x"}'
        )
    with pytest.raises(UserError, match="--force does not replace it"):
        refuse_existing(out, force=True)
    with pytest.raises(UserError, match="--force does not replace it"), new_folder(out, force=True):
        raise AssertionError("the block must not begin")
    assert (out / "notes.txt").read_text() == "mine"


def test_force_turns_no_file_into_a_folder(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file: --force does not replace it"), new_folder(file, force=True):
        raise AssertionError("the block must not begin")
    assert file.read_text() == "x"


def test_a_cache_of_ours_is_replaced_whatever_it_holds(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").write_text("x")
    with new_folder(tmp_path / "out", own=True) as folder:
        (folder / "new").write_text("new")
    assert relative_files(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a new folder is needed here"):
        refuse_existing(Path(name), force=False)


def test_an_output_file_is_replaced_only_with_force_and_a_folder_never(tmp_path):
    file = tmp_path / "out.jsonl"
    refuse_existing_file(file)
    file.write_text("x")
    refuse_existing_file(file, force=True)
    for force, hint in ((None, "choose another name"), (False, "--force")):
        with pytest.raises(UserError, match="exists already") as caught:
            refuse_existing_file(file, force=force)
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="is a folder"):
        refuse_existing_file(tmp_path, force=True)


@pytest.mark.parametrize("name", ["no/such/x.txt", "a/b/x.txt"])
def test_no_temporary_name_stands_in_an_error(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("a file")
    with pytest.raises(OSError, match=r"No such file|Not a directory") as caught:
        write_text(tmp_path / name, "x")
    assert caught.value.filename == str(tmp_path / name)


WRITER = """
import sys, time
from pathlib import Path
from tunegate.core import manifest
from tunegate.core.files import new_folder
with new_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "train.jsonl").write_text("half")
    if sys.argv[2] == "after":
        manifest.write(folder, "dataset", inputs=[], config={})
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_writer_killed_half_way_leaves_nothing_that_opens(tmp_path, tiny_dataset, moment):
    import shutil

    out = tmp_path / "data"
    shutil.copytree(tiny_dataset.path, out)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out), moment], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert artifacts.Dataset.open(out).digest == tiny_dataset.digest, "the old folder is untouched"
    left = [p for p in tmp_path.iterdir() if p != out]
    assert all(p.name.startswith(".data.") and p.name.endswith(".partial") for p in left)
    with new_folder(out, force=True) as folder:
        (folder / "x").write_text("x")
        manifest.write(folder, "dataset", inputs=[], config={})
    assert manifest.verify(out) == []


def test_hidden_files_and_links_are_seen_and_links_not_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".hidden").write_text("four")
    (tmp_path / "z").symlink_to(tmp_path / "a")
    (tmp_path / "f").symlink_to(tmp_path / "a" / ".hidden")
    assert relative_files(tmp_path) == ["a/.hidden", "f", "z"]
    assert folder_bytes(tmp_path) == 4
    assert sha256_file(tmp_path / "a" / ".hidden") == sha256_text("four")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_weights_are_as_readable_as_every_other_file(tmp_path, umask):
    """A server under another user loads them; what is for its owner alone stays so."""
    import numpy as np
    from safetensors.numpy import save_file

    secret = tmp_path / "secret.safetensors"
    secret.touch(mode=0o600)
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as folder:
            (folder / "deep").mkdir()
            for name in ("model.safetensors", "deep/adapter_model.safetensors"):
                save_file({"w": np.zeros(2)}, folder / name)
            (folder / "config.json").write_text("{}")
            (folder / "tool").touch()
            (folder / "tool").chmod(0o755)
            (folder / "api-key").touch(mode=0o600)
            (folder / "link.safetensors").symlink_to(secret)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    usual = 0o666 & ~umask
    assert modes == {"model.safetensors": usual, "adapter_model.safetensors": usual, "config.json": usual, "tool": 0o755,
                     "api-key": 0o600, "link.safetensors": 0o600}  # fmt: skip
