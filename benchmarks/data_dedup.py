"""Near duplicates: ours, and semhash on the same rows where a Python that has it is named.

    python benchmarks/data_dedup.py [--sizes 1000 10000 100000] [--semhash-python PATH] [--short]

Every size runs in a process of its own. Of the rows one in ten is a planted twin: an earlier text with one letter changed.
`found` is the share of twins removed; `others` counts removed rows that are no twin. semhash's default model comes from a
hub, so it gets a model2vec static model of random vectors over the words and their letter pairs, 256 wide: the cost of its
own kind of model, without a download. No process of this script uses the network.

    python -m venv E && E/bin/pip install semhash    # makes the Python for --semhash-python
"""

import argparse
import json
import math
import os
import platform
import random
import string
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

# The default thresholds of the two: cosines of their own models.
THRESHOLD = 0.9
# Ours: the default verdict, and the one by letters alone.
MODELS = {"minilm": "builtin:minilm", "lexical": "lexical"}


def made(rows: int) -> tuple[list[str], set[int]]:
    """(texts of about 120 characters, the places of the planted twins)."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(5000)]
    texts: list[str] = []
    originals: list[str] = []
    twins = set()
    for number in range(rows):
        if number and draw.random() < 0.1:
            text = draw.choice(originals)
            at = draw.randrange(len(text))
            texts.append(text[:at] + draw.choice(string.ascii_lowercase) + text[at + 1 :])
            twins.add(number)
        else:
            texts.append(" ".join(draw.choices(words, k=20)))
            originals.append(texts[-1])
    return texts, twins


def ours(texts: list[str], near_model: str) -> set[int]:
    """Places of the rows that our rules remove."""
    from tunegate.core.rows import parse_row
    from tunegate.train.data.dedup import DedupConfig, deduplicate

    answer = {"role": "assistant", "content": "a"}
    rows = [
        parse_row({"id": str(at), "messages": [{"role": "user", "content": text}, answer]}, "f", at)
        for at, text in enumerate(texts)
    ]
    return {item.line for item in deduplicate(rows, DedupConfig(near_model=near_model)).rejected}


def semhash(texts: list[str]) -> set[int]:
    """Places of the rows that semhash removes."""
    import numpy
    from model2vec import StaticModel
    from semhash import SemHash
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    units = sorted({word for text in texts for word in text.split()})[:30_000]
    pairs = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    vocabulary = ["[UNK]", *dict.fromkeys([*units, *string.ascii_lowercase, *pairs])]
    tokenizer = Tokenizer(
        models.WordPiece(
            {unit: at for at, unit in enumerate(vocabulary)}, unk_token="[UNK]", max_input_chars_per_word=99
        )
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = numpy.random.default_rng(0).standard_normal((len(vocabulary), 256)).astype(numpy.float32)
    model = StaticModel(vectors, tokenizer, normalize=True)
    records = [{"text": text, "at": str(at)} for at, text in enumerate(texts)]
    index = SemHash.from_records(records=records, columns=["text"], model=model)
    result: Any = index.self_deduplicate(threshold=THRESHOLD)
    kept = {int(record["at"]) for record in result.selected}
    return set(range(len(texts))) - kept


def processor() -> str:
    """The processor's name where the system tells it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (Linux; semhash's Python has no package of ours)."""
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def worker(name: str, rows: int) -> None:
    """Run one of the two and print what it took as JSON."""
    texts, twins = made(rows)
    before = peak_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    removed = semhash(texts) if name == "semhash" else ours(texts, MODELS[name])
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    peak = peak_mb()
    found = {"found": len(removed & twins) / max(1, len(twins)), "others": len(removed - twins)}
    print(json.dumps({**took, **found, "peak_mb": peak, "grown_mb": peak - before, "versions": versions(name)}))


def versions(name: str) -> str:
    """The packages that did the work."""
    from importlib.metadata import version

    names = (
        ("torch", "transformers", "numpy")
        if name == "minilm"
        else ("numpy",)
        if name == "lexical"
        else ("semhash", "model2vec", "numpy")
    )
    return ", ".join(f"{package} {version(package)}" for package in names)


def measured(python: str, name: str, rows: int) -> dict[str, Any]:
    """What the worker of one size printed."""
    argv = [python, __file__, "--worker", name, "--sizes", str(rows)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} at {rows} rows: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--semhash-python", help="a Python that has semhash")
    parser.add_argument("--short", action="store_true", help="1,000 and 4,000 rows, some seconds")
    parser.add_argument("--worker", choices=(*MODELS, "semhash"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.sizes[0])
        return
    sizes = [1000, 4000] if arguments.short else arguments.sizes
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
    print(
        f"thresholds: minilm 0.95, lexical and semhash {THRESHOLD}\n\n| | rows | CPU s | wall s | peak MB | MB grown | found | others removed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    pythons = dict.fromkeys(MODELS, sys.executable) | (
        {"semhash": arguments.semhash_python} if arguments.semhash_python else {}
    )
    most: dict[str, str] = {}
    notes = [] if arguments.semhash_python else ["semhash: not measured (--semhash-python names a Python that has it)"]
    for name, python in pythons.items():
        taken = []
        for rows in sizes:
            took = measured(python, name, rows)
            taken.append((rows, took))
            print(
                f"| {name} | {rows:,} | {took['cpu_s']:.2f} | {took['wall_s']:.2f} | {took['peak_mb']:.0f} | "
                f"{took['grown_mb']:.0f} | {took['found']:.1%} | {took['others']} |",
                flush=True,
            )
        (few, first), (many, last) = taken[0], taken[-1]
        most[name] = f"{last['cpu_s']:.0f} ({name})"
        if many > few:
            growth = {
                key: math.log(max(last[key], 1e-9) / max(first[key], 1e-9)) / math.log(many / few)
                for key in ("cpu_s", "grown_mb")
            }
            notes.append(
                f"{name} ({last['versions']}): CPU grows as rows^{growth['cpu_s']:.2f}, memory as rows^{growth['grown_mb']:.2f}"
            )
    print("\n" + "\n".join(f"- {note}" for note in notes))
    beside = most.pop("semhash", "-")
    print(f"\nheadline | near duplicates of {sizes[-1]:,} rows, CPU-seconds | {', '.join(most.values())} | {beside}")


if __name__ == "__main__":
    main()
