"""vLLM's counters before and after a stage: prefix-cache hits, preemptions, tokens. From `/metrics`, Prometheus text."""

import math
from dataclasses import dataclass
from typing import Any

from tunegate.serve import metrics
from tunegate.serve.plain_http import call

COUNTED = {
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
}


@dataclass(frozen=True)
class Counters:
    """Values of the counters, by our name; one that the server does not have is missing."""

    values: dict[str, float]

    def since(self, before: "Counters") -> dict[str, Any]:
        """What was counted in between, with `prefix_hit_rate` (tokens found in the cache over tokens looked up).

        A counter that went down (the server was started anew), or is no finite number, is None.
        """
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            grown = value - before.values.get(name, 0.0)
            found[name] = int(grown) if name in before.values and math.isfinite(grown) and grown >= 0 else None
        queries, hits = found.get("prefix_queries"), found.get("prefix_hits")
        found["prefix_hit_rate"] = hits / queries if queries and hits is not None else None
        return found


def read(base_url: str, key: str | None) -> Counters | None:
    """The counters of the server behind `base_url` (ending in /v1); None where it shows none (another engine, a proxy)."""
    try:
        reply = call(base_url.removesuffix("/v1") + "/metrics", key=key)
    except (OSError, ValueError):
        return None
    if reply.status != 200:
        return None
    values = summed(reply.body.decode("utf-8", "replace"))
    return Counters(values) if values else None


def summed(text: str) -> dict[str, float]:
    """The counters in Prometheus' text format, summed over their labels (engines, models)."""
    names = {metric: ours for ours, metric in COUNTED.items()}
    values: dict[str, float] = {}
    for sample in metrics.parse(text):
        if (name := names.get(sample.name)) is not None:
            values[name] = values.get(name, 0.0) + sample.value
    return values
