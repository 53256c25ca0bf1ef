"""Conversations that begin as another row does: `ft train` learns every answer of a conversation, so a train row asks not its
whole prompt alone but also what stands before each earlier answer."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property

import msgspec

from tunegate.core.rows import Message, Row
from tunegate.train.data.labels import of_key
from tunegate.train.data.normalize import alphanumeric, is_taught, normalized, prompt_key, user_text

COMMON, FEW = 0.01, 10


class Beginnings:
    """The beginnings of conversations that may be one of `rows`, whole."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def of(self, row: Row) -> Iterator[Row]:
        """The row cut after each answer that is learnt (without `"weight": 0`) but its last, the shortest first; only where the
        last user turn so far is also the last of one of the rows, by letters and digits, so that a long conversation is
        not compared again and again. Of a row with one answer nothing."""
        if not any(turn["role"] == "assistant" for turn in row.prompt):
            return
        asked = None
        for end, turn in enumerate(row.prompt, 1):
            if turn["role"] == "user":
                asked = _said(turn)
            elif is_taught(turn) and asked in self._last:
                yield msgspec.structs.replace(row, messages=row.messages[:end])

    @cached_property
    def _last(self) -> set[str]:
        """The last user turn of each row; made when the first conversation comes."""
        turns = (next((turn for turn in reversed(row.prompt) if turn["role"] == "user"), None) for row in self._rows)
        return {_said(turn) for turn in turns if turn is not None}


def common(beginnings: Iterable[Hashable], rows: int) -> set[Hashable]:
    """Of beginnings, one an entry, those of more than `FEW` conversations and more than 1 % of `rows`: an opening such as a greeting,
    by which conversations are not alike."""
    return {begun for begun, count in Counter(beginnings).items() if count > max(FEW, COMMON * rows)}


def groups_of(rows: Sequence[Row], key: str | None = None) -> list[str]:
    """What rows that must land on one side share: the value under `key`, else the row's group, else its normalised user
    text, or that of the shortest row without a group it begins with, unless it is a common opening, else (no user turn) its
    whole input."""
    given = [row.group if key is None or (value := of_key(row, key)) is None else value for row in rows]
    free = [row for row, group in zip(rows, given, strict=True) if group is None]
    texts = [normalized(user_text(row)) for row in free]
    known, beginnings = set(texts) - {""}, Beginnings(free)
    begun = [[asked for part in beginnings.of(row) if (asked := normalized(user_text(part))) in known] for row in free]
    openings = common((asked for each in begun for asked in each), len(rows))
    found = iter(
        next((asked for asked in each if asked not in openings), text) or prompt_key(row)
        for row, text, each in zip(free, texts, begun, strict=True)
    )
    return [next(found) if group is None else group for group in given]


def _said(turn: Message) -> str:
    return alphanumeric(str(turn.get("content") or ""))
