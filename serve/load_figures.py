"""From records to figures: percentiles with intervals, throughput, goodput, the knee, and whether the run may be believed.

Latencies are those of answers, and E2E of requests that timed out too, by what they were waited for: they would have taken
more. A request that failed is counted as an error and as a miss of the SLO, never left out.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tunegate.core.statistics import PERCENTILES, Interval, percentile, percentile_with_late, wilson
from tunegate.serve.client import CLIENT, TIMEOUT
from tunegate.serve.load_test import Record, StageRun

LEVEL = 0.95  # of the intervals
FIGURES = ("ttft_ms", "tpot_ms", "e2e_ms")
CPU_LIMIT = 0.8  # of one core: the client's event loop runs on one
ERROR_LIMIT = 0.05  # what the client itself may add to a figure
LAG_FLOOR_MS = 2.0  # late wake-ups below this are the clock's grain
DRIFT_LEVEL = 0.99


def figures(run: StageRun, slo: dict[str, float]) -> dict[str, Any]:
    """Everything that is said of one stage, as JSON. slo: limits in ms by figure."""
    measured = [r for r in run.records if not r.warm_up]
    sent = [r for r in measured if r.error_kind != CLIENT]
    answers = [r for r in measured if r.error_kind is None]
    stage = run.stage
    found: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind,
        "concurrency": int(stage.level) if stage.kind == "closed" else None,
        "rate": stage.level if stage.kind == "open" else None,
        "requests": len(measured),
        "answers": len(answers),
        "errors": dict(Counter(r.error_kind for r in measured if r.error_kind is not None)),
        "error_rate": (len(sent) - len(answers)) / len(sent) if sent else 0.0,
        "unfinished": run.unfinished,
        "stopped": run.stopped,
        "truncated": sum(r.finish_reason == "length" for r in answers),
        **{name: summary(*_times(measured, name)) for name in FIGURES},
        "throughput": throughput(run.records),
        "goodput": goodput(sent, slo),
        "prompt_tokens": _median([r.prompt_tokens for r in answers]),
        "completion_tokens": _median([r.completion_tokens for r in answers]),
        "repeated_prompts": sum(r.repeated for r in measured),
        "counters": run.counters,
        "warm_up": _warm_up([r for r in run.records if r.warm_up]),
    }
    found["client"] = _client(run, measured)
    found["invalid"] = invalid(found)
    found["warnings"] = [*(f"{why}: goodput is not known" for why in unknown(answers, slo)), *warnings(found, answers)]
    return found


def _times(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """(a figure of every answer that has it, what the requests that timed out were waited for: in E2E alone), ms."""
    waited = [r.waited_ms for r in records if r.error_kind == TIMEOUT] if name == "e2e_ms" else []
    return [v for r in records if (v := getattr(r, name)) is not None], waited


def summary(values: Sequence[float], waited: Sequence[float] = ()) -> dict[str, Any] | None:
    """{n, mean, p50, p95, p99}, each percentile as {value, low, high} of level 0.95; a bound is None where n is too
    small for one. None for no values.

    waited: what requests that timed out were waited for, counted like values (as in `ft eval`).
    """
    both = [*values, *waited]
    if not both:
        return None
    named = {name: bounds(percentile_with_late(values, waited, p, level=LEVEL)) for name, p in PERCENTILES.items()}
    return {"n": len(both), "mean": statistics.fmean(both), **named}


def bounds(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON."""
    return {name: value for name, value in asdict(interval).items() if name != "n"}


def throughput(records: Sequence[Record]) -> dict[str, Any] | None:
    """Requests and output tokens a second while the load was full: from the first measured request to the last one sent.

    An answer counts by the share of its time that lies in that window, warm-up included: before and after it streams
    stand idle. A window shorter than a request is no measurement; then it is the whole span, and `window` says so.
    `span_...` are the figures over the whole span, as other load testers give them. Tokens are None where the endpoint
    reports no usage.
    """
    measured = [r for r in records if not r.warm_up]
    answers = [r for r in records if r.error_kind is None]
    counted = any(r.completion_tokens is not None for r in answers)
    whole = [r for r in answers if not r.warm_up]
    if not whole:
        return None
    start, sent = min(r.started_s for r in measured), max(r.started_s for r in measured)
    end = max(r.ended_s for r in measured)
    full = sent - start >= statistics.median(r.ended_s - r.started_s for r in answers)
    until = sent if full else end
    parts = [(r, _share_within(r, start, until)) for r in (answers if full else whole)]
    return {
        "window": "full load" if full else "whole span",
        "seconds": until - start,
        "requests_per_s": sum(share for _, share in parts) / (until - start),
        "output_tokens_per_s": sum(share * (r.completion_tokens or 0) for r, share in parts) / (until - start)
        if counted
        else None,
        "span_s": end - start,
        "span_requests_per_s": len(whole) / (end - start),
        "span_output_tokens_per_s": sum(r.completion_tokens or 0 for r in whole) / (end - start) if counted else None,
    }


def _share_within(record: Record, start: float, until: float) -> float:
    inside = min(record.ended_s, until) - max(record.started_s, start)
    return max(0.0, inside) / (record.ended_s - record.started_s)


