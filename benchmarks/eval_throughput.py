"""Evaluators as clients: requests a second and CPU, against a stand-in that answers at once and against vLLM itself.

    python benchmarks/eval_throughput.py [--part standin|scoring|vllm] [--rounds 3] [--requests 96] [--short]

standin: `ft eval`, lm-eval (local-chat-completions), Inspect (openai-api) and `vllm bench serve` ask a server that answers
at once (tests/evalkit/fast_standin.py; 8 tokens an answer), 1, 16 and 256 requests at once. Requests a second per core of
client: requests over CPU seconds of the whole command with its children (getrusage), fixed costs (imports above all) taken
off by a smaller run. scoring: time and peak memory of judging 100,000 recorded outputs, no model. vllm: the same items and
settings to one vLLM server with builtin:smollm2-135m; requests a second from the first request's arrival to the last one's
end as the server saw them, the median of the rounds in turn, and the client's CPU. lm-eval and Inspect run in environments
of their own (peers.py), pinned. `--short`: ours alone, fewer requests, no engine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from peers import keep_bytecode, python_of

from tunegate.core.machine import cpu_name
from tunegate.core.model_source import resolve
from tunegate.serve.vllm_flags import ServeOptions
from tunegate.serve.vllm_process import serving

ROOT = Path(__file__).parents[1]
STANDIN = ROOT / "tests" / "evalkit" / "fast_standin.py"
MODEL = "builtin:smollm2-135m"
AT_ONCE = {1: (200, 1600), 16: (400, 3000), 256: (512, 4096)}  # requests at once -> of the smaller and the larger run
SYSTEM = 'Answer with one JSON object {"name": ..., "arguments": {...}} and nothing else.'


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["standin", "scoring", "vllm"], action="append")
    parser.add_argument("--outputs", type=int, default=100_000, help="recorded outputs that are scored")
    parser.add_argument("--rounds", type=int, default=3, help="of the vllm part")
    parser.add_argument("--requests", type=int, default=96, help="of each tool and round of the vllm part")
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


@dataclass(frozen=True)
class Job:
    """What one tool is to do. folder: for its files; the items are items.jsonl there, in every tool's form."""

    url: str
    model: str
    requests: int
    at_once: int
    max_tokens: int
    folder: Path


