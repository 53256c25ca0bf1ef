"""Ctrl-C before a command's own code runs, while it is imported."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tunegate.core.commands import Entry, LazyGroup, lazy_app, run

MODULE = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
TOLD = {"error": {"kind": "interrupted", "message": "interrupted", "where": None, "hint": None}}


class Group(LazyGroup):
    entries = {"work": Entry("stopped_at_import:app", "Work."), "train": Entry("tunegate.train.cli:app", "T.")}  # noqa: RUF012


@pytest.mark.parametrize("as_json", [False, True])
def test_a_stop_while_a_command_is_imported_is_told(tmp_path, monkeypatch, capsys, as_json):
    (tmp_path / "stopped_at_import.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    app = lazy_app(Group, about="x", epilog="Example: x")
    assert run(app, prog="ft", argv=["work", *(["--json"] if as_json else [])]) == 130
    out, err = capsys.readouterr()
    assert err == "interrupted\n"
    assert (json.loads(out) if as_json else out) == (TOLD if as_json else "")


@pytest.mark.parametrize("as_json", [False, True])
def test_what_train_tells_itself_is_told_once(tiny_model, tiny_dataset, tmp_path, monkeypatch, capsys, as_json):
    from tunegate.train import sft

    monkeypatch.setattr(sft, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    argv = ["train", tiny_dataset.path, "--out", tmp_path / "run", "--model", tiny_model]
    app = lazy_app(Group, about="x", epilog="Example: x")
    assert run(app, prog="ft", argv=[*map(str, argv), *(["--json"] if as_json else [])]) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "interrupted"
    assert (json.loads(out) if as_json else out) == (TOLD if as_json else "")


def test_the_command_itself_tells(tmp_path):
    """`ft` as it is installed, with an import that is interrupted."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os, signal\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tunegate.train.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from tunegate.core.ft import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "data", "--out", "x", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (130, TOLD, "interrupted\n")
