"""`python`: a function of the user's, `module:function`, only with `--allow-python`; it gets the answer and the row."""

import contextlib
import copy
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Validator

_ALONE = threading.RLock()  # items are judged in threads where a judge is asked too; sys.stdout is everybody's


@contextlib.contextmanager
def _guest() -> Iterator[None]:
    """While code of the user's runs: what it prints goes to standard error, that of programs which it starts too, for standard
    output is the command's own; the working directory is afterwards what it was."""
    with _ALONE, contextlib.redirect_stdout(sys.stderr):
        sys.__stdout__.flush() if sys.__stdout__ else None
        here, out = os.open(".", os.O_RDONLY), os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(out, 1)
            os.fchdir(here)
            os.close(out)
            os.close(here)


def _told(error: BaseException) -> str:
    """An error of the user's code in words, which may fail too."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


@dataclass(frozen=True, kw_only=True)
class Python(Validator):
    """function: `module:function`, found beside the task file or installed. It is called with the answer's text and the
    row as a dict, and returns true or false, a number from 0 to 1, or `{"score": ..., "passed": ..., "reason": ...}`."""

    function: str
    folder: Path = Path()
    kind: ClassVar[str] = "python"

    def loaded(self) -> Any:
        """The function. Raises UserError when it cannot be imported."""
        module, _, name = self.function.partition(":")
        folder = str(self.folder.resolve())
        sys.path.insert(0, folder)
        try:
            with _guest():
                found = getattr(importlib.import_module(module), name)
            if not callable(found):
                raise TypeError(f"{name} is not a function")
            return found
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise UserError(
                f"cannot import {self.function!r}: {_told(error)}",
                where=f"validator {self.name}",
                hint="function: module:name, the module beside the task file or installed",
            ) from None
        finally:
            sys.path.remove(folder)

    def code(self) -> tuple[Path, ...]:
        """The function's own file: when it changes, the scorer has changed."""
        file = getattr(sys.modules.get(self.loaded().__module__), "__file__", None)
        return (Path(file),) if file else ()

    def check_row(self, row: Row) -> None:
        """The function must be there before anything is asked."""
        self.loaded()

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """What the function says. What it raises, SystemExit included (not Ctrl-C), is a UserError: its fault is not the model's."""
        try:
            function = self.loaded()
            with _guest():
                said = function(answer.text, copy.deepcopy(row.to_json()))
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # pytest.fail and others are no Exception
            raise UserError(f"{self.function} raised {_told(error)}", where=f"item {row.id}") from None
        given = said if isinstance(said, dict) else {"score": said}
        score = given.get("score")
        if not isinstance(score, bool | int | float) or not 0 <= score <= 1:
            raise UserError(
                f"{self.function} returned {said!r}: true, false or a number from 0 to 1 is needed",
                where=f"item {row.id}",
            )
        passed = bool(given.get("passed", score == 1))
        reason = str(given.get("reason", "" if passed else f"score {score:g}"))
        return Verdict(passed=passed, score=float(score), reason=reason, cause="" if passed else "wrong_value")
