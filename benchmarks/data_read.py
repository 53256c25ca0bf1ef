"""Reading and validating rows: ours beside msgspec's bare parse and the standard library's json.

    python benchmarks/data_read.py [--rows N] [--short]

Rows a CPU-second of one process, best of three, over one JSONL file in the page cache. Bare parsers only decode each line;
ours is strict (no key twice, no NaN, no lone surrogate), checks every message and field.
"""

import argparse
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import msgspec

from tunegate.core.machine import peak_resident_gb
from tunegate.train.data.read import Reading, read_file


def made(path: Path, rows: int) -> None:
    """Chat rows of some 370 bytes: a system text, a question and an answer in JSON, as text inside the row."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(3000)]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            answer = json.dumps({"intent": draw.choice(words), "slots": {"n": number, "name": draw.choice(words)}})
            messages = [
                {"role": "system", "content": "Answer with JSON: the intent and its slots."},
                {"role": "user", "content": " ".join(draw.choices(words, k=20))},
                {"role": "assistant", "content": answer},
            ]
            stream.write(json.dumps({"id": f"r{number}", "messages": messages}) + "\n")


def parsed(path: Path, decode: Callable[[bytes], object]) -> int:
    """Rows that a bare parser decodes."""
    with path.open("rb") as stream:
        return sum(decode(line) is not None for line in stream)


def ours(path: Path) -> int:
    """Rows that our reader takes."""
    return sum(1 for _ in read_file(path, Reading()))


def best(run: Callable[[], int], rows: int) -> float:
    """Rows a CPU-second, best of three."""
    rates = []
    for _ in range(3):
        start = time.process_time()
        if run() != rows:
            raise SystemExit("rows are missing")
        rates.append(rows / (time.process_time() - start))
    return max(rates)


def processor() -> str:
    """The processor's name where the system tells it."""
    table = Path("/proc/cpuinfo")
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--short", action="store_true", help="20,000 rows, some seconds")
    arguments = parser.parse_args()
    rows = 20_000 if arguments.short else arguments.rows
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"msgspec {version('msgspec')}; rows a CPU-second, best of three")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        made(path, rows)
        print(f"{rows:,} rows of {path.stat().st_size / rows:.0f} bytes\n")
        before = peak_resident_gb()
        own = best(lambda: ours(path), rows)
        grown = (peak_resident_gb() - before) * 1e3
        bare = best(lambda: parsed(path, msgspec.json.Decoder().decode), rows)
        standard = best(lambda: parsed(path, json.loads), rows)
    print("| reader | rows a CPU-second | share of msgspec |\n|---|---|---|")
    for name, rate in (("msgspec, bare", bare), ("json, bare", standard), ("ours, strict and checked", own)):
        print(f"| {name} | {rate:,.0f} | {rate / bare:.2f} |")
    ratio, json_ratio = own / bare, standard / bare
    print(
        f"\nheadline | reading and checking rows, of msgspec's bare parse | {ratio:.2f} | {json_ratio:.2f}: json, bare"
    )
    print(f"\nresident memory grew by {grown:.1f} MB while our reader streamed the file three times")


if __name__ == "__main__":
    sys.exit(main())
