"""The error tree, by who must act. `run` in `tunegate.core.commands` turns each into one line and an exit code.

TunegateError
├── UserError            the user: a file, a row, a key or an option is wrong       exit 2, kind bad_input
│   └── UsageError       the user: the command line itself is wrong                 exit 2, kind usage
└── InfrastructureError  the machine: endpoint, engine, disk, port                  exit 4, kind infrastructure
anything else            us: a bug                                                  exit 70, kind internal
"""

from collections.abc import Collection
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; scripts and CI depend on them."""

    OK = 0
    GATE_FAIL = 1
    BAD_INPUT = 2
    INCONCLUSIVE = 3
    INFRASTRUCTURE = 4
    INTERNAL = 70
    INTERRUPTED = 130
    READER_GONE = 141  # as a shell says of SIGPIPE; not 0, which would be a gate's PASS


class TunegateError(Exception):
    """An expected failure.

    message: what is wrong, one line. where: `file:line`, key or option it was found at.
    hint: what to do about it, one line.
    """

    kind = "internal"
    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def line(self) -> str:
        """The error as the one line a user sees (without the `error:` prefix); a key that begins the message is said once."""
        told = self.where and not self.message.startswith(f"{self.where} ")
        text = f"{self.where}: {self.message}" if told else self.message
        return " ".join(f"{text} ({self.hint})".split() if self.hint else text.split())

    def as_json(self) -> dict[str, object]:
        """The object printed with `--json`."""
        return {"error": {"kind": self.kind, "message": self.message, "where": self.where, "hint": self.hint}}


class UserError(TunegateError):
    """Bad input: the user can mend it."""

    kind = "bad_input"
    exit_code = ExitCode.BAD_INPUT


class UsageError(UserError):
    """The command line is wrong."""

    kind = "usage"


class InfrastructureError(TunegateError):
    """Endpoint, engine, disk or network failed; says nothing about the model."""

    kind = "infrastructure"
    exit_code = ExitCode.INFRASTRUCTURE


def first_line(error: Exception) -> str:
    """The first line of a library's error, at most 300 characters; its type's name where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def nearest(word: str, known: list[str]) -> str:
    """A hint for a misspelt name: `did you mean "rank"? known: alpha, rank`; never empty if `known` is not."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f'"{name}"' for name in close) + "?"
    return "known: " + ", ".join(sorted(known))


def one_of(option: str, value: str, known: Collection[str]) -> None:
    """Raise UsageError unless an option's value is one of those known; the hint has the nearest."""
    if value not in known:
        raise UsageError(f"unknown value {value!r}", where=option, hint=nearest(value, list(known)))
