"""The quick way for the commonest rows: turns of role and text and nothing else, a block of lines at a time.

A block goes this way as a whole or not at all: whatever is not plain, or may be wrong, is left to the exact reader, which
gives the same rows and every error with its place.
"""

from typing import Literal, TypedDict

import msgspec

from tunegate.core.files import sha256_text
from tunegate.core.rows import Row

# Bytes read at once, to the next end of line: larger blocks keep more objects alive, which the collector then visits.
BLOCK = 1 << 15


class _Turn(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class _Plain(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    messages: tuple[_Turn, ...]
    id: str | None = None


_DECODER = msgspec.json.Decoder(_Plain)
_ENCODER = msgspec.json.Encoder()
_SORTED = msgspec.json.Encoder(order="sorted")


def plain_rows(block: bytes, file: str, first: int) -> list[Row] | None:
    r"""The rows of whole lines, of which the first is line `first`; None unless all are plain and right.

    The typed decoder passes over a key of a turn that it does not know, and takes the last of a key that stands twice:
    written again, such a line has fewer quotation marks. (`\u0022` would hide that, so it is left to the exact reader.)
    """
    import numpy as np

    given = np.frombuffer(block, np.uint8)
    if np.any((given[:-1] == ord("\\")) & (given[1:] == ord("u"))) and b"u0022" in block:
        return None
    try:
        values = _DECODER.decode_lines(block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(values) != np.count_nonzero(given == ord("\n")) + (not block.endswith(b"\n")):
        return None
    again = np.frombuffer(_ENCODER.encode_lines(values), np.uint8)
    if np.count_nonzero(given == ord('"')) != np.count_nonzero(again == ord('"')):
        return None
    rows = []
    for line, value in enumerate(values, first):
        turns = value.messages
        if not turns or turns[-1]["role"] != "assistant":
            return None
        identity = plain_id(turns) if value.id is None else value.id
        rows.append(Row(id=identity, messages=turns, file=file, line=line))  # type: ignore[arg-type]
    return rows


def plain_id(turns: tuple[_Turn, ...]) -> str:
    """`core.rows.content_id` of plain turns: the same bytes are hashed."""
    return sha256_text(_SORTED.encode({"messages": turns, "tools": None}).decode("utf-8"))[:16]
