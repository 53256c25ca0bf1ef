"""What was measured under load, read back from a LoadReport: for the advisor's calibration and the gate's latency."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import LoadReport
from tunegate.core.errors import UserError, nearest
from tunegate.core.rows import read_jsonl
from tunegate.core.statistics import PERCENTILES, Interval, percentile_with_late, wilson

FIGURES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, kw_only=True)
class LoadRecord:
    """One closed-loop stage. ttft_ms, tpot_ms: medians over `requests` answers. prompt_tokens, completion_tokens: medians
    as the endpoint counted them. concurrency: requests under way at a time."""

    concurrency: int
    requests: int
    prompt_tokens: float
    completion_tokens: float
    ttft_ms: float
    tpot_ms: float

    def shape(self) -> tuple[float, float, float]:
        """(prompt tokens, completion tokens, concurrency)."""
        return self.prompt_tokens, self.completion_tokens, float(self.concurrency)


def load_records(report: LoadReport) -> list[LoadRecord]:
    """The stages of a load test that say something about the server, lightest first.

    Left out: open-loop stages (their concurrency is not set), and those in which the client was the bottleneck. Raises
    UserError when none is left.
    """
    found = []
    for stage in report.report()["stages"]:
        known = all(stage[key] for key in ("prompt_tokens", "completion_tokens", "ttft_ms", "tpot_ms"))
        if stage["kind"] == "closed" and not stage["invalid"] and known:
            found.append(
                LoadRecord(
                    concurrency=stage["concurrency"],
                    requests=stage["answers"],
                    prompt_tokens=stage["prompt_tokens"],
                    completion_tokens=stage["completion_tokens"],
                    ttft_ms=stage["ttft_ms"]["p50"]["value"],
                    tpot_ms=stage["tpot_ms"]["p50"]["value"],
                )
            )
    if not found:
        raise UserError(
            "no stage of this load test can be used: a valid closed-loop one with token counts is needed",
            where=str(report.path),
            hint="ft loadtest TARGET --concurrency 1,4",
        )
    return sorted(found, key=lambda r: r.concurrency)


def load_metrics() -> list[str]:
    """The names that `load_interval` knows: load_ttft_p95_ms, load_tpot_p50_ms, ..., load_error_rate."""
    times = [f"load_{figure}_{name}_ms" for figure in FIGURES for name in PERCENTILES]
    return [*times, "load_error_rate"]


def load_interval(report: LoadReport, metric: str, *, level: float) -> Interval | None:
    """One figure of the heaviest stage (the error rate: of the worst one) with its interval of `level`; None when the test was
    not valid or was interrupted, and of a test that failed for all but its error rate: the answers of a server that gives
    errors are not those of one that holds.

    Raises UserError for a name that is none.
    """
    if metric not in load_metrics():
        raise UserError(f"a load test has no {metric!r}", where=str(report.path), hint=nearest(metric, load_metrics()))
    document, errors = report.report(), metric == "load_error_rate"
    stages = document["stages"]
    usable = ("VALID", "FAILED") if errors else ("VALID",)
    if document["verdict"] not in usable or document.get("interrupted") or not stages:
        return None
    index = _worst(stages) if errors else _heaviest(stages)
    rows = _rows(report.path, index)
    if errors:
        rows = [row for row in rows if row["error_kind"] != "client"]  # this machine's own limits
        return wilson(sum(row["error_kind"] is not None for row in rows), len(rows), level=level) if rows else None
    _, figure, name, _ = metric.split("_")
    values = [row[f"{figure}_ms"] for row in rows if row[f"{figure}_ms"] is not None]
    waited = _waited(rows) if figure == "e2e" else []
    return percentile_with_late(values, waited, PERCENTILES[name], level=level) if values or waited else None


def late_share(report: LoadReport, metric: str) -> float:
    """Share of the values behind `load_interval` that are of requests which timed out, 0 to 1; 0 for all but E2E."""
    rows = _rows(report.path, _heaviest(report.report()["stages"])) if "_e2e_" in metric else []
    waited = len(_waited(rows))
    return waited / (waited + sum(row["e2e_ms"] is not None for row in rows)) if waited else 0.0


def _waited(rows: list[dict[str, Any]]) -> list[float]:
    """What the requests that timed out were waited for, from when they were due, ms."""
    return [1000 * (row["ended_s"] - row["due_s"]) for row in rows if row["error_kind"] == "timeout"]


def _worst(stages: list[dict[str, Any]]) -> int:
    """The stage with the largest share of errors."""
    return max(range(len(stages)), key=lambda i: float(stages[i]["error_rate"]))


def _heaviest(stages: list[dict[str, Any]]) -> int:
    """The stage with most requests under way, or with the highest rate of arrivals; where a test has both kinds, by the requests a
    second that the first got through."""
    closed = [i for i, stage in enumerate(stages) if stage["kind"] == "closed"]
    opened = [i for i, stage in enumerate(stages) if stage["kind"] != "closed"]
    busiest = max(closed, key=lambda i: float(stages[i]["concurrency"]), default=-1)
    fastest = max(opened, key=lambda i: float(stages[i]["rate"]), default=-1)
    if min(busiest, fastest) < 0:
        return max(busiest, fastest)
    reached = (stages[busiest]["throughput"] or {}).get("requests_per_s", 0.0)
    return fastest if stages[fastest]["rate"] >= reached else busiest


def _rows(folder: Path, stage: int) -> list[dict[str, Any]]:
    """The measured requests of a stage."""
    rows = (value for _, value in read_jsonl(folder / "requests.jsonl"))
    return [row for row in rows if row["stage"] == stage and not row["warm_up"]]
