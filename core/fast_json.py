"""JSON between machines, fast: msgspec where it can, the standard library where it cannot (lone surrogates above all).

What a user wrote is read by `core.rows.parse_json`, which refuses what is doubtful; this reads what a server sent.
"""

import json
from typing import Any

import msgspec

_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()


def decode(raw: bytes) -> Any:
    """What `json.loads` gives. Raises ValueError for what is not JSON in UTF-8, or nested too deeply."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8; a text that holds half of a surrogate pair makes the whole of it ASCII with escapes.

    Raises TypeError for what is not JSON. NaN and infinity become null.
    """
    try:
        return _ENCODER.encode(value)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