def write_items(folder: Path, n: int) -> None:
    """The same questions for every tool: a task of ours, of lm-eval's and of Inspect's, and vLLM's prompts."""
    from tunegate.core.rows import read_rows

    data = ROOT / "build" / "demo" / "data" / "train.jsonl"
    if data.is_file():
        rows = list(read_rows(data))
        texts = [f"{row.prompt[0]['content']}\n\n{row.prompt[-1]['content']}" for row in rows]
    else:
        texts = [f"{SYSTEM}\n\nWhat is the area of a circle with a radius of {i}?" for i in range(800)]
    asked = [(f"i{i}", texts[i % len(texts)] if i < len(texts) else f"{texts[i % len(texts)]} ({i})") for i in range(n)]
    ours = [
        {"id": i, "messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "word"}]}
        for i, t in asked
    ]
    forms = {
        "ours.jsonl": ours,
        "lm.jsonl": [{"question": text, "answer": "word"} for _, text in asked],
        "inspect.jsonl": [{"id": i, "input": text, "target": "word"} for i, text in asked],
        "vllm.jsonl": [{"prompt": text} for _, text in asked],
    }
    for name, items in forms.items():
        (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def ft_eval(job: Job) -> tuple[list[str], dict[str, str]]:
    (job.folder / "task.yaml").write_text(
        "name: bench\ndata: ours.jsonl\nvalidators: [{name: exact, kind: exact_match}]\n"
        f"generation: {{max_tokens: {job.max_tokens}, temperature: 0}}\n"
    )
    words = ["eval", job.url, "--task", str(job.folder / "task.yaml"), "--model", job.model, "--out", str(job.folder / "report"),
             "--concurrency", str(job.at_once), "--limit", str(job.requests), "--force", "--json"]  # fmt: skip
    return [str(Path(sys.executable).with_name("ft")), *words], {}


def lm_eval(job: Job) -> tuple[list[str], dict[str, str]]:
    (job.folder / "lm_task.yaml").write_text(
        f"task: bench\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {job.folder / 'lm.jsonl'}}}}}\n"
        'test_split: test\noutput_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        f"generation_kwargs: {{until: [], max_gen_toks: {job.max_tokens}, temperature: 0, do_sample: false}}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    arguments = f"model={job.model},base_url={job.url}/chat/completions,num_concurrent={job.at_once},tokenizer_backend=None,tokenized_requests=False"
    words = ["run", "--model", "local-chat-completions", "--model_args", arguments, "--include_path", str(job.folder), "--tasks", "bench",
             "--apply_chat_template", "--limit", str(job.requests), "--output_path", str(job.folder / "lm"), "--log_samples"]  # fmt: skip
    python = python_of("lm-eval")
    extra = {
        "HF_DATASETS_CACHE": str(job.folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "OPENAI_API_KEY": "none",
    }
    return [str(python), "-m", "lm_eval", *words], extra


def inspect_ai(job: Job) -> tuple[list[str], dict[str, str]]:
    (job.folder / "inspect_task.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import json_dataset\nfrom inspect_ai.scorer import exact\n"
        "from inspect_ai.solver import generate\n\n@task\ndef bench():\n"
        f"    return Task(dataset=json_dataset({str(job.folder / 'inspect.jsonl')!r}), solver=generate(), scorer=exact())\n"
    )
    words = ["eval", "inspect_task.py", "--model", f"openai-api/bench/{job.model}", "--max-connections", str(job.at_once),
             "--max-samples", str(job.at_once), "--limit", str(job.requests), "--max-tokens", str(job.max_tokens), "--temperature", "0",
             "--log-dir", str(job.folder / "logs"), "--display", "none"]  # fmt: skip
    return [str(python_of("inspect").with_name("inspect")), *words], {
        "BENCH_API_KEY": "none",
        "BENCH_BASE_URL": job.url,
    }


def vllm_bench(job: Job) -> tuple[list[str], dict[str, str]]:
    """vLLM's own client; a metadata folder names the package as its script expects."""
    named = job.folder / "named" / "vllm-0.32.0+cpu.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    words = ["bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", job.url.removesuffix("/v1"),
             "--model", job.model, "--tokenizer", resolve(MODEL).location, "--dataset-name", "custom", "--dataset-path",
             str(job.folder / "vllm.jsonl"), "--custom-output-len", str(job.max_tokens), "--skip-chat-template", "--disable-shuffle",
             "--num-prompts", str(job.requests), "--max-concurrency", str(job.at_once), "--temperature", "0", "--num-warmups", "0",
             "--ready-check-timeout-sec", "0"]  # fmt: skip
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *words], {
        "PYTHONPATH": str(named.parent),
        "VLLM_TARGET_DEVICE": "cpu",
    }


TOOLS: dict[str, Callable[[Job], tuple[list[str], dict[str, str]]]] = {
    "ft eval": ft_eval,
    "lm-eval 0.4.13": lm_eval,
    "Inspect 0.3.285": inspect_ai,
    "vllm bench serve": vllm_bench,
}


def stats(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats", timeout=30) as answer:
        found: dict[str, float] = json.load(answer)
    return found


@dataclass(frozen=True)
class Cost:
    """What one command took. seconds: from the first request's arrival to the last one's end, at the server; wall_s: of the
    whole command."""

    requests: float
    seconds: float
    wall_s: float
    cpu_s: float


class FailedError(RuntimeError):
    """A tool did not ask everything."""


def cost(name: str, job: Job) -> Cost:
    """Run one tool and ask the server what came. Raises FailedError."""
    command, extra = TOOLS[name](job)
    stats(job.url)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **extra}, cwd=job.folder, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = stats(job.url)
    if not job.requests <= found["requests"] <= job.requests + 2:
        raise FailedError(
            f"{name}: {found['requests']} of {job.requests} requests, exit {done.returncode}: {(done.stderr + done.stdout)[-800:]}"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(found["requests"], found["seconds"], wall, cpu)


@contextmanager
def standin() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(STANDIN)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.kill()


def part_standin(tools: list[str], *, short: bool) -> None:
    print(
        f"\n| client | {' | '.join(f'{c} at once: requests/s per core (as run)' for c in AT_ONCE)} | start-up, CPU-s |\n|---|{'---|' * (len(AT_ONCE) + 1)}"
    )
    with standin() as url, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_items(folder, max(large for _, large in AT_ONCE.values()))
        said = {}
        for name in tools:
            cells, fixed = [], []
            for at_once, (small, large) in AT_ONCE.items():
                few, many = (small // 4, large // 4) if short else (small, large)
                one, two = (cost(name, Job(url, "standin", n, at_once, 16, folder)) for n in (few, many))
                each = (two.cpu_s - one.cpu_s) / (two.requests - one.requests)
                cells.append(f"{1 / each:,.0f} ({two.requests / two.seconds:,.0f})" if each > 0 else "-")
                fixed.append(one.cpu_s - one.requests * each)
            print(f"| {name} | {' | '.join(cells)} | {statistics.median(fixed):.1f} |", flush=True)
            said[name] = cells[list(AT_ONCE).index(16)].split(" ")[0]
    ours, beside = said.pop("ft eval"), ", ".join(f"{name} {rate}" for name, rate in said.items())
    print(f"\nheadline | requests/s a core of the client carries, 16 at once | {ours} | {beside or '-'}")


def part_scoring(n: int) -> None:
    """Three validators on recorded outputs, half of them right: the whole command, report and page included."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with (folder / "data.jsonl").open("w") as data, (folder / "out.jsonl").open("w") as out:
            for i in range(n):
                answer = json.dumps({"name": f"f{i % 50}", "arguments": {"n": i}})
                turns = [
                    {"role": "user", "content": f"Call f{i % 50} with {i}."},
                    {"role": "assistant", "content": answer},
                ]
                data.write(json.dumps({"id": f"i{i}", "messages": turns, "tags": {"f": f"f{i % 50}"}}) + "\n")
                out.write(json.dumps({"id": f"i{i}", "output": answer if i % 2 else "no"}) + "\n")
        (folder / "task.yaml").write_text(
            "name: t\ndata: data.jsonl\nslices: [f]\nvalidators: [{name: valid, kind: json}, {name: same, kind: json_equal}, {name: exact, kind: exact_match}]\n"
        )
        words = [
            str(Path(sys.executable).with_name("ft")),
            "eval",
            "out.jsonl",
            "--task",
            "task.yaml",
            "--out",
            "report",
            "--json",
        ]
        start = time.perf_counter()
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        page = (folder / "report" / "report.html").stat().st_size / 1e6
    print(
        f"{n:,} recorded outputs, 3 validators: {wall:.1f} s ({n / wall:,.0f} a second), peak memory {peak:.2f} GB, page {page:.1f} MB"
    )


@contextmanager
def vllm_server() -> Iterator[tuple[str, str]]:
    """What `ft serve` starts, counted, and without a prefix cache (else whoever asks second is served faster): URL, model."""
    os.environ["PYTHONPATH"] = str(STANDIN.parent)
    extra = ("--no-enable-prefix-caching", "--middleware", "fast_standin.RequestLog", "--disable-uvicorn-access-log")
    with serving(resolve(MODEL), options=ServeOptions(extra=extra)) as endpoint:
        os.environ.pop("PYTHONPATH")
        yield endpoint.base_url, endpoint.model


def part_vllm(tools: list[str], *, requests: int, rounds: int, at_once: int = 32) -> None:
    """The tools in turn, every second round backwards; a tool that fails is named and left out from then on."""
    found: dict[str, list[Cost]] = {name: [] for name in tools}
    with vllm_server() as (url, model), tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_items(folder, requests)
        cost("ft eval", Job(url, model, requests, at_once, 8, folder))  # warm-up
        for turn in range(rounds):
            for name in list(found) if turn % 2 == 0 else list(found)[::-1]:
                try:
                    found[name].append(cost(name, Job(url, model, requests, at_once, 24, folder)))
                except FailedError as error:
                    print(error, file=sys.stderr)
                    del found[name]
    print(f"\n{requests} items, {at_once} at once, 24 tokens each, {rounds} rounds\n")
    print("| client | requests/s, median (lowest to highest) | whole command, s | its CPU-s |\n|---|---|---:|---:|")
    said = {}
    for name, costs in found.items():
        rates = sorted(c.requests / c.seconds for c in costs)
        wall, cpu = (statistics.median(x) for x in ([c.wall_s for c in costs], [c.cpu_s for c in costs]))
        middle = statistics.median(rates)
        print(f"| {name} | {middle:.2f} ({rates[0]:.2f} to {rates[-1]:.2f}) | {wall:.1f} | {cpu:.1f} |")
        said[name] = f"{middle:.2f} ({wall:.0f} s, {cpu:.1f} CPU-s)"
    ours = said.pop("ft eval")
    beside = ", ".join(f"{name} {text}" for name, text in said.items())
    print(f"\nheadline | requests/s of one real server (whole command, its CPU) | {ours} | {beside}")


def main() -> None:
    given = options()
    keep_bytecode()
    parts = given.part or (["standin", "scoring"] if given.short else ["standin", "scoring", "vllm"])
    tools = ["ft eval"] if given.short else list(TOOLS)
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {date.today()}")
    if "standin" in parts:
        part_standin(tools, short=given.short)
    if "scoring" in parts:
        part_scoring(min(given.outputs, 10_000) if given.short else given.outputs)
    if "vllm" in parts:
        part_vllm(tools, requests=given.requests, rounds=given.rounds)


if __name__ == "__main__":
    main()
