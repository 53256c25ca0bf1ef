"""Text for the report page: everything shown is text, and what a screen would hide or obey is made visible."""

import html
import json
import re
from typing import Any

from tunegate.core.visible_text import HIDDEN

# Names of C0 controls as in ISO 646 (their control pictures are missing from many monospaced fonts).
_C0 = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
)
LABELS: dict[int, str] = {
    **dict(enumerate(_C0.split())),
    0x7F: "DEL", 0xAD: "SHY", 0x061C: "ALM", 0x200B: "ZWSP", 0x200C: "ZWNJ", 0x200D: "ZWJ", 0x200E: "LRM", 0x200F: "RLM",
    0x2028: "LSEP", 0x2029: "PSEP", 0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO",
    0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip
_NOT_IN_SCRIPT = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def hidden_label(code: int) -> str:
    """What stands on the page for a hidden character: its short name, else `U+XXXX`."""
    return LABELS.get(code, f"U+{code:04X}")


def shown(value: Any) -> str:
    """A value as HTML text: escaped, hidden characters replaced by a marked name."""

    def mark(match: re.Match[str]) -> str:
        code = ord(match.group())
        return f'<span class="hidden-char" title="U+{code:04X}">{hidden_label(code)}</span>'

    return HIDDEN.sub(mark, html.escape(as_text(value)))


def attribute(value: Any) -> str:
    """A value as the content of a double-quoted attribute; hidden characters become their names in brackets."""
    return html.escape(HIDDEN.sub(lambda match: f"[{hidden_label(ord(match.group()))}]", as_text(value)))


def as_text(value: Any) -> str:
    """Strings as they are, None as nothing, anything else as indented JSON (or its `str` when it is no JSON)."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">`: no character in it can end the element or start a tag.

    `<`, `>`, `&`, line separators and lone surrogates are written as escapes. Raises ValueError on NaN.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _NOT_IN_SCRIPT.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def finite(value: Any) -> float | int | None:
    """A number as it is; None for anything else, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value == value and abs(value) != float("inf") else None


def is_rate(metric: str, *values: Any) -> bool:
    """Whether a metric is a fraction of items, by its name (no unit at the end) and its values (within -1 and 1)."""
    if re.search(r"_(ms|s|usd|bytes|gb|tokens|per_s)$", metric):
        return False
    numbers = [number for number in map(finite, values) if number is not None]
    return all(-1 <= number <= 1 for number in numbers)


def number(value: Any, *, metric: str = "", rate: bool = False) -> str:
    """For people: `87.5%` for a rate, `812 ms`, `$0.0021`, `4.2 GB`, else four significant digits; `–` for none."""
    amount = finite(value)
    if amount is None:
        return "–"
    if rate:
        return f"{_trim(amount * 100)}%"
    if metric.endswith("_tokens"):
        return f"{amount:,.0f} tokens"
    for suffix, unit in (("_ms", " ms"), ("_per_s", " per s"), ("_s", " s"), ("_gb", " GB")):
        if metric.endswith(suffix):
            return f"{amount:,.0f}{unit}" if abs(amount) >= 100 else f"{amount:.3g}{unit}"
    if metric.endswith("_usd"):
        return f"${amount:,.2f}" if amount >= 1 else f"${amount:.3g}"
    if metric.endswith("_bytes"):
        return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.1f} MB"
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.4g}"


def points(value: Any) -> str:
    """A difference of two rates in percentage points with its sign: `+87.5 pts`."""
    amount = finite(value)
    if amount is None:
        return "–"
    text = _trim(abs(amount) * 100)
    sign = "" if text in ("0", "-0") else "+" if amount > 0 else "−"
    return f"{sign}{text} pts"


def interval(low: Any, high: Any, form: Any) -> str:
    """`81.0 to 92.1%`, each end written by `form`, the unit once; nothing when an end is missing."""
    if finite(low) is None or finite(high) is None:
        return ""
    first, last = form(low), form(high)
    unit = next((text for text in ("%", " pts", " ms", " s", " GB", " tokens") if last.endswith(text)), "")
    return f"{first.removesuffix(unit)} to {last}"


def p_value(value: Any) -> str:
    """A p-value: three decimals, and `< 0.001` below them."""
    amount = finite(value)
    if amount is None:
        return "–"
    return "< 0.001" if amount < 0.001 else f"{amount:.3f}"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 item`, `2 items`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def obj(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one: reports of older versions lack keys."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; nothing when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _trim(amount: float) -> str:
    """One decimal, but none for 0 and 100."""
    text = f"{amount:.1f}"
    return text.removesuffix(".0") if text in ("0.0", "-0.0", "100.0") else text
