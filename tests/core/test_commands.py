"""Errors become one line or one JSON object, and an exit code, in one place."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tunegate.core.commands import DefaultCommandGroup, Entry, LazyGroup, run
from tunegate.core.errors import ExitCode, InfrastructureError, TunegateError, UsageError, UserError, nearest

RAISED = {
    "key": UserError("rank must be a number", where="rank"),
    "user": UserError("rank must be\n a number", where="a.yaml:3", hint="a hint"),
    "usage": UsageError("exclude each other"),
    "infrastructure": InfrastructureError("nothing answers", where="http://h/v1"),
    "escapes": InfrastructureError("it said \x1b[2J\u202egone", where="http://h/v1"),
    "bug": ZeroDivisionError("division by zero"),
    "ctrl_c": KeyboardInterrupt(),
    "full": OSError(errno.ENOSPC, "No space left on device", "/some/file"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded", "/some/file"),
    "denied": PermissionError(errno.EACCES, "Permission denied", "/some/file"),
    "under a file": NotADirectoryError(errno.ENOTDIR, "Not a directory", "/some/file/x"),
    "read-only": OSError(errno.EROFS, "Read-only file system", "/some/file"),
    "long name": OSError(errno.ENAMETOOLONG, "File name too long", "/some/" + "x" * 300),
    "exit_1": typer.Exit(ExitCode.GATE_FAIL),
    "exit_3": typer.Exit(ExitCode.INCONCLUSIVE),
}


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = typer.Typer(add_completion=False)

    @app.command()
    def work(what: str, rank: int = 1, as_json: bool = typer.Option(False, "--json")) -> None:
        if what in RAISED:
            raise RAISED[what]

    def call(*argv):
        code = run(app, prog="ft work", argv=list(argv))
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("fine", 0, ""),
        ("user", 2, "error: a.yaml:3: rank must be a number (a hint)\n"),
        ("key", 2, "error: rank must be a number\n"),
        ("usage", 2, "error: exclude each other\n"),
        ("infrastructure", 4, "error: http://h/v1: nothing answers\n"),
        ("escapes", 4, "error: http://h/v1: it said \u241b[2J\ufffdgone\n"),
        ("ctrl_c", 130, "interrupted\n"),
        ("exit_1", 1, ""),
        ("exit_3", 3, ""),
    ],
)
def test_exit_codes_and_the_one_line(call, what, code, line):
    assert call(what) == (code, "", line)


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [("user", "bad_input", 2), ("usage", "usage", 2), ("infrastructure", "infrastructure", 4), ("bug", "internal", 70),
     ("full", "infrastructure", 4), ("quota", "infrastructure", 4), ("denied", "usage", 2), ("under a file", "usage", 2),
     ("read-only", "usage", 2), ("long name", "usage", 2)],
)  # fmt: skip
def test_with_json_an_error_is_the_object_of_the_contract(call, what, kind, code):
    found, out, err = call(what, "--json")
    document = json.loads(out)
    assert (found, err) == (code, "")
    assert set(document) == {"error"}
    assert set(document["error"]) == {"kind", "message", "where", "hint"}
    assert document["error"]["kind"] == kind


@pytest.mark.parametrize("argv", [["work", "--rnak", "3"], ["work", "--rank", "many"], [], ["a", "b"]])
def test_a_wrong_command_line_is_a_usage_error_and_says_where_help_is(call, argv):
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert "see ft work --help" in err
    document = json.loads(call(*argv, "--json")[1])
    assert document["error"]["kind"] == "usage"


def test_a_bug_keeps_its_traceback_in_a_log(call, tmp_path):
    code, out, err = call("bug")
    assert (code, out) == (70, "")
    assert err.startswith("error: internal error: ZeroDivisionError: division by zero (this is a bug of ours")
    assert "Traceback" not in err
    (log,) = tmp_path.glob("tunegate-*.log")
    assert str(log) in err
    assert "ZeroDivisionError: division by zero" in log.read_text()


def test_debug_shows_the_traceback_and_writes_no_log(call, tmp_path):
    code, _, err = call("bug", "--debug")
    assert code == 70
    assert "Traceback" in err
    assert not list(tmp_path.glob("*.log"))
    assert "Traceback" in call("user", "--debug")[2]


def test_what_stands_behind_two_dashes_is_not_ours(capsys):
    app = typer.Typer(add_completion=False)

    @app.command(context_settings={"allow_extra_args": True})
    def work(ctx: typer.Context) -> None:
        print(ctx.args)
        raise UserError("no")

    assert run(app, prog="x", argv=["--", "--debug", "--json"]) == 2
    found = capsys.readouterr()
    assert found.out == "['--debug', '--json']\n"
    assert found.err == "error: no\n"


def test_a_default_sub_command_is_put_in(capsys):
    app = typer.Typer(cls=DefaultCommandGroup, add_completion=False)

    @app.command("run")
    def default(target: str) -> None:
        print("run", target)

    @app.command()
    def status() -> None:
        print("status")

    assert run(app, prog="x", argv=["folder"]) == 0
    assert run(app, prog="x", argv=["status"]) == 0
    assert capsys.readouterr().out == "run folder\nstatus\n"


def test_a_lazy_group_loads_only_what_is_called(capsys):
    class Group(LazyGroup):
        entries = {"broken": Entry("no.such.module:app", "Broken.")}  # noqa: RUF012

    app = typer.Typer(cls=Group, add_completion=False)

    @app.callback()
    def root() -> None:
        """Root."""

    assert run(app, prog="x", argv=["--help"]) == 0
    assert "Broken." in capsys.readouterr().out
    assert run(app, prog="x", argv=["brokn"]) == 2
    assert "broken" in capsys.readouterr().err
    assert run(app, prog="x", argv=["broken"]) == 70


def test_a_reader_that_goes_away_is_no_error():
    code = "import typer\nfrom tunegate.core.commands import run\napp = typer.Typer()\n@app.command()\ndef f():\n    for i in range(200000): print(i)\nimport sys; sys.exit(run(app, prog='x', argv=[]))"
    shell = f'"{sys.executable}" -c "$CODE" | head -1; echo "code ${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "CODE": code}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["0", "code 141"], "neither a gate's PASS nor its FAIL"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_is_infrastructure():
    code = "from tunegate.core.commands import run\nimport typer, sys\napp = typer.Typer()\n@app.command()\ndef f():\n    with open('/dev/full', 'w') as stream:\n        stream.write('x' * 100000)\nsys.exit(run(app, prog='x', argv=[]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("error: no space left on the device") or "no space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_nearest_names_the_close_ones_else_all():
    assert nearest("rnak", ["rank", "alpha"]) == 'did you mean "rank"?'
    assert nearest("zzz", ["rank", "alpha"]) == "known: alpha, rank"


def test_the_tree_says_who_must_act():
    assert issubclass(UsageError, UserError)
    for error, code in (
        (UserError("x"), 2),
        (UsageError("x"), 2),
        (InfrastructureError("x"), 4),
        (TunegateError("x"), 70),
    ):
        assert error.exit_code == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("raised", "code"), [("None", 4), ("UserError('no such file', where='x')", 2)])
def test_json_that_cannot_be_written_is_no_failed_gate(raised, code):
    program = f"""if 1:
        import sys, typer
        from tunegate.core.commands import run
        from tunegate.core.console import JsonOption, emit_json
        from tunegate.core.errors import UserError
        app = typer.Typer()
        @app.command()
        def f(as_json: JsonOption = False):
            if error := {raised}:
                raise error
            emit_json({{"decision": "PASS"}})
        sys.exit(run(app, prog="x", argv=["--json"]))"""
    with Path("/dev/full").open("w") as full:
        found = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == code
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    closed = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE, text=True
    )
    assert (closed.returncode, "Traceback" in closed.stderr) == (0 if code == 4 else code, False)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_error_changes_no_exit_code_and_goes_nowhere_else(closed):
    program = """if 1:
        import subprocess, sys, typer
        from tunegate.core.commands import run
        from tunegate.core.console import warn
        from tunegate.core.errors import UserError
        app = typer.Typer()
        @app.command()
        def f(what: str):
            warn("a message")
            subprocess.run([sys.executable, "-c", "import sys; print('child', file=sys.stderr)"], check=True)
            if what == "fail":
                raise UserError("no such file", where="x")
            raise typer.Exit(3)
        sys.exit(run(app, prog="x"))"""
    shell = f'"$0" -c "$1" "$2" {closed}'
    for what, code in (("decide", 3), ("fail", 2)):
        done = subprocess.run(
            ["/bin/sh", "-c", shell, sys.executable, program, what], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
