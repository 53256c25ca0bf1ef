"""A reader never sees half a file or half a folder, whoever dies when."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from tunegate.core import artifacts, manifest
from tunegate.core.errors import UserError
from tunegate.core.files import (
    canonical_json,
    folder_bytes,
    new_folder,
    read_json,
    refuse_existing,
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


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_what_was_there_as_it_was(tmp_path, error):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")

    def write():
        with new_folder(out, force=True) as folder:
            (folder / "new").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert relative_files(out) == ["old"]


def test_a_disk_that_fills_up_is_named_by_what_was_being_made(tmp_path):
    for said in (None, str(tmp_path / ".out.1.partial" / "a")):
        with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device", said)
        assert caught.value.filename == str(tmp_path / "out")


def test_an_existing_folder_is_replaced_only_with_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    refuse_existing(out, force=False)
    (out / "old").write_text("old")
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


def test_force_over_a_file_or_a_link_removes_only_what_stood_there(tmp_path):
    (tmp_path / "out").write_text("x")
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").write_text("new")
    assert relative_files(tmp_path / "out") == ["new"]
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with new_folder(tmp_path / "link", force=True) as folder:
        (folder / "other").write_text("x")
    assert relative_files(tmp_path / "out") == ["new"], "the link's target is left alone"
    assert relative_files(tmp_path / "link") == ["other"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"]


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
