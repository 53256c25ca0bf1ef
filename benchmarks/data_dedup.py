"""Near duplicates: ours, and semhash on the same rows.

    python benchmarks/data_dedup.py [--sizes 1000 10000 100000 1000000] [--short] [--texts FILE.jsonl]

Every size runs in a process of its own. Of the rows one in ten is a planted twin: an earlier text with one letter changed.
`found` is the share of twins removed; `others` counts removed rows that are no twin. semhash's default model comes from a
hub, so it gets a model2vec static model of random vectors over the words and their letter pairs, 256 wide: the cost of its
own kind of model, without a download. It runs in an environment of its own (peers.py), made at the first time. `--short`:
ours alone.

Planted twins are one letter from their text, so that no pair is left to MiniLM. What its verdict costs is measured on a set of
real texts: `--texts` takes the first user turn of each row of a file, once each, instead of the made-up ones.
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
# From here on a size is worth a line in the README.
HEADLINE = 100_000


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


def real(file: str) -> list[str]:
    """The first user turns of a file of chat rows, each once, lower case."""
    rows = (json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines())
    return list(
        dict.fromkeys(next(t["content"] for t in row["messages"] if t["role"] == "user").lower() for row in rows)
    )


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


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (Linux; semhash's Python has no package of ours)."""
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def worker(name: str, rows: int, file: str | None) -> None:
    """Run one of the two and print what it took as JSON."""
    texts, twins = (real(file), set[int]()) if file else made(rows)
    before = peak_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    removed = semhash(texts) if name == "semhash" else ours(texts, MODELS[name])
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    peak = peak_mb()
    found = {"found": len(removed & twins) / len(twins) if twins else None, "others": len(removed - twins)}
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


def measured(python: str, name: str, rows: int, file: str | None) -> dict[str, Any]:
    """What the worker of one size printed."""
    argv = [python, __file__, "--worker", name, "--sizes", str(rows), *(["--texts", file] if file else [])]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} at {rows} rows: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--short", action="store_true", help="1,000 and 4,000 rows, some seconds")
    parser.add_argument("--texts", metavar="FILE.jsonl", help="real texts instead of made-up ones, at their own number")
    parser.add_argument("--worker", choices=(*MODELS, "semhash"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.sizes[0], arguments.texts)
        return
    from peers import keep_bytecode, python_of

    from tunegate.core.machine import cpu_name

    keep_bytecode()
    sizes = [1000, 4000] if arguments.short else sorted(arguments.sizes)
    if arguments.texts:
        sizes = [len(real(arguments.texts))]
    pythons = dict.fromkeys(MODELS, sys.executable)
    if not arguments.short:
        pythons["semhash"] = str(python_of("semhash"))
    print(
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"thresholds: minilm 0.95, lexical and semhash {THRESHOLD}\n\n"
        "| | rows | CPU s | wall s | peak MB | MB grown | found | others removed |\n|---|---|---|---|---|---|---|---|"
    )
    cpu: dict[int, dict[str, float]] = {rows: {} for rows in sizes}
    notes = []
    for name, python in pythons.items():
        taken = []
        for rows in sizes:
            took = measured(python, name, rows, arguments.texts)
            taken.append((rows, took))
            cpu[rows][name] = took["cpu_s"]
            found = "-" if took["found"] is None else f"{took['found']:.1%}"
            print(
                f"| {name} | {rows:,} | {took['cpu_s']:.2f} | {took['wall_s']:.2f} | {took['peak_mb']:.0f} | "
                f"{took['grown_mb']:.0f} | {found} | {took['others']} |",
                flush=True,
            )
        if len(taken) > 1:
            notes.append(f"{name} ({taken[-1][1]['versions']}): {growth(taken[-2], taken[-1])}")
    print("\n" + "\n".join(f"- {note}" for note in notes))
    for rows in [x for x in sizes if x >= HEADLINE] or sizes[-1:]:
        beside = cpu[rows].pop("semhash", None)
        here = ", ".join(f"{took:.0f} ({name})" for name, took in cpu[rows].items())
        print(
            f"\nheadline | near duplicates of {rows:,} rows, CPU-seconds | {here} | {'-' if beside is None else f'{beside:.0f} (semhash)'}"
        )


def growth(less: tuple[int, dict[str, Any]], more: tuple[int, dict[str, Any]]) -> str:
    """How CPU and memory grew between the two largest sizes, where fixed costs weigh least."""
    (few, first), (many, last) = less, more
    cpu, memory = (
        math.log(max(last[key], 1e-9) / max(first[key], 1e-9)) / math.log(many / few) for key in ("cpu_s", "grown_mb")
    )
    each = 1e6 * (last["grown_mb"] - first["grown_mb"]) / (many - few)
    return f"from {few:,} to {many:,} rows CPU grows as rows^{cpu:.2f}, memory as rows^{memory:.2f} ({each:,.0f} bytes a row)"


if __name__ == "__main__":
    main()
