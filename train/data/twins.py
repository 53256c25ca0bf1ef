"""The near step: rows in order, each compared with the kept rows before it. A row goes only for a direct twin that stays.

Rows go by in blocks, so that the encoder gets the texts of many candidates at once; a verdict is one pair's own, so the
blocks change nothing (but for over-full buckets, whose comparisons left out are counted).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunegate.core.files import canonical_json
from tunegate.core.rows import Row
from tunegate.train.data.engine import Mapped
from tunegate.train.data.judge import Judge
from tunegate.train.data.near import NearIndex, band_keys, same_numbers
from tunegate.train.data.normalize import calls_of, exact_numbers, normalized, target_key

BLOCK = 4096
# How far from the threshold a pair is shown as borderline.
BORDER = 0.02


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows: the kept one first. score: nearness of their inputs, 1.0 under a rule of equality."""

    a: Row
    b: Row
    score: float

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
    score, and the highest among those with its answer. skipped: comparisons left out of over-full buckets."""

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


def near_step(rows: Sequence[Row], judge: Judge, mapped: Mapped = map) -> NearStep:
    """Go through rows in order; what is computed of each row alone runs on the engine `mapped`."""
    step = NearStep()
    index, kept = NearIndex(), list[_Seen]()
    frames: dict[str, int] = {}
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    keyed = [keys for found in mapped(_keyed, blocks) for keys in found]
    everyone = [_seen(row, keys, frames) for row, keys in zip(rows, keyed, strict=True)]
    close = judge.neighbours([seen.text for seen in everyone]) if judge.neighbours and len(rows) > 1 else []
    gone: set[int] = set()
    for start in range(0, len(rows), BLOCK):
        block = everyone[start : start + BLOCK]
        candidates, inside = _candidates(block, index, kept, judge.floor)
        for (seen, found), places in zip(candidates, close[start : start + BLOCK], strict=False):
            found += _by_words(seen, found, [everyone[at] for at in places if id(everyone[at]) not in gone])
        flat = [(seen.text, other.text, overlap) for seen, found in candidates for other, overlap in found]
        scores = iter(judge.scores(flat)) if flat else iter(())
        for seen, found in candidates:
            scored = [(other, next(scores)) for other, _ in found]
            if not _decide(seen, [(o, s) for o, s in scored if id(o) not in gone], judge, step):
                gone.add(id(seen))
                continue
            step.kept.append(seen.row)
            index.add(seen.text, seen.keys)
            kept.append(seen)
        step.skipped += inside
    step.skipped += index.skipped
    return step


Keys = tuple[str, str, str, tuple[bytes, ...]]


def _keyed(rows: Sequence[Row]) -> list[Keys]:
    """(frame, text, answer, band keys) of each row."""
    texts = [near_text(row) for row in rows]
    return [
        (frame_key(row), text, target_key(row), keys)
        for row, text, keys in zip(rows, texts, band_keys(texts), strict=True)
    ]


def _seen(row: Row, found: Keys, frames: dict[str, int]) -> _Seen:
    """The row with its band keys; rows of two frames share none."""
    frame, text, answer, keys = found
    number = frames.setdefault(frame, len(frames))
    own = tuple(number.to_bytes(4, "big") + key for key in keys) if number else keys
    return _Seen(row=row, frame=number, text=text, answer=answer, keys=own)


def _candidates(
    block: list[_Seen], index: NearIndex, kept: list[_Seen], floor: float
) -> tuple[list[tuple[_Seen, Found]], int]:
    """For each row of the block, the earlier rows it overlaps with by at least `floor`; comparisons left out inside."""
    here = NearIndex()
    found = []
    for seen in block:
        near = [(kept[at], overlap) for at, overlap in index.near(seen.text, seen.keys, floor)]
        near += [(block[at], overlap) for at, overlap in here.near(seen.text, seen.keys, floor)]
        here.add(seen.text, seen.keys)
        found.append((seen, near))
    return found, here.skipped


def _by_words(seen: _Seen, found: Found, close: list[_Seen]) -> Found:
    """Those close by their words that may be twins and are not among those found by their letters."""
    known = {id(other) for other, _ in found}
    rest = [o for o in close if id(o) not in known and o.frame == seen.frame and same_numbers(o.text, seen.text)]
    return [(other, 0.0) for other in rest]


def _decide(seen: _Seen, scored: Found, judge: Judge, step: NearStep) -> bool:
    """Whether the row stays; what was found goes into `step`."""
    lowest, row = judge.curve[-1], seen.row
    found = sorted((item for item in scored if item[1] >= lowest), key=lambda item: -item[1])
    if found:
        same = max((score for other, score in found if other.answer == seen.answer), default=0.0)
        step.best.append((found[0][1], same))
    around = [Pair(a=o.row, b=row, score=s) for o, s in found if abs(s - judge.threshold) <= BORDER]
    step.borderline += sorted(around, key=lambda pair: abs(pair.score - judge.threshold))[:1]
    near = [item for item in found if item[1] >= judge.threshold]
    twin = next((item for item in near if item[0].answer == seen.answer), None)
    if twin is not None:
        step.twins.append(Pair(a=twin[0].row, b=row, score=twin[1]))
        return False
    unlike = [item for item in near if item[0].text != seen.text]  # equal texts are conflicts, listed already
    step.contrast += [Pair(a=other.row, b=row, score=score) for other, score in unlike[:1]]
    return True


def near_text(row: Row) -> str:
    """The text near duplicates are compared by: the normalised turns of the input but the system's."""
    return normalized(
        "\n".join(str(t.get("content") or "") for t in row.prompt if t["role"] not in ("system", "developer"))
    )


def frame_key(row: Row) -> str:
    """What must be equal for two rows to be near: system text, tools, roles, tool calls and the signs and decimal points of
    the numbers of the input."""
    frame = [
        [t["role"], *([normalized(str(t.get("content") or ""))] if t["role"] in ("system", "developer") else [])]
        for t in row.prompt
    ]
    return canonical_json([frame, row.tools or [], calls_of(row), exact_numbers(row)])


def _shown(row: Row) -> str:
    return "\n".join(str(t.get("content") or "") for t in row.prompt if t["role"] == "user")[:500]
