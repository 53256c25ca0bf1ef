"""vLLM's Prometheus counters, read as text: what `ft serve top` shows."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+\d+)?$")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line of the text format: name, labels, value."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> Iterator[Sample]:
    """The samples of Prometheus' text format (version 0.0.4); comments and lines that are none are passed over, and so is
    one whose value is no number."""
    for line in text.splitlines():
        found = SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found["value"])
        except ValueError:
            continue
        yield Sample(found["name"], dict(LABEL.findall(found["labels"] or "")), value)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The server at one moment; counts are since its start, summed over engines and models.

    kv_use: share of the KV cache in use, of the fullest engine. at: seconds on any clock that goes on.
    """

    at: float
    running: float
    waiting: float
    kv_use: float
    prompt_tokens: float
    generated_tokens: float
    cache_queries: float
    cache_hits: float
    preemptions: float
    finished: dict[str, float]
    ttft_s: float
    ttft_count: float
    per_token_s: float
    per_token_count: float


def snapshot(text: str, at: float) -> Snapshot:
    """Read a scrape; what it does not hold, or gives as no finite number, is 0."""
    sums: dict[str, float] = {}
    highest: dict[str, float] = {}
    finished: dict[str, float] = {}
    for sample in parse(text):
        if not math.isfinite(sample.value):
            continue
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        highest[sample.name] = max(highest.get(sample.name, 0.0), sample.value)
        if sample.name == "vllm:request_success_total" and sample.value:
            reason = sample.labels.get("finished_reason", "unknown")
            finished[reason] = finished.get(reason, 0.0) + sample.value

    def total(name: str) -> float:
        return sums.get(f"vllm:{name}", 0.0)

    return Snapshot(
        at=at, running=total("num_requests_running"), waiting=total("num_requests_waiting"),
        kv_use=highest.get("vllm:kv_cache_usage_perc", 0.0), prompt_tokens=total("prompt_tokens_total"),
        generated_tokens=total("generation_tokens_total"), cache_queries=total("prefix_cache_queries_total"),
        cache_hits=total("prefix_cache_hits_total"), preemptions=total("num_preemptions_total"), finished=finished,
        ttft_s=total("time_to_first_token_seconds_sum"), ttft_count=total("time_to_first_token_seconds_count"),
        per_token_s=total("request_time_per_output_token_seconds_sum"),
        per_token_count=total("request_time_per_output_token_seconds_count"),
    )  # fmt: skip


def between(before: Snapshot, after: Snapshot) -> dict[str, float | None]:
    """What went on between two scrapes: rates per second, shares, means; None where nothing happened.

    A counter that went back (the server was started again) counts from 0.
    """

    def grown(name: str) -> float:
        a, b = getattr(before, name), getattr(after, name)
        return float(b if b < a else b - a)

    def ratio(top: str, bottom: str, scale: float = 1.0) -> float | None:
        return scale * grown(top) / grown(bottom) if grown(bottom) else None

    seconds = max(1e-9, after.at - before.at)
    ended = sum(after.finished.values()) - sum(before.finished.values())
    return {
        "running": after.running, "waiting": after.waiting, "kv_use": after.kv_use,
        "generated_tokens_per_s": grown("generated_tokens") / seconds,
        "prompt_tokens_per_s": grown("prompt_tokens") / seconds,
        "requests_per_s": max(0.0, ended) / seconds,
        "cache_hit_rate": ratio("cache_hits", "cache_queries"),
        "ttft_ms": ratio("ttft_s", "ttft_count", 1000.0),
        "tpot_ms": ratio("per_token_s", "per_token_count", 1000.0),
        "preemptions": grown("preemptions"),
    }  # fmt: skip
