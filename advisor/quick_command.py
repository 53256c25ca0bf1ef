"""A command that starts quickly: plain options are converted here, so that Typer need not load pydantic (0.15 s).

It reaches into Typer (0.29): where a later version names things otherwise, Typer's own way is taken, only slower.
"""

from pathlib import Path
from typing import Any, get_args, get_origin

from typer.core import TyperCommand

from tunegate.core.errors import UsageError

PLAIN: tuple[type, ...] = (str, int, float, bool, Path)


class PlainParam:
    """Converts the text of an option that is a str, int, float, bool or Path, or one of them or None."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value in its type. Raises UsageError naming the option."""
        if getattr(param, "multiple", False):
            return [self.convert(item, param, ctx) for item in value or ()]
        return None if value is None else self.convert(value, param, ctx)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """One value in its type. Raises UsageError naming the option."""
        if isinstance(value, self.kind):
            return value
        try:
            return self.kind(value)
        except ValueError:
            option = param.opts[0] if param.opts else str(param.name)
            kind = {"float": "a number", "int": "a whole number"}.get(self.kind.__name__, f"a {self.kind.__name__}")
            raise UsageError(f"{value!r} is not {kind}", where=option, hint=f"see {ctx.command_path} --help") from None


class Quick:
    """Mixed into a Typer command or group. Its options may have no bounds of their own: the function checks values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with plain converters where the type is plain."""
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            kind = plain_type(getattr(getattr(param, "type_descriptor", None), "annotation", None))
            if kind is not None and getattr(param, "_runtime_param", ...) is None:
                param._runtime_param = PlainParam(kind)
        parsed: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return parsed


class QuickCommand(Quick, TyperCommand):
    """A command with plain options."""


def plain_type(annotation: Any) -> type | None:
    """The plain type of `T`, `T | None` or `list[T]`; None for anything else."""
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    kinds = [a for a in (get_args(annotation) or (annotation,)) if a is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in PLAIN else None
