"""What a row is labelled with, for stratifying and for the profile."""

import json
from collections.abc import Callable, Sequence

from tunegate.core.errors import UserError, nearest
from tunegate.core.rows import KEYS, Row, json_kind

# Keys that hold a class by custom, in the order they are tried, in tags and beside the messages.
CUSTOMARY = ("label", "intent", "category", "class")
# Answers count as labels when they are short and few: at most 5 % of the rows and 1,000 distinct ones.
LABEL_CHARACTERS = 64
LABEL_SHARE = 0.05
LABELS_MOST = 1000


def labels(rows: Sequence[Row], key: str | None = None) -> tuple[str | None, list[str | None]]:
    """(where labels come from, the label of each row).

    With `key`: that tag, or that key beside the messages; raises UserError when no row has it. Without: a customary key
    that every row has, else the answers themselves when they are short and few, else (None, no labels).
    """
    if key is not None:
        found = [of_key(row, key) for row in rows]
        if rows and not any(found):
            raise no_row_has(key, rows, "--label")
        return key, found
    for name in CUSTOMARY:
        found = [of_key(row, name) for row in rows]
        if rows and all(found):
            return name, found
    answers = [row.expected.strip() for row in rows]
    if rows and max(map(len, answers)) <= LABEL_CHARACTERS and not any(a[:1] in ("{", "[") for a in answers):
        distinct = len(set(answers))
        if all(answers) and 2 <= distinct <= min(LABELS_MOST, max(2, LABEL_SHARE * len(rows))):
            return "answer", list(answers)
    return None, [None] * len(rows)


def no_row_has(key: str, rows: Sequence[Row], option: str) -> UserError:
    """The error for a key that no row has a text or a number under, with the keys that the first thousand rows do have."""
    held = next((row for row in rows if key in row.tags or key in row.extra), None)
    if held is not None:
        kind = json_kind(held.tags.get(key, held.extra.get(key)))
        return UserError(f"{key!r} holds {kind}, text or a number is needed here", where=option)
    if key in KEYS:
        return UserError(f"{key!r} is no tag and no key beside those of a row", where=option)
    known = sorted({name for row in rows[:1000] for name in (*row.tags, *row.extra)})
    return UserError(f"no row has {key!r}", where=option, hint=nearest(key, known) if known else None)


def reader(source: str | None) -> Callable[[Row], str | None] | None:
    """The function that reads a row's label, for the source that `labels` gave."""
    if source is None:
        return None
    return (lambda row: row.expected.strip()) if source == "answer" else (lambda row: of_key(row, source))


def of_key(row: Row, key: str) -> str | None:
    """The value under `key` in the tags, else beside the messages, as text; None when absent or not a scalar."""
    value = row.tags.get(key, row.extra.get(key, row.group if key == "group" else None))
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float | bool) else None
