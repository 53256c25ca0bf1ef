"""The command-line frame that `ft` and `ftadvise` share: lazy sub-commands and one place where errors become exits."""

import errno
import importlib
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from tunegate.core.errors import ExitCode, InfrastructureError, TunegateError, UsageError

Command = TyperCommand | TyperGroup


@dataclass(frozen=True)
class Entry:
    """Where a sub-command lives (`module:attribute` of a Typer app) and what `--help` says about it."""

    target: str
    help: str

    def load(self) -> Any:
        """Import the module and return its click command."""
        module, _, attribute = self.target.partition(":")
        return typer.main.get_command(getattr(importlib.import_module(module), attribute))


class StoppedError(Exception):
    """Ctrl-C during a command that did not tell of it itself (one that did leaves by `typer.Exit`)."""


class LazyGroup(TyperGroup):
    """A group that knows its sub-commands by name and loads one only when it is called."""

    entries: ClassVar[dict[str, Entry]] = {}

    def invoke(self, ctx: Any) -> Any:
        """Load and call the sub-command. Raises StoppedError for Ctrl-C, of which click would leave nothing but an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table, loading nothing."""
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A placeholder that carries the help line; enough for `--help` and for completion."""
        entry = self.entries.get(cmd_name)
        return TyperCommand(name=cmd_name, help=entry.help) if entry else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command, loaded now."""
        self.commands = {name: self.get_command(ctx, name) for name in self.entries}
        name, _, rest = super().resolve_command(ctx, args)
        command = self.entries[name or ""].load()
        command.name = name
        return name, command, rest


def lazy_app(group: type[LazyGroup], *, about: str, epilog: str) -> typer.Typer:
    """The Typer app over a table of commands; `--version` prints the version. about: what its help says first."""
    app = typer.Typer(
        cls=group,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
        epilog=epilog,
    )

    @app.callback(invoke_without_command=True, help=about)
    def root(
        ctx: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    ) -> None:
        if version:
            from importlib.metadata import version as package_version

            print(package_version("tunegate"))
            raise typer.Exit
        if ctx.invoked_subcommand is None:
            ctx.fail("a command is missing")

    return app


class DefaultCommandGroup(TyperGroup):
    """A group whose first argument may be left out: `ft eval TARGET` means `ft eval run TARGET`."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the default sub-command unless the first argument names one or asks for help."""
        if args and args[0] not in self.commands and args[0] not in ("--help",):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def run(app: Any, *, prog: str, argv: list[str] | None = None) -> int:
    """Run a Typer app or click command and return the exit code; every expected error becomes one line.

    With `--json` among the arguments, an error (Ctrl-C too) is the JSON object of the contract on standard output. SIGTERM ends
    a command as Ctrl-C does.
    """
    argv = sys.argv[1:] if argv is None else argv
    ours = argv[: argv.index("--")] if "--" in argv else argv
    debug = "--debug" in ours
    argv = [a for a in ours if a != "--debug"] + argv[len(ours) :]
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    command = app if isinstance(app, TyperCommand | TyperGroup) else typer.main.get_command(app)
    try:
        with _sigterm_as_ctrl_c():
            code = command.main(args=argv, prog_name=prog, standalone_mode=False)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else ExitCode.OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except StoppedError:
        return _interrupted(as_json="--json" in ours)
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # click answers EPIPE with exit code 1, which is a gate's FAIL.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.READER_GONE
    except BaseException as error:  # whatever it is, Python's own exit code for it is 1, which is a gate's FAIL
        return _fail(_as_ours(error, prog, debug), as_json="--json" in ours)


def _open_closed_streams() -> None:
    """Give a standard stream that the caller closed (`2>&-`), who wants the exit code only, nowhere to lead to; programs that
    are started have it too."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = io.FileIO(os.devnull, mode)
            os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, io.TextIOWrapper(nowhere))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, where nobody decided on it yet, raise KeyboardInterrupt, so that what is half written is removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Faults of a path that the user named, and what to do about them.
OF_THE_PATH = {
    errno.EACCES: "check the owner and mode of that path",
    errno.EPERM: "check the owner and mode of that path",
    errno.EROFS: "nothing can be written there: choose another place",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
    errno.EISDIR: "is a folder, a file is needed",
    errno.EEXIST: "choose another name",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symlinks lead back to themselves",
}


def _as_ours(error: BaseException, prog: str, debug: bool) -> TunegateError:
    from typer._click.exceptions import ClickException, NoArgsIsHelpError

    if debug:
        traceback.print_exc()
    if isinstance(error, TunegateError):
        return error
    if isinstance(error, NoArgsIsHelpError):
        if text := error.format_message():
            print(text, file=sys.stderr)
        return UsageError("a command is missing", hint=f"see {_path(error, prog)} --help")
    if isinstance(error, ClickException):
        return UsageError(error.format_message(), hint=f"see {_path(error, prog)} --help")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InfrastructureError(
            "no space left on the device",
            where=error.filename,
            hint="free disk space, then run the command again; nothing half-written was kept",
        )
    if isinstance(error, OSError) and error.errno in OF_THE_PATH:
        where = None if error.filename is None else str(error.filename)
        return UsageError(os.strerror(error.errno).lower(), where=where, hint=OF_THE_PATH[error.errno])
    if debug:
        return TunegateError(f"internal error: {error!r}", hint="this is a bug of ours")
    with tempfile.NamedTemporaryFile("w", prefix="tunegate-", suffix=".log", delete=False) as log:
        traceback.print_exc(file=log)
    return TunegateError(
        f"internal error: {type(error).__name__}: {error}",
        hint=f"this is a bug of ours; traceback in {log.name}, or run with --debug",
    )


def _path(error: Exception, prog: str) -> str:
    """The command that click complains of, in full."""
    ctx = getattr(error, "ctx", None)
    return str(ctx.command_path) if ctx else prog


def _interrupted(*, as_json: bool) -> int:
    print("interrupted", file=sys.stderr)
    if as_json:
        _last_object({"error": {"kind": "interrupted", "message": "interrupted", "where": None, "hint": None}})
    return ExitCode.INTERRUPTED


def _fail(error: TunegateError, *, as_json: bool) -> int:
    from tunegate.core.console import visible

    if not as_json or not _last_object(error.as_json()):
        print(f"error: {visible(error.line())}", file=sys.stderr)
    return error.exit_code


def _last_object(payload: dict[str, Any]) -> bool:
    """Print the object that tells of an error; False where standard output takes none (full, closed): without a word more, for
    Python's own would be a traceback and exit code 1, a gate's FAIL."""
    from tunegate.core.console import emit_json

    try:
        emit_json(payload)
    except BrokenPipeError:
        raise
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer would fail again at the end
        return False
    return True
