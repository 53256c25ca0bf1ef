"""Duplicates, conflicts and contrast pairs. A row goes only for a direct twin that is kept, and only with the same answer.

exact        the same messages and tools, byte for byte
normalized   the same input (every turn, the tools) after NFKC, case folding and punctuation to space, and the same answer
             (numbers with their signs, decimal points and commas, operators; tool calls by value, whatever their ids are)
near         the same system text and tools, inputs one letter apart or whose nearness (`judge`: MiniLM's cosine) is at least
             the threshold, the same numbers and symbols in them, and the same answer
conflict     the same normalised input, another answer: listed, kept
The answer is all that a row teaches: every answer of a conversation that is learnt (text or calls, reasoning before it), and
other admissible outputs (`accept`); the input is the rest. Copies that differ in nothing but `accept` are one row, which gets the
admissible outputs of all.
contrast     near input, another answer: listed, kept
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tunegate.core import embedding
from tunegate.core.console import warn
from tunegate.core.errors import UserError, one_of
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row, content_id
from tunegate.train.data.engine import Mapped
from tunegate.train.data.judge import Judge, judge
from tunegate.train.data.normalize import RULE_NAMES, admissible, asked_key, prompt_key, target_key
from tunegate.train.data.rejected import Reason, Rejected
from tunegate.train.data.twins import NearStep, Pair, near_step

BEST = "best:"
NORMALIZED = f"{RULE_NAMES['normalized']}; signs, decimal points and operators as they are"
SAME = "same numbers and symbols; same answer"
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
    near_model: str = embedding.BUILTIN
    """the encoder whose cosine is the verdict on candidates (a folder, a hub id), or lexical: overlap of 4-grams"""
    near_threshold: float | None = None
    """from which two inputs are near, 0 to 1; None: 0.95 of a cosine, 0.9 of an overlap"""
    keep: str = "first"
    """which of two twins is kept: first, longest (input and answer in characters), or best:KEY (highest number there)"""

    def __post_init__(self) -> None:
        if self.near_threshold is not None and not 0 <= self.near_threshold <= 1:
            raise UserError("must be between 0 and 1", where="--near-threshold")
        if not self.keep.startswith(BEST) or self.keep == BEST:
            one_of("--keep", self.keep, ("first", "longest", f"{BEST}KEY"))


@dataclass(frozen=True, kw_only=True)
class Deduplicated:
    """kept: in the order they came. conflicts, contrast_pairs: both rows of each are kept. borderline: pairs with scores
    just above and below the threshold. curve: at other thresholds, the rows with an earlier row that near, and how many
    of these have no such row with their own answer. skipped: comparisons left out of over-full buckets. judged: by which
    rule rows were near (None: not asked)."""

    kept: list[Row]
    rejected: list[Rejected]
    conflicts: list[Pair]
    contrast_pairs: list[Pair]
    borderline: list[Pair]
    curve: list[dict[str, float]]
    skipped: int
    judged: Judge | None = None

    def count(self, reason: Reason) -> int:
        """Rows removed for a reason."""
        return sum(item.reason is reason for item in self.rejected)


def deduplicate(rows: Sequence[Row], config: DedupConfig, mapped: Mapped = map) -> Deduplicated:
    """Apply the rules in order: exact, normalised, near; the near rule's work runs on the engine `mapped`."""
    ordered = preferred(rows, config)
    removed: list[_Removal] = []
    kept = _exact(ordered, removed) if config.exact else ordered
    kept, conflicts = _normalized(kept, config, removed)
    kept, step, judged = _near(kept, config, removed, mapped)
    places = {id(row): index for index, row in enumerate(rows)}
    kept.sort(key=lambda row: places[id(row)])
    gone = {id(removal.row) for removal in removed}
    exact = defaultdict[int, list[Row]](list)
    for removal in removed:
        if removal.reason is Reason.DUPLICATE_EXACT:
            exact[id(removal.twin)].append(removal.row)
    return Deduplicated(
        kept=[with_accept_of(row, exact.get(id(row), ())) for row in kept],
        rejected=sorted(_settled(removed), key=lambda item: (item.file, item.line)),
        conflicts=[pair for pair in conflicts if id(pair.a) not in gone and id(pair.b) not in gone],
        contrast_pairs=step.contrast,
        borderline=step.borderline,
        curve=step.curve(judged.curve) if judged else [],
        skipped=step.skipped,
        judged=judged,
    )


def preferred(rows: Sequence[Row], config: DedupConfig) -> list[Row]:
    """The rows with those first that `--keep` prefers; else in the order they came."""
    if config.keep == "longest":
        return sorted(rows, key=lambda row: -len(canonical_json(list(row.messages))))
    if config.keep.startswith(BEST):
        return sorted(rows, key=lambda row: -_number(row, config.keep.removeprefix(BEST)))
    return list(rows)


