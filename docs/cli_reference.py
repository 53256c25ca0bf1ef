"""Writes docs/cli.md from the commands themselves: `python docs/cli_reference.py`; a test holds the two together."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tunegate.advisor.cli import app as ftadvise
from tunegate.core.commands import LazyGroup
from tunegate.core.ft import app as ft

PAGE = Path(__file__).with_name("cli.md")
HEAD = (
    "# Commands\n\n"
    "Made from the code by `python docs/cli_reference.py`. `--help` on any command says the same; `--debug` on any command shows\n"
    "a traceback. Exit codes are those of the [README](../README.md).\n"
)
# What a user may set; variables by which our own processes tell each other something are not among them.
ENVIRONMENT = """
## Environment variables
| variable | means |
|---|---|
| `TUNEGATE_API_KEY` | the key of the server that is started or asked; also `--api-key-file` |
| `TUNEGATE_JUDGE_API_KEY` | the key of a judge on another host ([evaluation](evaluation.md)) |
| `TUNEGATE_KEY_REQUIRED` | anything but 0: no server starts without a key |
| `TUNEGATE_BODY_S`, `TUNEGATE_HEADER_S` | seconds a client may take to send a request's body (30), its headers (20) |
| `TUNEGATE_QUIET_S` | seconds without a token after which a server is asked for one (10) |
| `TUNEGATE_HOME` | the registry and the judges' verdicts, in place of `.tunegate/` in the working directory |
| `TUNEGATE_REGISTRY` | the registry alone: a folder, or `mlflow:URI` ([registry](registry.md)) |
| `TUNEGATE_CACHE` | the cache, in place of `$XDG_CACHE_HOME/tunegate` or `~/.cache/tunegate` |

In the cache lie `models/` (the embedded ones and GGUF files, unpacked), `environments/` and `wheels/` (of the quantizers, llama.cpp and
MLflow, each made once), `serve/` (records and logs of servers), `push/` (a copy while it is sent) and
`calibration.json`. With no server running and no push under way all of it may be removed, and what is needed is made again, but for
`calibration.json`: that is what `ftadvise calibrate` learnt, one entry for each kind of speed and GPU (`"train_tps/cpu"`). To undo a
calibration remove its entry, or the file for all of them; every estimate is then the formula's again.
"""


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, command) of a command and everything below it, in the order of its help."""
    yield path, command
    if isinstance(command, LazyGroup):
        for name, entry in command.entries.items():
            yield from commands(entry.load(), f"{path} {name}")
    else:
        for name, below in getattr(command, "commands", {}).items():
            if not below.hidden:
                yield from commands(below, f"{path} {name}")


def plain(text: str | None) -> str:
    """Help text as one Markdown line: markup of the terminal taken out, `|` kept from ending a cell."""
    words = " ".join((text or "").split())
    return re.sub(r"\[/?(bold|dim|green|red|yellow|cyan)\]", "", words).replace("\\[", "[").replace("|", "\\|")


def option_row(parameter: Any, context: typer.Context) -> str:
    """One row of the table of options."""
    names = "/".join([", ".join(parameter.opts), *parameter.secondary_opts])
    kind = "" if getattr(parameter, "is_flag", False) else f" {_kind(parameter, context)}"
    says = plain(getattr(parameter, "help", "")) + default(parameter, context)
    if parameter.multiple:
        says += " Repeatable."
    shown_kind = kind.replace("|", "\\|")
    return f"| `{names}{shown_kind}` | {says}{' **Required.**' if parameter.required else ''} |"


def default(parameter: Any, context: typer.Context) -> str:
    """The default as `--help` shows it, by its own means: an on/off flag's by name; nothing where it shows none."""
    value = parameter._extract_default_help_str(ctx=context)
    shown = parameter._get_default_string(ctx=context, show_default_is_str=False, default_value=value)
    return f" [default: {shown}]" if parameter.show_default and value is not None and shown else ""


def _kind(parameter: Any, context: typer.Context) -> str:
    """What the option takes: its metavar, its choices, or the name of its type."""
    return str(parameter.metavar or parameter.display_type(context))


def section(path: str, command: Any) -> str:
    """One command: what it does, its arguments and options, its example."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    context = typer.Context(command)
    words = " ".join(_argument(p) for p in arguments)
    group = " COMMAND ..." if hasattr(command, "commands") or isinstance(command, LazyGroup) else ""
    lines = [
        f"{'#' * min(4, 1 + len(path.split()))} {path}",
        "",
        f"`{path}{' [OPTIONS]' if options else ''}{' ' + words if words else ''}{group}`",
        "",
    ]
    about = [plain(part) for part in (command.help or "").replace("\f", "").split("\n\n")]
    lines += ["\n\n".join(filter(None, about)), ""]
    if any(getattr(p, "help", None) for p in arguments):
        lines += [
            "| argument | |",
            "|---|---|",
            *(f"| `{_argument(p)}` | {plain(p.help)}{default(p, context)} |" for p in arguments),
            "",
        ]
    if options:
        lines += ["| option | |", "|---|---|", *(option_row(p, context) for p in options), ""]
    if command.epilog:
        lines += [plain(command.epilog), ""]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name or "").upper()
    name += "..." if parameter.nargs == -1 and not name.endswith("...") else ""
    return name if parameter.required else f"[{name}]"


def page() -> str:
    """The whole page."""
    roots = (("ft", ft), ("ftadvise", ftadvise))
    parts = [section(path, found) for name, app in roots for path, found in commands(typer.main.get_command(app), name)]
    return "\n".join([HEAD, *parts]).rstrip() + "\n" + ENVIRONMENT


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