def goodput(measured: Sequence[Record], slo: dict[str, float]) -> dict[str, Any] | None:
    """Share of the requests that were answered within every limit (Wilson interval), and so many a second.

    A failed request is a miss, and an answer without a figure that others have. None without limits, and where a figure
    with a limit is not known.
    """
    answers = [r for r in measured if r.error_kind is None]
    if not slo or not measured or unknown(answers, slo):
        return None
    met = sum(all(_within(r, name, limit) for name, limit in slo.items()) for r in answers)
    span = max(r.ended_s for r in measured) - min(r.started_s for r in measured)
    return {
        "slo": slo,
        "share": bounds(wilson(met, len(measured), level=LEVEL)),
        "requests_per_s": met / span if span > 0 else 0.0,
    }


def unknown(answers: Sequence[Record], slo: dict[str, float]) -> list[str]:
    """Why a figure that has a limit is in no answer, in words; empty where each is known."""
    found = []
    for name in slo:
        due = [r for r in answers if not _excused(r, name)]
        if due and all(getattr(r, name) is None for r in due):
            streams = any(r.ttft_ms is not None for r in due)
            why = "the endpoint reports no token counts (usage)" if streams else "the endpoint does not stream"
            found.append(f"{why}: {name.removesuffix('_ms').upper()} is not known")
    return found


def _excused(record: Record, name: str) -> bool:
    """One token has no TPOT."""
    return name == "tpot_ms" and record.completion_tokens == 1


def _within(record: Record, name: str, limit: float) -> bool:
    value = getattr(record, name)
    return _excused(record, name) if value is None else bool(value <= limit)


def _median(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(statistics.median(known)) if known else None


def _warm_up(records: Sequence[Record]) -> dict[str, Any]:
    times = [r.e2e_ms for r in records if r.e2e_ms is not None]
    return {"requests": len(records), "e2e_p50_ms": statistics.median(times) if times else None}


def _client(run: StageRun, measured: Sequence[Record]) -> dict[str, Any]:
    """What the load generator did to itself: cores used, late wake-ups and late sendings (ms)."""
    lags, late = run.lags_ms or [0.0], [r.late_ms for r in measured] or [0.0]
    return {
        "cpu_share": run.cpu_share,
        **{f"lag_{name}_ms": percentile(lags, p, level=LEVEL).value for name, p in PERCENTILES.items()},
        **{f"late_{name}_ms": percentile(late, p, level=LEVEL).value for name, p in PERCENTILES.items()},
        "unsent": sum(r.error_kind == CLIENT for r in run.records),
    }


def invalid(stage: dict[str, Any]) -> list[str]:
    """Why the figures of a stage are the client's and not the server's; empty when they may be believed.

    The client may use 80 % of a core, and be late by 5 % of TTFT at the same percentile (2 ms at least).
    """
    client, reasons = stage["client"], []
    if client["unsent"]:
        reasons.append(f"the client could not send {client['unsent']} requests: it may open no more files (ulimit -n)")
    if client["cpu_share"] > CPU_LIMIT:
        reasons.append(f"the client used {client['cpu_share']:.2f} of a core, more than {CPU_LIMIT}")
    first = stage["ttft_ms"] or stage["e2e_ms"]
    for name in ("p50", "p99"):
        limit = max(LAG_FLOOR_MS, ERROR_LIMIT * first[name]["value"]) if first else float("inf")
        for what, words in (("lag", "woke up"), ("late", "sent requests")):
            value = client[f"{what}_{name}_ms"]
            if value > limit:
                reasons.append(f"the client {words} {value:.1f} ms late ({name}); {limit:.1f} ms would be tolerable")
    return reasons


def warnings(stage: dict[str, Any], answers: Sequence[Record]) -> list[str]:
    """What a reader should know before he believes in the figures."""
    found = []
    drift = drifted([r.e2e_ms for r in sorted(answers, key=lambda r: r.due_s) if r.e2e_ms is not None])
    if drift is not None:
        found.append(f"not steady: the median E2E of the second half is {drift:.2f} times that of the first")
    if answers and all(r.completion_tokens is None for r in answers):
        found.append("the endpoint reports no token counts (usage): TPOT and tokens a second are not known")
    if stage["repeated_prompts"]:
        rate = (stage["counters"] or {}).get("prefix_hit_rate")
        told = "" if rate is None else f"; {rate:.0%} of the prompt tokens came from the prefix cache"
        found.append(f"{stage['repeated_prompts']} prompts were asked before in this test{told}")
    if stage["unfinished"]:
        found.append(f"{stage['unfinished']} requests were under way when it was stopped; they are not counted")
    return found


def drifted(times: Sequence[float]) -> float | None:
    """Median of the second half over that of the first, where their 99 % intervals do not meet and it is more than 5 %
    off; else None."""
    half = len(times) // 2
    if half < 8:
        return None
    first, second = (percentile(part, 0.5, level=DRIFT_LEVEL) for part in (times[:half], times[half:]))
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    apart = first.high < second.low or second.high < first.low
    ratio = second.value / first.value
    return ratio if apart and abs(ratio - 1.0) > ERROR_LIMIT else None


def knee(levels: Sequence[float], rates: Sequence[float]) -> float | None:
    """The load from which more of it brings little more throughput: the point furthest above the chord (Kneedle, Satopää
    et al. 2011, eq. 1-3, both axes scaled to 0..1). None under three points, or when no point is above by 0.1.
    """
    if len(levels) < 3:
        return None
    low, high = rates[0], max(rates)
    if high <= low or levels[-1] <= levels[0]:
        return levels[0]
    scaled = [
        ((rate - low) / (high - low)) - ((level - levels[0]) / (levels[-1] - levels[0]))
        for level, rate in zip(levels, rates, strict=True)
    ]
    best = max(range(len(scaled)), key=scaled.__getitem__)
    return levels[best] if scaled[best] >= 0.1 else None
