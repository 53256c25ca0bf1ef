"""Patterns of JSON Schema, which are those of ECMA-262, for the `regex` engine."""

import functools
from typing import Any

MAX_PATTERN = 10_000  # characters
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_"}


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """An ECMA-262 pattern in the `regex` engine: `$` is the very end, digit and word classes
    are ASCII, Unicode classes as with the u flag.

    Raises ValueError when it is not a regular expression or too long.
    """
    import regex

    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"longer than {MAX_PATTERN} characters")
    try:
        return regex.compile(_translated(pattern), regex.V0)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _translated(pattern: str) -> str:
    out, inside, index = [], False, 0
    while index < len(pattern):
        character = pattern[index]
        if character == "\\" and index + 1 < len(pattern):
            following = pattern[index + 1]
            index += 2
            if following in _CLASSES:
                out.append(_CLASSES[following] if inside else f"[{_CLASSES[following]}]")
            elif following in "DW" and not inside:
                out.append(f"[^{_CLASSES[following.lower()]}]")
            elif following == "c" and index < len(pattern) and pattern[index].isascii() and pattern[index].isalpha():
                out.append(f"\\x{ord(pattern[index].upper()) - 64:02x}")
                index += 1
            else:
                out.append(character + following)
            continue
        if character == "[" and not inside:
            inside = True
        elif character == "]":
            inside = False
        out.append("\\Z" if character == "$" and not inside else character)
        index += 1
    return "".join(out)
