"""The near step: rows in order, each compared with the kept rows before it. A row goes only for a direct twin that stays.

Rows go by in blocks, so that the encoder gets the texts of many candidates at once; a verdict is one pair's own, so the
blocks change nothing (but for over-full buckets, whose comparisons left out are counted).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from tunegate.core.console import Ticker, progress, ticked
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row
from tunegate.train.data.engine import Mapped
from tunegate.train.data.judge import Judge, Verdict
from tunegate.train.data.near import NearIndex, band_keys, same_numbers
from tunegate.train.data.normalize import calls_of, exact_marks, given, is_taught, normalized, target_key

BLOCK = 4096
# How far from the threshold a pair is shown as borderline.
BORDER = 0.02


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows: the kept one first. score: nearness of their inputs, 1.0 under a rule of equality; spelling: by letters."""

    a: Row
    b: Row
    score: float
    spelling: bool = False

    def to_json(self) -> dict[str, object]:
        """Ids, places, texts and answers, for `pairs.jsonl` and `--json`."""
        return {
            "score": round(self.score, 4),
            **{
                name: {"id": row.id, "file": row.file, "line": row.line, "input": _shown(row), "answer": row.expected}
                for name, row in (("a", self.a), ("b", self.b))
            },
        }


@dataclass(kw_only=True)
class NearStep:
    """What the near rule found. twins: a row that goes as `b`, for `a`. best: for each row with a near one the highest
    score, and the highest among those with its answer (1 where letters decided: no threshold changes that). skipped:
    comparisons left out of over-full buckets."""

    kept: list[Row] = field(default_factory=list)
    twins: list[Pair] = field(default_factory=list)
    contrast: list[Pair] = field(default_factory=list)
    borderline: list[Pair] = field(default_factory=list)
    best: list[tuple[float, float]] = field(default_factory=list)
    skipped: int = 0

    def curve(self, thresholds: Sequence[float]) -> list[dict[str, float]]:
        """At each threshold, the rows with an earlier row that near, and how many have none such with their answer."""
        return [
            {
                "threshold": at,
                "rows": sum(score >= at for score, _ in self.best),
                "other_answer": sum(score >= at > same for score, same in self.best),
            }
            for at in thresholds
        ]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A row with what it is compared by."""

    row: Row
    frame: int
    text: str
    answer: str
    keys: tuple[bytes, ...]


Found = list[tuple[_Seen, float]]
Judged = list[tuple[_Seen, Verdict]]


def near_step(rows: Sequence[Row], judge: Judge, mapped: Mapped = map) -> NearStep:
    """Go through rows in order; what is computed of each row alone runs on the engine `mapped`."""
    step = NearStep()
    index, kept = NearIndex(), list[_Seen]()
    frames: dict[str, int] = {}
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    hashed = ticked(mapped(partial(_keyed, width=judge.band_width), blocks), "near duplicates: rows hashed", BLOCK)
    keyed = [keys for found in hashed for keys in found]
    everyone = [_seen(row, keys, frames) for row, keys in zip(rows, keyed, strict=True)]
    close = judge.neighbours([seen.text for seen in everyone], None) if judge.neighbours and len(rows) > 1 else []
    gone: set[int] = set()
    with _shown_when_long(len(rows)) as tick:
        for start in range(0, len(rows), BLOCK):
            block = everyone[start : start + BLOCK]
            candidates, inside = _candidates(block, index, kept, judge.floor, tick)
            for (seen, found), places in zip(candidates, close[start : start + BLOCK], strict=False):
                found += _by_words(seen, found, [everyone[at] for at in places if id(everyone[at]) not in gone])
            for seen, judged in _judged(candidates, judge):
                if not _decide(seen, [item for item in judged if id(item[0]) not in gone], judge, step):
                    gone.add(id(seen))
                    continue
                step.kept.append(seen.row)
                index.add(seen.text, seen.keys)
                kept.append(seen)
            step.skipped += inside
    step.skipped += index.skipped
    return step


def _shown_when_long(rows: int) -> AbstractContextManager[Ticker]:
    """Progress over the rows; of a few, which take seconds, no end is told: a line comes only where they take ten."""
    return progress("near duplicates: rows compared", rows if rows > BLOCK else None)


Keys = tuple[str, str, str, tuple[bytes, ...]]


def _keyed(rows: Sequence[Row], width: int) -> list[Keys]:
    """(frame, text, answer, band keys) of each row. width: hashes of one band."""
    texts = [near_text(row) for row in rows]
    return [
        (frame_key(row), text, target_key(row), keys)
        for row, text, keys in zip(rows, texts, band_keys(texts, width), strict=True)
    ]


def _seen(row: Row, found: Keys, frames: dict[str, int]) -> _Seen:
    """The row with its band keys; rows of two frames share none."""
    frame, text, answer, keys = found
    number = frames.setdefault(frame, len(frames))
    own = tuple(number.to_bytes(4, "big") + key for key in keys) if number else keys
    return _Seen(row=row, frame=number, text=text, answer=answer, keys=own)


def _candidates(
    block: list[_Seen], index: NearIndex, kept: list[_Seen], floor: float, tick: Ticker
) -> tuple[list[tuple[_Seen, Found]], int]:
    """For each row of the block, the earlier rows it overlaps with by at least `floor`; comparisons left out inside."""
    here = NearIndex()
    found = []
    for seen in block:
        near = [(kept[at], overlap) for at, overlap in index.near(seen.text, seen.keys, floor)]
        near += [(block[at], overlap) for at, overlap in here.near(seen.text, seen.keys, floor)]
        here.add(seen.text, seen.keys)
        tick()
        found.append((seen, near))
    return found, here.skipped


def _by_words(seen: _Seen, found: Found, close: list[_Seen]) -> Found:
    """Those close by their words that may be twins and are not among those found by their letters."""
    known = {id(other) for other, _ in found}
    rest = [o for o in close if id(o) not in known and o.frame == seen.frame and same_numbers(o.text, seen.text)]
    return [(other, 0.0) for other in rest]


def _judged(candidates: list[tuple[_Seen, Found]], judge: Judge) -> list[tuple[_Seen, Judged]]:
    """The verdicts on each row's candidates. A row that goes by its spelling for one that surely stays keeps that pair alone:
    nothing is asked about it."""
    going: dict[int, tuple[_Seen, float]] = {}
    unsure: set[int] = set()
    sure: dict[tuple[int, int], bool] = {}

    def is_sure(seen: _Seen, other: _Seen, overlap: float) -> bool:
        sure[id(seen), id(other)] = found = judge.sure((seen.text, other.text, overlap))
        return found

    for seen, found in candidates:
        alike = [(o, overlap) for o, overlap in found if o.answer == seen.answer and id(o) not in going]
        stays = (item for item in alike if id(item[0]) not in unsure)
        if twin := next((item for item in stays if is_sure(seen, *item)), None):
            going[id(seen)] = twin
        elif alike:
            unsure.add(id(seen))
    left = [
        (seen, [going[id(seen)]] if id(seen) in going else [item for item in found if id(item[0]) not in going])
        for seen, found in candidates
    ]
    pairs = [(seen, other, overlap) for seen, found in left for other, overlap in found]
    known = [sure.get((id(seen), id(other))) for seen, other, _ in pairs]
    verdicts = iter(judge.verdicts([(seen.text, other.text, overlap) for seen, other, overlap in pairs], known))
    return [(seen, [(other, next(verdicts)) for other, _ in found]) for seen, found in left]


def _decide(seen: _Seen, judged: Judged, judge: Judge, step: NearStep) -> bool:
    """Whether the row stays; what was found goes into `step`."""
    row = seen.row
    found = [(other, verdict, 1.0 if verdict.spelling else verdict.score) for other, verdict in judged]
    found = sorted((item for item in found if item[2] >= judge.curve[-1]), key=lambda item: -item[2])
    if found:
        same = max((score for other, _, score in found if other.answer == seen.answer), default=0.0)
        step.best.append((found[0][2], same))
    pairs = [(other, Pair(a=other.row, b=row, score=v.score, spelling=v.spelling), v.near) for other, v, _ in found]
    around = [pair for _, pair, _ in pairs if not pair.spelling and abs(pair.score - judge.threshold) <= BORDER]
    step.borderline += sorted(around, key=lambda pair: abs(pair.score - judge.threshold))[:1]
    near = [(other, pair) for other, pair, is_near in pairs if is_near]
    twin = next((pair for other, pair in near if other.answer == seen.answer), None)
    if twin is not None:
        step.twins.append(twin)
        return False
    unlike = [pair for other, pair in near if other.text != seen.text]  # equal texts are conflicts, listed already
    step.contrast += unlike[:1]
    return True


def near_text(row: Row) -> str:
    """The text near duplicates are compared by: the normalised turns that are given but the system's."""
    return normalized(
        "\n".join(str(t.get("content") or "") for t in given(row) if t["role"] not in ("system", "developer"))
    )


def frame_key(row: Row) -> str:
    """What must be equal for two rows to be near: system text, tools, roles, which turns are learnt, the tool calls that are
    given, and the signs, decimal points and operators of the input."""
    turns = [(t["role"], is_taught(t), str(t.get("content") or "")) for t in given(row)]
    frame = [
        [role, learnt, *([normalized(text)] if role in ("system", "developer") else []), *exact_marks(text)]
        for role, learnt, text in turns
    ]
    return canonical_json([frame, is_taught(row.messages[-1]), row.tools or [], calls_of(row)])


def _shown(row: Row) -> str:
    return "\n".join(str(t.get("content") or "") for t in row.prompt if t["role"] == "user")[:500]