def with_accept_of(row: Row, copies: Sequence[Row]) -> Row:
    """The row with the admissible outputs of its copies beside its own, so that none is lost with them."""
    if all(copy.accept is None or copy.accept == row.accept for copy in copies):
        return row
    found = {canonical_json(value): value for one in (row, *copies) for value in one.accept or ()}
    return msgspec.structs.replace(row, accept=list(found.values()))


def refuse_mass_removal(rows: Sequence[Row], rejected: Sequence[Rejected], *, yes: bool) -> None:
    """Raises UserError when more than half of a source's rows would go, for whatever reasons, unless `yes`. Lines that are no
    rows are set aside because the user asked for it (--on-error reject): over half of them is a warning."""
    if yes:
        return
    before: dict[str, int] = defaultdict(int)
    removed: dict[str, dict[Reason, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        before[row.file] += 1
    for item in rejected:
        removed[item.file][item.reason] += 1
    for file, reasons in removed.items():
        lost = reasons.pop(Reason.MALFORMED, 0)
        if lost > MOST_REMOVED * (before[file] + lost):
            warn(f"{file}: {lost} of {before[file] + lost} lines are no rows (ft data check says why)")
        total = sum(reasons.values())
        if total > MOST_REMOVED * before[file]:
            why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            look = "check" if reasons[Reason.DUPLICATE_ID] > total / 2 else "dedup"
            raise UserError(
                f"cleaning would remove {total} of {before[file]} rows ({why})",
                where=file,
                hint=f"look at them with `ft data {look}`; pass --yes when that is right",
            )


def _number(row: Row, key: str) -> int | float:
    """The number under a tag or key of a row. Raises UserError where there is none."""
    value = row.tags.get(key, row.extra.get(key))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"no number under {key!r}", where=f"{row.file}:{row.line}", hint=f"--keep {BEST}{key} needs one"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class _Removal:
    """A row, the twin it goes for, and by which rule."""

    row: Row
    reason: Reason
    twin: Row
    rule: str
    score: float = 1.0


def _settled(removed: list[_Removal]) -> list[Rejected]:
    """Each removed row with the reason it went for first, and a twin that is kept.

    A twin under a rule of equality may itself go under a looser rule, for a row nearer the start. The two have the same
    normalised input and answer, so what holds between the twin and the row kept for it holds for the first row too: the
    last rule and its score.
    """
    by_row = {id(removal.row): removal for removal in removed}
    settled = []
    for first in removed:
        last = first
        while (later := by_row.get(id(last.twin))) is not None:
            last = later
        score = round(last.score, 4)
        rule = first.rule if last is first else through(first.rule, last.rule)
        settled.append(Rejected.of(first.row, first.reason, kept=last.twin.id, rule=rule, score=score))
    return settled


def through(rule: str, last: str) -> str:
    """The rule by which a row goes for a twin that goes itself, under the rule `last`."""
    return f"{rule}, as a row that goes: {last}"


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
        answer = target_key(row)
        twin = known.get(answer)
        if twin is not None and config.normalized:
            rule = f"{NORMALIZED}; same answer"
            removed.append(_Removal(row=row, reason=Reason.DUPLICATE_NORMALIZED, twin=twin, rule=rule))
            continue
        if twin is None:
            conflicts += [Pair(a=other, b=row, score=1.0) for other in list(known.values())[:1]]
            known[answer] = row
        kept.append(row)
    return kept, conflicts


def contradictions(rows: Sequence[Row]) -> list[Pair]:
    """Of rows that are evaluated, each with an earlier one that asks the same and admits none of its answers: no model passes
    both."""
    groups = defaultdict[str, list[Row]](list)
    for row in rows:
        groups[asked_key(row)].append(row)
    found = []
    for group in groups.values():
        known: dict[frozenset[str], Row] = {}
        for row in group if len(group) > 1 else ():
            right = admissible(row)
            if twin := next((other for answers, other in known.items() if answers.isdisjoint(right)), None):
                found.append(Pair(a=twin, b=row, score=1.0))
            known.setdefault(right, row)
    return found


def _near(
    rows: list[Row], config: DedupConfig, removed: list[_Removal], mapped: Mapped
) -> tuple[list[Row], NearStep, Judge | None]:
    if not config.near:
        return rows, NearStep(), None
    judged = judge(config.near_model, config.near_threshold, mapped)
    step = near_step(rows, judged, mapped)
    for pair in step.twins:
        rule = f"{judged.named_for(spelling=pair.spelling)}; {SAME}"
        removed.append(_Removal(row=pair.b, reason=Reason.DUPLICATE_NEAR, twin=pair.a, rule=rule, score=pair.score))
    return step.kept, step, judged
