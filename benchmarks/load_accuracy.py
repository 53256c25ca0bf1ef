"""Load testers against a server of known timing: what each says, and what the server wrote down.

    python benchmarks/load_accuracy.py [--requests N] [--streams 64] [--short]

The stand-in (tests/serve/load_standin.py) sends a role chunk at once, the first content after 300 ms, three tokens a chunk
every 30 ms, events cut in two; in a second scene 30 % of the requests fail or die in mid-stream. `ft loadtest`, vLLM's
`bench serve` and guidellm (in an environment that uv makes) ask it the same number of times. Printed: p50 of TTFT, TPOT and
E2E with the error against the server's own record, what became of failed requests, and requests a CPU-second of client
(fixed costs, imports above all, taken off by a second, smaller run). `--short` runs ours alone.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STANDIN = ROOT / "tests" / "serve" / "load_standin.py"
GUIDELLM = "guidellm==0.8.1"
TIMING = ["--ttft-ms", "300", "--chunk-ms", "30", "--chunks", "10", "--tokens-per-chunk", "3", "--split"]
FAULTS = ["--ttft-ms", "50", "--chunk-ms", "5", "--chunks", "10", "--fail-every", "20", "--die-every", "7"]
Found = dict[str, float | None]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def call(command: list[str], **more: str) -> tuple[str, float]:
    """(standard output, CPU seconds of the command and its children)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.stdout and done.returncode:
        print(f"{command[:4]}: exit {done.returncode}: {done.stderr.strip()[-400:]}", file=sys.stderr)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(url: str, requests: int, streams: int, folder: Path) -> tuple[Found, float]:
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"question {n}\n" for n in range(requests)))
    stage, cpu = run_ours(url, prompts, requests, streams, folder)
    found: Found = {name: stage[name]["p50"]["value"] for name in ("ttft_ms", "tpot_ms", "e2e_ms")}
    failed = sum(stage["errors"].values())
    return found | {"failed": failed, "valid": float(not stage["invalid"])}, cpu


def run_ours(
    url: str, prompts: Path, requests: int, streams: int, folder: Path, *more: str
) -> tuple[dict[str, Any], float]:
    """`ft loadtest` with one stage: (the stage of its report, CPU seconds)."""
    command = [str(Path(sys.executable).with_name("ft")), "loadtest", url, "--prompts", str(prompts), "--concurrency", str(streams),
               "--requests", str(requests), "--warm-up", "0", "--out", str(folder / "load"), "--force", "--json", *more]  # fmt: skip
    text, cpu = call(command)
    (stage,) = json.loads(text)["stages"]
    return stage, cpu


def vllm_bench(url: str, requests: int, streams: int, folder: Path) -> tuple[Found, float]:
    dataset = ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "30"]
    said, cpu = run_vllm_bench(url, "standin", tokenizer(), requests, streams, folder, *dataset)
    if said is None:
        return {}, cpu
    names = {"ttft_ms": "median_ttft_ms", "tpot_ms": "median_tpot_ms", "e2e_ms": "median_e2el_ms"}
    return {ours_: said.get(theirs) for ours_, theirs in names.items()} | {"failed": requests - said["completed"]}, cpu


def tokenizer() -> str:
    """The embedded model's folder: what the other tools count tokens with."""
    from tunegate.core.model_source import resolve

    return str(resolve("builtin:smollm2-135m").location)


def run_vllm_bench(
    url: str, model: str, tokens: str, requests: int, streams: int, folder: Path, *more: str
) -> tuple[dict[str, Any] | None, float]:
    """vLLM's own client: (its result, None when it did not run; CPU seconds). A metadata folder names the package as its
    script expects."""
    named = folder / "named" / "vllm-0.32.0+cpu.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat", "--endpoint",
               "/v1/chat/completions", "--base-url", url.removesuffix("/v1"), "--model", model, "--tokenizer", tokens,
               "--num-prompts", str(requests), "--max-concurrency", str(streams), "--percentile-metrics", "ttft,tpot,itl,e2el",
               "--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json", *more]  # fmt: skip
    (folder / "vllm.json").unlink(missing_ok=True)
    _, cpu = call(command, PYTHONPATH=str(named.parent), VLLM_TARGET_DEVICE="cpu")
    there = (folder / "vllm.json").is_file()
    return (json.loads((folder / "vllm.json").read_text()) if there else None), cpu


