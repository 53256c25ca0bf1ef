"""A made-up function-calling report for the tests of the page: its scores describe no model.

120 items or as many as asked; the baseline answers in prose, the candidate mostly with the right JSON.
"""

import json
import random
from collections import Counter, defaultdict
from typing import Any

from tunegate.core.statistics import quantile

SYSTEM = (
    'You call functions. Answer with one JSON object {"name": ..., "arguments": {...}} and nothing else.\nFunctions:\n'
)
CITIES = ["Lisbon", "Osaka", "Nairobi", "Montréal", "São Paulo", "Kraków", "Wellington", "Hanoi"]
CURRENCIES = ["EUR", "JPY", "KES", "CAD", "BRL", "PLN", "NZD", "VND"]
Rows = list[dict[str, Any]]


def _call(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    """(question, slice, the right call)."""
    city, other = rng.sample(CITIES, 2)
    n, day = rng.randint(2, 900), f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    source, target = rng.sample(CURRENCIES, 2)
    return rng.choice(
        [
            (
                f"What will the weather be like in {city} on {day}, in Celsius?",
                "weather",
                {"name": "weather.forecast", "arguments": {"city": city, "date": day, "unit": "celsius"}},
            ),
            (
                f"Convert {n}.50 {source} to {target} at today's rate.",
                "finance",
                {"name": "currency.convert", "arguments": {"amount": n + 0.5, "from": source, "to": target}},
            ),
            (
                f"Book a table for {n % 8 + 2} in {city} on {day}, vegetarian, near the river if there is one.",
                "booking",
                {
                    "name": "restaurant.book",
                    "arguments": {"city": city, "date": day, "guests": n % 8 + 2, "diet": ["vegetarian"]},
                },
            ),
            (
                f"Find me trains from {city} to {other} leaving {day}, first class, no more than {n % 3} changes.",
                "travel",
                {
                    "name": "train.search",
                    "arguments": {
                        "origin": city,
                        "destination": other,
                        "date": day,
                        "class": "first",
                        "max_changes": n % 3,
                    },
                },
            ),
            (
                f"What is the monthly payment on a loan of {n}000 over {n % 25 + 5} years at {n % 6 + 1}.25 percent?",
                "finance",
                {
                    "name": "loan.monthly_payment",
                    "arguments": {"principal": n * 1000, "years": n % 25 + 5, "rate_percent": n % 6 + 1.25},
                },
            ),
            (
                f"Area of a triangle with base {n} and height {n % 40 + 3}?",
                "math",
                {"name": "geometry.triangle_area", "arguments": {"base": n, "height": n % 40 + 3}},
            ),
            (
                f"Remind me to call {rng.choice(['Amara', 'Jürgen', 'Mei'])} in {n % 50 + 5} minutes.",
                "booking",
                {"name": "reminder.set", "arguments": {"minutes": n % 50 + 5, "text": "call"}},
            ),
        ]
    )


def _prose(question: str, call: dict[str, Any], rng: random.Random) -> str:
    name = call["name"]
    return rng.choice(
        [
            f"Sure! To answer this you can use the `{name}` function. You would pass it the values from your question and it will return the result you need.",
            f"To solve this problem, we need to use the {name} function. Here is a step-by-step guide:\n\n1. Import the module.\n2. Call the function with the right arguments.\n3. Print the result.",
            f"I'm sorry, but I can't look that up. However, here is how you might ask: \"{question}\"",
            f"```python\nresult = {name}()\nprint(result)\n```\nThis will print the answer.",
        ]
    )


def _wrong(call: dict[str, Any], rng: random.Random) -> tuple[str, str, str, str]:
    """(text, outcome, cause, reason) of a wrong answer."""
    arguments = dict(call["arguments"])
    key = rng.choice(sorted(arguments))
    kind = rng.choices(["value", "missing", "name", "unparsable"], [6, 3, 2, 1])[0]
    right = json.dumps(arguments[key])
    if kind == "value":
        arguments[key] = (
            arguments[key] * 10 + 1
            if isinstance(arguments[key], int | float)
            else "unknown"
            if isinstance(arguments[key], str)
            else []
        )
        reason = f"/arguments/{key}: expected {right}, got {json.dumps(arguments[key])}"
        return json.dumps({**call, "arguments": arguments}, ensure_ascii=False), "fail", "wrong_value", reason
    if kind == "missing":
        del arguments[key]
        return (
            json.dumps({**call, "arguments": arguments}, ensure_ascii=False),
            "fail",
            "missing_argument",
            f"/arguments/{key}: expected {right}, missing",
        )
    if kind == "name":
        name = call["name"].split(".")[-1]
        return (
            json.dumps({**call, "name": name}, ensure_ascii=False),
            "fail",
            "wrong_function",
            f'/name: expected "{call["name"]}", got "{name}"',
        )
    return (
        json.dumps(call, ensure_ascii=False)[:-1],
        "unparsable",
        "invalid_json",
        "not JSON: expected ',' or '}' at the end",
    )


def _row(item: dict[str, Any], text: str, outcome: str, reason: str, rng: random.Random, slow: float) -> dict[str, Any]:
    right, valid = outcome == "pass", outcome in ("pass", "fail") and text.startswith("{")
    tokens = max(1, len(text) // 4)
    scores = {
        "json_valid": {"pass": valid, "score": float(valid), "reason": "" if valid else "not one JSON value"},
        "schema": {
            "pass": valid and "missing" not in reason,
            "score": float(valid and "missing" not in reason),
            "reason": "",
        },
        "exact": {"pass": right, "score": float(right), "reason": reason},
    }
    return {
        **item, "output": text, "outcome": outcome, "scores": scores, "reason": reason, "finish_reason": "stop",
        "ttft_ms": round(rng.lognormvariate(4.1, 0.3), 1), "latency_ms": round(tokens * slow * rng.lognormvariate(0, 0.25) + 60, 1),
        "prompt_tokens": 180 + len(item["messages"][1]["content"]) // 4, "completion_tokens": tokens,
    }  # fmt: skip


def make_rows(n: int = 120, seed: int = 119) -> tuple[Rows, Rows]:
    """(candidate's rows, baseline's rows) of n items."""
    rng = random.Random(seed)
    mine, theirs = [], []
    for index in range(n):
        question, topic, call = _call(rng)
        messages = [
            {
                "role": "system",
                "content": SYSTEM + json.dumps({"name": call["name"], "parameters": sorted(call["arguments"])}),
            },
            {"role": "user", "content": question},
        ]
        item = {
            "id": f"call-{index:04}",
            "messages": messages,
            "expected": json.dumps(call, ensure_ascii=False),
            "tags": {"topic": topic},
        }
        right = rng.random() < {"weather": 0.96, "finance": 0.8, "booking": 0.9, "travel": 0.72, "math": 0.95}[topic]
        text, outcome, cause, reason = (
            (json.dumps(call, ensure_ascii=False), "pass", "", "") if right else _wrong(call, rng)
        )
        mine.append({**_row(item, text, outcome, reason, rng, 9.0), "cause": cause})
        prose = rng.random() < 0.94
        base = _prose(question, call, rng) if prose else item["expected"]
        theirs.append(
            _row(item, base, "unparsable" if prose else "pass", "not one JSON value" if prose else "", rng, 9.5)
        )
    return mine, theirs


def _wilson(k: int, n: int) -> dict[str, float]:
    z2, p = 1.959964**2, k / n
    middle, half = (p + z2 / 2 / n) / (1 + z2 / n), 1.959964 / (1 + z2 / n) * (p * (1 - p) / n + z2 / 4 / n / n) ** 0.5
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def _share(rows: Rows, metric: str) -> dict[str, float]:
    return _wilson(sum(row["scores"][metric]["pass"] for row in rows), len(rows))


def _paired(mine: Rows, theirs: Rows, metric: str) -> dict[str, Any]:
    pairs = Counter(
        (a["scores"][metric]["pass"], b["scores"][metric]["pass"]) for a, b in zip(mine, theirs, strict=True)
    )
    n, fixed, broken = len(mine), pairs[True, False], pairs[False, True]
    d = (fixed - broken) / n
    half = 1.96 * ((fixed + broken) / n**2) ** 0.5
    return {"difference": d, "low": max(-1, d - half), "high": min(1, d + half), "fixed": fixed, "broken": broken, "both_pass": pairs[True, True],
            "both_fail": pairs[False, False], "mcnemar_p": 1e-9, "non_inferior_p": 1e-9, "test": "tango, clustered", "design_effect": 1.25}  # fmt: skip


def _quantiles(rows: Rows, key: str) -> dict[str, float]:
    ordered = sorted(row[key] for row in rows)
    return {f"p{p}": quantile(ordered, p / 100) for p in (50, 95, 99)}


def _operations(rows: Rows) -> dict[str, dict[str, Any]]:
    times = _quantiles(rows, "latency_ms")
    return {
        "latency_p95_ms": {"value": times["p95"], "low": 0.9 * times["p95"], "high": None, "n": len(rows)},
        "truncated_rate": {"value": 0.0, "low": 0.0, "high": 0.03, "n": len(rows)},
        "infra_error_rate": {"value": 0.0, "low": 0.0, "high": 0.0, "n": len(rows)},
        "cost_per_correct_usd": {"value": 0.000213, "low": 0.0002, "high": 0.00023, "n": len(rows)},
    }


def make_report(mine: Rows, theirs: Rows | None, decision: str | None = "PASS") -> dict[str, Any]:
    """A `report.json` that agrees with the rows."""
    metrics = {name: _share(mine, name) for name in ("json_valid", "schema", "exact")}
    topics: dict[str, Rows] = defaultdict(list)
    for row in mine:
        topics[row["tags"]["topic"]].append(row)
    report: dict[str, Any] = {
        "schema_version": 1, "name": "assistant-tools-v2", "created": "2026-11-24T06:00:00Z", "n": len(mine), "scorer_version": "1",
        "target": {"spec": "build/release", "kind": "Release", "digest": "4be1" * 16, "model": "assistant-tools-v2"},
        "task": {"name": "function-calls", "digest": "a90c" * 16, "primary": "exact", "slices": ["topic"],
                 "validators": [{"name": "json_valid", "kind": "json"}, {"name": "schema", "kind": "json_schema"}, {"name": "exact", "kind": "tool_call"}]},
        "data": {"path": "data/eval.jsonl", "sha256": "77d0" * 16, "n": len(mine)}, "generation": {"max_tokens": 160, "temperature": 0, "seed": 0},
        "prompt_digest": "0be3" * 16, "prompt_ids_digest": "9d17" * 16, "template_digest": "c01f" * 16, "outcomes": dict(Counter(row["outcome"] for row in mine)), "metrics": metrics,
        "slices": {"topic": {topic: {"n": len(rows), "metrics": {"exact": _share(rows, "exact")}} for topic, rows in topics.items()}},
        "latency": {"latency_ms": _quantiles(mine, "latency_ms"), "ttft_ms": _quantiles(mine, "ttft_ms")},
        "tokens": {"prompt": sum(row["prompt_tokens"] for row in mine), "completion": sum(row["completion_tokens"] for row in mine)},
        "timing": {"wall_s": 31.4, "requests_per_s": len(mine) / 31.4}, "size_bytes": 118_400_000, "operations": _operations(mine),
        "leakage": {"metrics": {"leakage": 2, "leakage_exact": 1, "leakage_ngram": 3, "leakage_near": 0}, "items": [], "train": ["t.jsonl"], "train_rows": 758},
        "server": {"engine": "vllm", "flags": ["--model", "build/release", "--max-num-seqs", "32"], "start_s": 35.6}, "comparison": None, "decision": None,
        "lineage": [
            {"depth": 1, "role": "target", "kind": "Release", "digest": "4be1" * 16, "created": "2026-11-24T05:50:00Z", "path": "build/release"},
            {"depth": 2, "role": "run", "kind": "Run", "digest": "e20a" * 16, "created": "2026-11-24T05:40:00Z", "path": "build/run"},
            {"depth": 3, "role": "data", "kind": "Dataset", "digest": "5511" * 16, "created": "2026-11-24T05:10:00Z", "path": "build/dataset"},
            {"depth": 1, "role": "data", "kind": "file", "digest": "77d0" * 16, "created": None, "path": "data/eval.jsonl"},
        ],
    }  # fmt: skip
    if theirs is not None:
        report["comparison"] = {
            "baseline": {"spec": "builtin:smollm2-135m", "digest": "8f00" * 16, "name": "baseline", "operations": _operations(theirs)}, "metrics": {name: _paired(mine, theirs, name) for name in metrics},
            "flips": [{"id": a["id"], "direction": "fixed" if a["outcome"] == "pass" else "broken", "cause": a["cause"] or "prose_not_json", "reason": a["reason"] or b["reason"]}
                      for a, b in zip(mine, theirs, strict=True) if (a["outcome"] == "pass") != (b["outcome"] == "pass")],
            "slices": [{"key": "topic", "value": topic, "n": len(rows), **_paired(rows, [theirs[mine.index(row)] for row in rows], "exact"), "p_holm": 2e-6} for topic, rows in topics.items()],
            "allowed_differences": [], "unknown": [],
        }  # fmt: skip
    if decision:
        change = (
            report["comparison"]["metrics"]["exact"]
            if theirs is not None
            else {"difference": 0.1, "low": 0.0, "high": 0.2}
        )
        report["decision"] = {"decision": decision, "conditions": [
            {"metric": "exact", "rule": "non_inferior", "bound": -0.02, "decision": "PASS", "value": change["difference"], "low": change["low"], "high": change["high"], "need_n": None, "reason": "the whole interval lies above −2 pts"},
            {"metric": "json_valid", "rule": "at_least", "bound": 0.9, "decision": decision, **{k: metrics["json_valid"][k] for k in ("value", "low", "high")},
             "need_n": 640 if decision == "INCONCLUSIVE" else None, "reason": "the lower end of the interval is what is tested"},
            {"metric": "latency_p95_ms", "rule": "at_most", "bound": 800, "decision": "PASS", "value": _quantiles(mine, "latency_ms")["p95"], "low": 431.0, "high": 498.5, "need_n": None, "reason": "the whole interval lies below 800 ms"},
        ]}  # fmt: skip
    return report
