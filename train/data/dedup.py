"""Duplicates, conflicts and contrast pairs. A row goes only for a direct twin that is kept, and only with the same answer.

exact        the same messages and tools, byte for byte
normalized   the same input (every turn, the tools) after NFKC, case folding and punctuation to space, and the same answer
near         the same system text and tools, inputs whose 4-grams overlap by at least the threshold, the same numbers in
             them, and the same answer
conflict     the same normalised input, another answer: listed, kept
contrast     near input, another answer: listed, kept
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row, content_id
from tunegate.train.data.near import NearIndex, band_keys
from tunegate.train.data.normalize import RULE_NAMES, answer_key, normalized, prompt_key
from tunegate.train.data.rejected import Reason, Rejected

NEAR_THRESHOLD = 0.9
# Thresholds of the curve, and how far from the chosen one a pair is shown as borderline.
CURVE = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
BORDER = 0.02
# A step that removes more than this share of a source stops (`--yes` goes on): no honest set is mostly copies.
MOST_REMOVED = 0.5


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Which rules remove rows."""

    exact: bool = True
    """remove rows with the same messages and tools"""
    normalized: bool = True
    """remove rows equal after normalisation"""
    near: bool = True
    """remove near duplicates"""
    near_threshold: float = NEAR_THRESHOLD
    """overlap of character 4-grams from which two inputs are near, 0 to 1"""
    keep: str = "first"
    """which of two twins is kept: first or longest (input and answer in characters)"""

    def __post_init__(self) -> None:
        if not CURVE[-1] <= self.near_threshold <= 1:
            raise UserError(f"must be between {CURVE[-1]} and 1", where="--near-threshold")
        if self.keep not in ("first", "longest"):
            raise UserError("must be first or longest", where="--keep")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows: the kept one first. score: overlap of their inputs, 1.0 under a rule of equality."""

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


@dataclass(frozen=True, kw_only=True)
class Deduplicated:
    """kept: in the order they came. conflicts, contrast_pairs: both rows of each are kept. borderline: pairs with scores
    just above and below the threshold. curve: at other thresholds, the rows with an earlier row that near, and how many
    of these have no such row with their own answer. skipped: comparisons left out of over-full buckets."""

    kept: list[Row]
    rejected: list[Rejected]
    conflicts: list[Pair]
    contrast_pairs: list[Pair]
    borderline: list[Pair]
    curve: list[dict[str, float]]
    skipped: int

    def count(self, reason: Reason) -> int:
        """Rows removed for a reason."""
        return sum(item.reason is reason for item in self.rejected)


def deduplicate(rows: Sequence[Row], config: DedupConfig) -> Deduplicated:
    """Apply the rules in order: exact, normalised, near."""
    ordered = list(rows)
    if config.keep == "longest":
        ordered.sort(key=lambda row: -len(canonical_json(list(row.messages))))
    removed: list[_Removal] = []
    kept = _exact(ordered, removed) if config.exact else ordered
    kept, conflicts = _normalized(kept, config, removed)
    kept, step = _near(kept, config, removed)
    places = {id(row): index for index, row in enumerate(rows)}
    kept.sort(key=lambda row: places[id(row)])
    gone = {id(removal.row) for removal in removed}
    return Deduplicated(
        kept=kept,
        rejected=sorted(_settled(removed), key=lambda item: (item.file, item.line)),
        conflicts=[pair for pair in conflicts if id(pair.a) not in gone and id(pair.b) not in gone],
        contrast_pairs=step.contrast,
        borderline=step.borderline,
        curve=step.curve,
        skipped=step.skipped,
    )


def refuse_mass_removal(rows: Sequence[Row], rejected: Sequence[Rejected], *, yes: bool) -> None:
    """Raises UserError when more than half of a source's rows would go, unless `yes`."""
    if yes:
        return
    before: dict[str, int] = defaultdict(int)
    removed: dict[str, dict[Reason, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        before[row.file] += 1
    for item in rejected:
        removed[item.file][item.reason] += 1
    for file, reasons in removed.items():
        total = sum(reasons.values())
        if total > MOST_REMOVED * before[file]:
            why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            raise UserError(
                f"cleaning would remove {total} of {before[file]} rows ({why})",
                where=file,
                hint="look at them with `ft data dedup`; pass --yes when that is right",
            )


@dataclass(frozen=True, kw_only=True)
class _Removal:
    """A row, the twin it goes for, and by which rule."""

    row: Row
    reason: Reason
    twin: Row
    rule: str
    score: float = 1.0


def _settled(removed: list[_Removal]) -> list[Rejected]:
    """Each removed row with a twin that is kept.

    A twin under a rule of equality may itself go under a looser rule, for a row nearer the start. The two have the same
    normalised input and answer, so what holds between the twin and the row kept for it holds for the first row too.
    """
    by_row = {id(removal.row): removal for removal in removed}
    settled = []
    for first in removed:
        last = first
        while (later := by_row.get(id(last.twin))) is not None:
            last = later
        score = round(last.score, 4)
        settled.append(Rejected.of(first.row, last.reason, kept=last.twin.id, rule=last.rule, score=score))
    return settled


def _exact(rows: list[Row], removed: list[_Removal]) -> list[Row]:
    first: dict[str, Row] = {}
    kept = []
    for row in rows:
        twin = first.setdefault(content_id(row.messages, row.tools), row)
        if twin is row:
            kept.append(row)
        else:
            rule = "same messages and tools, byte for byte"
            removed.append(_Removal(row=row, reason=Reason.DUPLICATE_EXACT, twin=twin, rule=rule))
    return kept


def _normalized(rows: list[Row], config: DedupConfig, removed: list[_Removal]) -> tuple[list[Row], list[Pair]]:
    answers: dict[str, dict[str, Row]] = {}
    kept, conflicts = [], []
    for row in rows:
        known = answers.setdefault(prompt_key(row), {})
        answer = answer_key(row)
        twin = known.get(answer)
        if twin is not None and config.normalized:
            rule = f"{RULE_NAMES['normalized']}; same answer"
            removed.append(_Removal(row=row, reason=Reason.DUPLICATE_NORMALIZED, twin=twin, rule=rule))
            continue
        if twin is None:
            conflicts += [Pair(a=other, b=row, score=1.0) for other in list(known.values())[:1]]
            known[answer] = row
        kept.append(row)
    return kept, conflicts


@dataclass(kw_only=True)
class _NearStep:
    """What the near rule found, besides the rows it keeps."""

    contrast: list[Pair] = field(default_factory=list)
    borderline: list[Pair] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0


def _near(rows: list[Row], config: DedupConfig, removed: list[_Removal]) -> tuple[list[Row], _NearStep]:
    step = _NearStep()
    if not config.near:
        return rows, step
    texts = [near_text(row) for row in rows]
    indexes: dict[str, NearIndex] = defaultdict(NearIndex)
    members: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    kept: list[Row] = []
    best: list[tuple[float, float]] = []
    for row, text, keys in zip(rows, texts, band_keys(texts), strict=True):
        frame, answer = frame_key(row), answer_key(row)
        index = indexes[frame]
        found = [(*members[frame][at], score) for at, score in index.near(text, keys, CURVE[-1])]
        if found:
            best.append((found[0][2], max((s for _, known, s in found if known == answer), default=0.0)))
        step.borderline += [
            Pair(a=other, b=row, score=s) for other, _, s in found if abs(s - config.near_threshold) <= BORDER
        ]
        near = [item for item in found if item[2] >= config.near_threshold]
        twin = next((item for item in near if item[1] == answer), None)
        if twin is not None:
            rule = f"4-gram overlap >= {config.near_threshold:g}; same numbers; same answer"
            removed.append(_Removal(row=row, reason=Reason.DUPLICATE_NEAR, twin=twin[0], rule=rule, score=twin[2]))
            continue
        unlike = [item for item in near if near_text(item[0]) != text]  # equal texts are conflicts, listed already
        step.contrast += [Pair(a=other, b=row, score=score) for other, _, score in unlike[:1]]
        index.add(text, keys)
        members[frame].append((row, answer))
        kept.append(row)
    step.curve = _curve(best)
    step.skipped = sum(index.skipped for index in indexes.values())
    return kept, step


def _curve(best: list[tuple[float, float]]) -> list[dict[str, float]]:
    """best: for each row with a near one, the highest score, and the highest among those with its answer."""
    return [
        {
            "threshold": at,
            "rows": sum(score >= at for score, _ in best),
            "other_answer": sum(score >= at > same for score, same in best),
        }
        for at in CURVE
    ]


def near_text(row: Row) -> str:
    """The text near duplicates are compared by: the normalised turns of the input but the system's."""
    return normalized(
        "\n".join(str(t.get("content") or "") for t in row.prompt if t["role"] not in ("system", "developer"))
    )


def frame_key(row: Row) -> str:
    """What must be equal for two rows to be near: system text, tools, roles and tool calls of the input."""
    frame = [
        [
            t["role"],
            t.get("tool_calls"),
            *([normalized(str(t.get("content") or ""))] if t["role"] in ("system", "developer") else []),
        ]
        for t in row.prompt
    ]
    return canonical_json([frame, row.tools or []])


def _shown(row: Row) -> str:
    return "\n".join(str(t.get("content") or "") for t in row.prompt if t["role"] == "user")[:500]