def guidellm(url: str, requests: int, streams: int, folder: Path) -> tuple[Found, float]:
    out = folder / "guidellm.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable, "--with", GUIDELLM,
               "guidellm", "run", "--backend", f"kind=openai_http,target={url.removesuffix('/v1')},model=standin",
               "--profile", f"kind=concurrent,streams={streams}", "--constraint", f"kind=max_requests,count={requests}",
               "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=30", "--tokenizer", f"kind=hf_auto,model={tokenizer()}",
               "--output", f"kind=json,path={out}"]  # fmt: skip
    _, cpu = call(command)
    if not out.is_file():
        return {}, cpu
    return _guidellm_figures(json.loads(out.read_text())), cpu


def _guidellm_figures(document: dict[str, Any]) -> Found:
    metrics = document["benchmarks"][0]["metrics"]
    names = {"ttft_ms": "time_to_first_token_ms", "tpot_ms": "time_per_output_token_ms", "e2e_ms": "request_latency"}
    found: Found = {}
    for name, theirs in names.items():
        value = metrics.get(theirs, {}).get("successful", {}).get("median")
        found[name] = None if value is None else value * (1000 if theirs == "request_latency" else 1)
    totals = metrics.get("request_totals", {})
    return found | {"failed": totals.get("errored")}


def against(
    tool: Callable[..., tuple[Found, float]], timing: list[str], requests: int, streams: int
) -> tuple[Found, Found, float]:
    """(what the tool says, what the server wrote down, CPU seconds of the tool)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = folder / "log.jsonl"
        words = [sys.executable, str(STANDIN), "--log", str(log), *timing]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            try:
                said, cpu = tool(url, requests, streams, folder)
            finally:
                server.kill()
        entries = [json.loads(line) for line in log.read_text().splitlines()]
    right = [e for e in entries if e["kind"] == "ok"]
    if not right:  # the tool did not run; what it said is on standard error
        return {}, {"ttft_ms": None, "tpot_ms": None, "e2e_ms": None, "failed": None}, cpu
    ttft = [1000 * (e["first"] - e["received"]) for e in right]
    e2e = [1000 * (e["ended"] - e["received"]) for e in right]
    truth: Found = {
        "ttft_ms": statistics.median(ttft),
        "e2e_ms": statistics.median(e2e),
        "failed": len(entries) - len(right),
    }
    tokens = int(timing[timing.index("--chunks") + 1]) * 3
    truth["tpot_ms"] = statistics.median((b - a) / (tokens - 1) for a, b in zip(ttft, e2e, strict=True))
    return said, truth, cpu


def cell(said: Found, truth: Found, name: str) -> str:
    value, right = said.get(name), truth[name]
    if value is None or not right:
        return "-"
    return f"{value:.1f} ({(value - right) / right:+.1%})"


def main() -> None:
    given = options()
    tools: dict[str, Callable[..., tuple[Found, float]]] = {"ft loadtest": ours}
    if not given.short:
        tools |= {"vllm bench serve": vllm_bench, "guidellm 0.8.1": guidellm}
    requests = 128 if given.short else given.requests
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {date.today()}; {given.streams} streams, {requests} requests\n"
    )
    print(
        "| tool | TTFT p50 ms | TPOT p50 ms | E2E p50 ms | requests per client CPU-s | failed, of so many sent | says it is valid |"
    )
    print("|---|---|---|---|---|---|---|")
    ttft: dict[str, float] = {}
    for name, tool in tools.items():
        said, truth, cpu = against(tool, TIMING, requests, given.streams)
        _, _, fixed = against(tool, TIMING, given.streams, given.streams)
        rate = (requests - given.streams) / (cpu - fixed) if cpu > fixed else float("nan")
        broken, faults, _ = against(tool, FAULTS, min(200, requests), 8)
        lost = f"{broken.get('failed')} of {faults['failed']}"
        valid = {None: "-", 0.0: "no", 1.0: "yes"}[said.get("valid")]
        figures = [cell(said, truth, figure) for figure in ("ttft_ms", "tpot_ms", "e2e_ms")]
        print(f"| {' | '.join([name, *figures, f'{rate:,.0f}', lost, valid])} |", flush=True)
        ttft[name] = (said.get("ttft_ms") or math.nan) / (truth["ttft_ms"] or math.nan) - 1
    beside = f"{ttft['vllm bench serve']:+.1%}: vLLM's bench (it counts the role chunk)" if not given.short else "-"
    print(f"\nheadline | load test of a server of known timing: error of TTFT | {ttft['ft loadtest']:+.1%} | {beside}")


if __name__ == "__main__":
    main()
