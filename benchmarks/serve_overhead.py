"""Does our client cost throughput? `ft loadtest` and `ft eval` against vLLM's own `bench serve`, on one real server.

    python benchmarks/serve_overhead.py [--release TARGET] [--requests N] [--streams 16] [--tokens 32] [--rounds 5] [--short]

One server (prefix caching off, so that no tool gains from the one before it); each round every tool asks the same prompts, greedily and
so with the same answers, with as many requests at once, in an order that turns from round to round. Printed: requests a second
of each round as the tool itself says, and the ratio to vLLM's bench in the same round. `--short`: one round of ours alone.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from load_accuracy import call, run_ours, run_vllm_bench, tokenizer

from tunegate.serve.cli import open_target
from tunegate.serve.vllm_flags import ServeOptions
from tunegate.serve.vllm_process import Endpoint, serving

FT = str(Path(sys.executable).with_name("ft"))
PLACES = (
    "the river",
    "the old town",
    "the harbour",
    "the library",
    "the market",
    "the bridge",
    "the station",
    "the hill",
)
Tool = Callable[[Endpoint, argparse.Namespace, Path], float]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="builtin:smollm2-135m")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def prompts(count: int) -> list[str]:
    return [
        f"Letter {n}: write at length about {PLACES[n % 8]} of city number {n}, its history and its people."
        for n in range(count)
    ]


def by_loadtest(endpoint: Endpoint, given: argparse.Namespace, folder: Path) -> float:
    path = folder / "prompts.txt"
    path.write_text("".join(f"{text}\n" for text in prompts(given.requests)))
    stage, _ = run_ours(
        endpoint.base_url, path, given.requests, given.streams, folder, "--max-tokens", str(given.tokens)
    )
    assert not stage["errors"], stage["errors"]
    return float(stage["throughput"]["span_requests_per_s"])


def by_eval(endpoint: Endpoint, given: argparse.Namespace, folder: Path) -> float:
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]}
        for n, text in enumerate(prompts(given.requests))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "speed", "data": "rows.jsonl", "validators": [{"name": "same", "kind": "exact_match"}], "primary": "same",
            "generation": {"max_tokens": given.tokens, "temperature": 0}}  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(task))
    out = folder / "eval"
    call([FT, "eval", endpoint.base_url, "--task", str(folder / "task.yaml"), "--out", str(out), "--force",
          "--concurrency", str(given.streams), "--json"])  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert not report["outcomes"].get("infra_error"), report["outcomes"]
    return float(report["timing"]["requests_per_s"])


def by_vllm(endpoint: Endpoint, given: argparse.Namespace, folder: Path) -> float:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts(given.requests)))
    said, _ = run_vllm_bench(
        endpoint.base_url, endpoint.model, tokenizer(), given.requests, given.streams, folder, "--dataset-name", "custom",
        "--dataset-path", str(path), "--skip-chat-template", "--custom-output-len", str(given.tokens), "--temperature", "0",
    )  # fmt: skip
    assert said is not None, "vLLM's bench did not run"
    assert said["completed"] == given.requests, said["completed"]
    return float(said["request_throughput"])


def main() -> None:
    given = options()
    tools: dict[str, Tool] = {"ft loadtest": by_loadtest, "ft eval": by_eval, "vllm bench serve": by_vllm}
    if given.short:
        given.rounds, given.requests, given.streams, given.tokens = 1, 32, 8, 16
        tools.pop("vllm bench serve")
    rates: dict[str, list[float]] = {name: [] for name in tools}
    serve = ServeOptions(max_num_seqs=max(32, given.streams), extra=("--no-enable-prefix-caching",))
    with tempfile.TemporaryDirectory() as place, serving(open_target(given.release), options=serve) as endpoint:
        by_loadtest(endpoint, given, Path(place))  # warm-up: kernels, caches
        for turn in range(given.rounds):
            order = list(tools)[turn % len(tools) :] + list(tools)[: turn % len(tools)]
            for name in order:
                rates[name].append(tools[name](endpoint, given, Path(place)))
                print(f"round {turn + 1}, {name}: {rates[name][-1]:.2f} requests/s", file=sys.stderr, flush=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {date.today()}; {endpoint.model}, "
          f"{given.requests} requests, {given.streams} at once, at most {given.tokens} tokens, {given.rounds} rounds")  # fmt: skip
    print("\n| client | requests/s, median | each round | ratio to vllm bench, median | lowest | highest |")
    print("|---|---|---|---|---|---|")
    said = []
    for name, found in rates.items():
        each = " ".join(f"{rate:.2f}" for rate in found)
        ratios = [a / b for a, b in zip(found, rates.get("vllm bench serve", []), strict=False)] or [float("nan")]
        print(
            f"| {name} | {statistics.median(found):.2f} | {each} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
        )
        said.append(f"{name} {statistics.median(found):.2f}")
    print(
        f"\nheadline | requests/s that a client gets out of one full server | {said[0]}, {said[1]} | {', '.join(said[2:]) or '-'}"
    )


if __name__ == "__main__":
    main()
