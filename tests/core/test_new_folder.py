"""What comes to an output's place while it is made stays, and what a killed process left beside it goes."""

import subprocess
import sys

import pytest

from tunegate.core import manifest
from tunegate.core.errors import UserError
from tunegate.core.files import new_folder, relative_files


def ours(folder):
    """A folder that a stage wrote."""
    folder.mkdir()
    (folder / "old").write_text("old")
    manifest.write(folder, "dataset", inputs=[], config={})
    return folder


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("came", ["a folder", "a file"])
def test_what_came_meanwhile_stays_and_what_was_made_is_kept(tmp_path, came, force):
    out = tmp_path / "out"
    notes = out / "notes.txt" if came == "a folder" else out

    def write():
        with new_folder(out, force=force) as folder:
            (folder / "new").write_text("new")
            notes.parent.mkdir(exist_ok=True)
            notes.write_text("mine")

    with pytest.raises(UserError, match="came there meanwhile") as caught:
        write()
    assert notes.read_text() == "mine"
    (kept,) = (path for path in tmp_path.iterdir() if path != out)
    assert (relative_files(kept), str(kept) in caught.value.hint) == (["new"], True)


def test_of_two_that_write_one_folder_the_first_has_it(tmp_path):
    out = tmp_path / "out"

    def write(name):
        with new_folder(out) as folder:
            (folder / name).touch()
            if name == "second":
                write("first")
                assert folder.is_dir(), "in use"

    with pytest.raises(UserError, match="came there meanwhile"):
        write("second")
    assert relative_files(out) == ["first"]


def test_an_empty_folder_that_came_meanwhile_makes_way(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
        (tmp_path / "out").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/new"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a folder of ours"])
def test_through_a_link_the_folder_is_made_where_it_leads(tmp_path, there):
    target, link = tmp_path / "disk" / "out", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    if there != "nothing":
        target.mkdir() if there == "an empty folder" else ours(target)
    with new_folder(link, force=there == "a folder of ours") as folder:
        assert folder.parent == target.parent, "on the disk that the link leads to"
        (folder / "new").touch()
    assert (link.readlink(), relative_files(target)) == (target, ["new"])
    assert [p.name for p in target.parent.iterdir()] == ["out"]


WRITER = """
import signal, sys, typer
from pathlib import Path
from tunegate.core.commands import run
from tunegate.core.files import new_folder
app = typer.Typer()
@app.command()
def work(out: Path):
    with new_folder(out) as folder:
        (folder / "half").touch()
        print("here", flush=True)
        signal.pause()
sys.exit(run(app, prog="x"))
"""


def writing(out):
    """A process that is in the middle of writing `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    return process


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    with writing(tmp_path / "out") as process:
        process.terminate()
        assert (process.wait(30), process.stderr.read()) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(tmp_path):
    out = tmp_path / "out"
    with writing(out) as killed:
        killed.kill()
    (left,) = tmp_path.iterdir()
    others = [tmp_path / ".out.v2.0123abcd.partial", tmp_path / ".out.0123abcd.old"]
    for other in others:
        other.mkdir()
    with writing(out) as living:
        (half,) = set(tmp_path.iterdir()) - {left, *others}
        assert not left.exists()
        with new_folder(out) as folder:
            (folder / "new").touch()
        assert (half / "half").is_file()
        living.terminate()
    assert set(tmp_path.iterdir()) == {out, *others}


def test_a_link_or_a_file_by_such_a_name_is_no_rest_of_ours(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.0123abcd.partial").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.4567abcd.partial").touch()
    before = set(tmp_path.iterdir())
    with new_folder(tmp_path / "out"):
        pass
    assert set(tmp_path.iterdir()) == {*before, tmp_path / "out"}
