"""Predictions against measurements: the error of each class, its interval's coverage, and what could not be predicted."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegate.advisor.errors import class_errors, half_width, interval
from tunegate.advisor.estimates import widen_of
from tunegate.advisor.facts import Record, read_csv, table
from tunegate.advisor.limits import impossible
from tunegate.advisor.measured import NEEDED, Case, NotPredictedError, normal, parse
from tunegate.advisor.predict import predict
from tunegate.core.errors import UserError

ONE_SIDED_95 = 1.645
MIN_ROWS_TO_FAIL = 5  # a class of fewer rows is shown, never failed
ABSURD = 1e9  # a measurement this many times its prediction, or as small a part of it, is a slip of the pen


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row predicted. measured, predicted, low, high: in the unit of the row's class. widen: how much wider than the
    class's its interval is, where its configuration lies outside the collection."""

    case: Case
    measured: float
    predicted: float
    low: float
    high: float
    widen: float = 1.0

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1.0

    @property
    def residual(self) -> float:
        """log(measured / predicted), over what its interval is widened by."""
        return math.log(self.measured / self.predicted) / self.widen


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """All pairs, and the rows without a prediction as (id, reason, class)."""

    pairs: tuple[Pair, ...]
    skipped: tuple[tuple[str, str, str], ...]

    def by_class(self) -> dict[str, list[Pair]]:
        """Pairs by class, in the order of the file."""
        groups: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            groups[pair.case.kind].append(pair)
        return dict(groups)

    def worse_than_recorded(self) -> list[str]:
        """Classes whose MAPE exceeds their recorded bound by more than chance explains, each as a sentence.

        Rows fewer than those behind the bound are a sample of them: the lower 95 % bound of their mean must exceed it.
        """
        found = []
        for kind, pairs in self.by_class().items():
            recorded = class_errors().get(kind)
            if recorded is None or len(pairs) < MIN_ROWS_TO_FAIL:
                continue
            errors = [abs(pair.error) for pair in pairs]
            mape = statistics.fmean(errors)
            chance = (
                ONE_SIDED_95 * statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) < recorded.n else 0.0
            )
            if mape - chance > recorded.bound:
                found.append(f"{kind}: MAPE {mape:.3f} over {len(pairs)} rows exceeds the bound {recorded.bound:.3f}")
        return found


def rows_of(path: Path | None) -> Sequence[Record]:
    """Rows of the shipped collection, or of a user's CSV file of the same columns. Raises UserError, for no rows too."""
    if path is None:
        return table("measured")
    if not (rows := read_csv(path, NEEDED)):
        raise UserError("no rows below the header", where=str(path), hint="nothing can be compared")
    return rows


def backtest(rows: Sequence[Record]) -> Backtest:
    """Predict every row that can be predicted; name the others with their reason."""
    pairs, skipped = [], []
    for number, given in enumerate(rows, 1):
        row = normal(given)
        row["id"] = row["id"] or f"row {number}"
        try:
            case = parse(row)
            value = predict(case)
            told = impossible(case, value)
        except NotPredictedError as reason:
            told = str(reason)
        if told:
            skipped.append((row["id"], told, row["kind"]))
            continue
        widen = min(2.0, widen_of(case.model, case.gpu, case.kind)[0])
        low, high = interval(value, case.kind, widen=widen)
        pair = Pair(case=case, measured=case.value, predicted=value, low=low, high=high, widen=widen)
        if 1 / ABSURD < pair.predicted / pair.measured < ABSURD:
            pairs.append(pair)
        else:
            skipped.append((row["id"], f"measured {case.value:g}: no such thing", row["kind"]))
    return Backtest(pairs=tuple(pairs), skipped=tuple(skipped))


def summary(pairs: Sequence[Pair]) -> dict[str, float]:
    """n, mape, median_ape, bias, within_interval of a group of pairs (fractions)."""
    errors = [pair.error for pair in pairs]
    inside = sum(pair.low <= pair.measured <= pair.high for pair in pairs)
    return {
        "n": len(pairs),
        "mape": statistics.fmean(abs(e) for e in errors),
        "median_ape": statistics.median(abs(e) for e in errors),
        "bias": statistics.fmean(errors),
        "within_interval": inside / len(pairs),
    }


def class_half_width(pairs: Sequence[Pair]) -> float:
    """Log half width recorded for a class: over all its rows, up to 15 % wider where one source of 10 rows is noisier, and
    up to half wider where every source has one voice, however many rows it has.

    New rows seldom come from the sources that fit best, nor from the largest.
    """
    overall = half_width([pair.residual for pair in pairs])
    sources: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        sources[pair.case.source].append(pair.residual)
    noisiest = max((half_width(r, level=0.9) for r in sources.values() if len(r) >= 10), default=overall)
    return max(overall, min(noisiest, 1.15 * overall), min(one_voice_each(list(sources.values())), 1.5 * overall))


def one_voice_each(sources: Sequence[Sequence[float]], level: float = 0.9) -> float:
    """The `level` quantile of |residual| where each source weighs the same. Needs a residual."""
    weighed = sorted((abs(value), 1.0 / len(values)) for values in sources for value in values)
    passed = 0.0
    for size, weight in weighed:
        passed += weight
        if passed >= level * len(sources):
            return size
    return weighed[-1][0]


def as_json(result: Backtest) -> dict[str, object]:
    """What `ftadvise backtest --json` prints."""
    return {
        "classes": {kind: summary(pairs) for kind, pairs in result.by_class().items()},
        "rows": [
            {
                "id": pair.case.id,
                "class": pair.case.kind,
                "measured": pair.measured,
                "predicted": pair.predicted,
                "low": pair.low,
                "high": pair.high,
            }
            for pair in result.pairs
        ],
        "skipped": [{"id": name, "reason": reason} for name, reason, _ in result.skipped],
        "worse": result.worse_than_recorded(),
    }


def coverage_of_left_out_sources(result: Backtest) -> dict[tuple[str, str], tuple[int, float, float, float]]:
    """By (class, source): rows, MAPE, bias, and the share of rows inside an interval made from the OTHER sources."""
    found = {}
    for kind, pairs in result.by_class().items():
        for source in sorted({pair.case.source for pair in pairs}):
            own = [pair for pair in pairs if pair.case.source == source]
            others = [pair.residual for pair in pairs if pair.case.source != source]
            if not others:
                continue
            width = half_width(others)
            inside = sum(abs(pair.residual) <= width for pair in own) / len(own)
            numbers = summary(own)
            found[kind, source] = (len(own), numbers["mape"], numbers["bias"], inside)
    return found
