"""What an HTTP answer that is an error says: its message, and how long to wait."""

import email.utils
import time
from datetime import UTC

from tunegate.core.fast_json import decode


def seconds_of(retry_after: str) -> float | None:
    """The wait that `Retry-After` asks for, in seconds or until a date (RFC 9110, section 10.2.3); None where it asks for none."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        at = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)  # HTTP knows no local time
    return max(0.0, at.timestamp() - time.time())


def said_in(raw: bytes) -> str:
    """What an error's body says: its message (at the top in vLLM's old form, and of gateways), else its first line."""
    try:
        document = decode(raw)
    except ValueError:
        document = None
    error = (document.get("error") or document) if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    lines = [str(message)] if message else raw.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in lines if line.strip()), "")
