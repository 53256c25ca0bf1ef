"""The advisor against published measurements: error by class, the rules people use today, whole sources left out.

    python benchmarks/advisor_backtest.py [--short] [--record]

--short leaves the refits out. --record writes the errors and bounds that intervals and `ftadvise backtest` rest on
(advisor/tables/errors.csv): do so after a formula changed, and read the difference before committing it.
"""

import argparse
import dataclasses
import itertools
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunegate.advisor import serving_speed, training_memory, training_time
from tunegate.advisor.backtest import (
    Backtest,
    Pair,
    backtest,
    class_half_width,
    coverage_of_left_out_sources,
    rows_of,
    summary,
)
from tunegate.advisor.measured import Case, NotPredictedError, method, software
from tunegate.advisor.predict import engine, memory_setup, predict

ERRORS = Path(__file__).parents[1] / "advisor" / "tables" / "errors.csv"
GOALS = {"train_mem": 0.09, "tpot": 0.10}  # bounds that were set before any fit


# The rules below are reconstructions: the tools' own formulas, read in their sources, applied to cases that some of them
# do not know. Each is given the true parameter count, bytes are not rounded to GiB, and totals are shared over the GPUs.


def accelerate_rule(case: Case) -> float:
    """accelerate estimate-memory (src/accelerate/commands/estimate.py, 00e4d26): weights in the precision asked for; its
    "Training using Adam" is 8 bytes a parameter for bf16. It has no adapters: their rows get the weights alone."""
    setup = memory_setup(case)
    bits = 16 if setup.method in ("lora", "full") else 4
    return setup.architecture.params * bits / 8e9 * (4 if setup.method == "full" else 1)


LLAMA_FACTORY_TABLE = {  # hiyouga/LLaMA-Factory README.md, Hardware Requirement (00409ff): GB by 1e9 parameters
    "full": {7: 120, 14: 240, 30: 600, 70: 1200},
    "pure_bf16": {7: 60, 14: 120, 30: 300, 70: 600},
    "lora": {7: 16, 14: 32, 30: 64, 70: 160},
    "qlora": {7: 6, 14: 12, 30: 24, 70: 48},
}


def llama_factory_rule(case: Case) -> float:
    """LLaMA-Factory's README table: the nearest size's GB per parameter."""
    setup = memory_setup(case)
    size = setup.architecture.params / 1e9
    row = LLAMA_FACTORY_TABLE["pure_bf16" if setup.method == "full" and setup.state != "amp" else setup.method]
    near = min(row, key=lambda known: abs(known / size - 1))
    return row[near] / near * size


def llama_factory_formula(case: Case) -> float:
    """The same table's last column: 18x (8x pure bf16), 2x and x/2 GB for x 1e9 parameters."""
    setup = memory_setup(case)
    full = 18.0 if setup.state == "amp" else 8.0
    return setup.architecture.params / 1e9 * {"full": full, "lora": 2.0, "qlora": 0.5}[setup.method]


def eleuther_rule(case: Case) -> float:
    """EleutherAI/cookbook calc/calc_transformer_mem.py (069ae2e): 2 + 4 + 12 bytes a parameter; activations 34 s b h L, and
    5 n_h s^2 b L more without checkpointing. It has no adapters: their rows get 16-bit or 4-bit weights for the 18 bytes."""
    setup = memory_setup(case)
    a = setup.architecture
    weights = a.params * {"full": 18.0, "lora": 2.0, "qlora": 0.5}[setup.method]
    scores = 0.0 if setup.checkpointing else 5.0 * a.heads * setup.seq_len
    return (weights + (34.0 * a.hidden + scores) * setup.seq_len * setup.micro_batch * a.layers) / 1e9


RULES = {
    "accelerate": accelerate_rule,
    "LLaMA-Factory table": llama_factory_rule,
    "LLaMA-Factory x B": llama_factory_formula,
    "EleutherAI": eleuther_rule,
}


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def classes(result: Backtest) -> None:
    rows = []
    for kind, pairs in result.by_class().items():
        s = summary(pairs)
        skipped = sum(1 for _, _, k in result.skipped if k == kind)
        numbers = [percent(s[name]) for name in ("mape", "median_ape", "bias", "within_interval")]
        rows.append([kind, str(len(pairs)), str(skipped), *numbers])
    show(
        "Error by class", ["class", "predicted", "skipped", "MAPE", "median", "bias", "inside the 90 % interval"], rows
    )


def rivals(result: Backtest) -> None:
    pairs = result.by_class()["train_mem"]
    rows = []
    for how in ("lora", "qlora", "full", "all"):
        chosen = [p for p in pairs if how in ("all", memory_setup(p.case).method)]
        cells = [percent(statistics.fmean(abs(p.error) for p in chosen))]
        cells += [percent(statistics.fmean(abs(scaled(r, p) / p.measured - 1) for p in chosen)) for r in RULES.values()]
        rows.append([how, str(len(chosen)), *cells])
    show("Training memory: MAPE on the same rows", ["method", "n", "this advisor", *RULES], rows)
    ours, *theirs = rows[-1][2:]
    lowest, highest = (pick(theirs, key=lambda cell: float(cell.split()[0])) for pick in (min, max))
    what = f"memory of a training, {rows[-1][1]} published measurements: mean error"
    print(f"headline | {what} | {ours} | {lowest} to {highest}: {len(theirs)} rules in use today")


def scaled(rule, pair: Pair) -> float:
    """A rule knows a total: shared evenly over the GPUs where the row is per GPU."""
    value = rule(pair.case)
    return value if "total" in pair.case.row["unit"] else value / pair.case.n_gpus


@contextmanager
def one_program(kind: str, constants: tuple[float, ...]) -> Iterator[None]:
    """As if all programs were one, with these constants."""
    tables = {"memory": training_memory.SOFTWARE, "training": training_time.SPEEDS, "serving": serving_speed.ENGINES}
    table = tables[kind]
    kept = dict(table)
    made = {
        "memory": lambda: training_memory.Software(logits_bytes=constants[0], context_gb=constants[1]),
        "training": lambda: training_time.Speed(floor_ms=constants[0], hfu_max=constants[1], half_width=constants[2]),
        "serving": lambda: serving_speed.Engine(bandwidth=constants[0], layer_ms=constants[1]),
    }[kind]()
    try:
        for name in table:
            table[name] = made
        yield
    finally:
        table.update(kept)


GRIDS = {
    "memory": ([2.0, 6.0, 8.0, 12.0], [0.1, 0.7, 1.3]),
    "training": ([1.5, 3.0, 5.0], [0.5, 0.65, 0.8], [600.0, 1700.0, 2900.0]),
    "serving": ([0.6, 0.7, 0.8, 0.92], [0.04, 0.08, 0.13, 0.3]),
}


def mape_of(cases: list[Case]) -> float:
    errors = []
    for case in cases:
        try:
            errors.append(abs(predict(case) / case.value - 1))
        except NotPredictedError:
            continue
    return statistics.fmean(errors)


def leave_one_source_out(result: Backtest) -> None:
    """Refit one nameless program on the other sources, predict the source left out with it."""
    rows = []
    groups = (("memory", ("train_mem",)), ("training", ("train_tps", "train_time")), ("serving", ("infer_tps", "tpot")))
    for kind, names in groups:
        pairs = [p for p in result.pairs if p.case.kind in names]
        for source in sorted({p.case.source for p in pairs}):
            own = [p.case for p in pairs if p.case.source == source]
            others = [p.case for p in pairs if p.case.source != source]
            if len(own) < 5:
                continue
            scores = {}
            for constants in itertools.product(*GRIDS[kind]):
                with one_program(kind, constants):
                    scores[constants] = mape_of(others)
            best = min(scores, key=scores.__getitem__)
            with one_program(kind, best):
                held_out = mape_of(own)
            known = statistics.fmean(abs(p.error) for p in pairs if p.case.source == source)
            rows.append([", ".join(names), source, str(len(own)), percent(held_out), percent(known)])
    show(
        "Whole sources left out: a program never seen, its constants fitted on the others",
        ["classes", "source left out", "n", "MAPE, never seen", "MAPE, program known"],
        rows,
    )


FOLDS, ROUNDS = 5, 5
FITTED = {  # the constants of one program that are fitted, by table
    "training": ("floor_ms", "hfu_max", "half_width", "dequant_ms"),
    "serving": ("bandwidth", "layer_ms", "sequence_ms", "mfu_bf16", "mfu_fp8", "mfu_fp4"),
}
CLASSES = {"training": ("train_time", "train_tps"), "serving": ("tpot", "infer_tps")}


def program_of(kind: str, case: Case) -> object:
    """The key of the table of constants that a row is predicted with."""
    if kind == "serving":
        return engine(case)
    step = (software(case), "full" if method(case) == "full" else "adapter")
    return step if step in training_time.SPEEDS else ("hf", step[1])


def refit(table: dict[Any, Any], key: object, names: tuple[str, ...], cases: list[Case], rng: random.Random) -> None:
    """Coordinate descent on the mean error of `cases`, from constants up to a third off the ones in use."""

    def put(name: str, value: float) -> None:
        table[key] = dataclasses.replace(table[key], **{name: value})

    for name in names:
        put(name, getattr(table[key], name) * rng.uniform(0.67, 1.5))
    best, size = mape_of(cases), 0.2
    for _ in range(ROUNDS):
        for name in names:
            kept = getattr(table[key], name)
            for factor in (1 - size, 1 + size, 1 - size / 3, 1 + size / 3):
                put(name, kept * factor)
                if (score := mape_of(cases)) < best:
                    best, kept = score, kept * factor
                put(name, kept)
        size *= 0.7


def held_out_configurations(result: Backtest) -> None:
    """Each program's constants refitted on four fifths of its configurations (model, GPU, count, format), the error on the
    fifth left out: what to expect of a configuration that shaped nothing."""
    rng, rows = random.Random(0), []
    for kind, names in FITTED.items():
        table: dict[Any, Any] = {"training": training_time.SPEEDS, "serving": serving_speed.ENGINES}[kind]
        by_program: dict[object, list[Case]] = defaultdict(list)
        for pair in result.pairs:
            if pair.case.kind in CLASSES[kind]:
                by_program[program_of(kind, pair.case)].append(pair.case)
        for key, cases in by_program.items():
            configurations = sorted({configuration(case) for case in cases})
            if len(configurations) < FOLDS or len(cases) < 10:
                continue
            kept, errors = table[key], []
            rng.shuffle(configurations)
            for fold in range(FOLDS):
                out = set(configurations[fold::FOLDS])
                refit(table, key, names, [c for c in cases if configuration(c) not in out], rng)
                errors += [abs(predict(c) / c.value - 1) for c in cases if configuration(c) in out]
                table[key] = kept
            name = key if isinstance(key, str) else " ".join(key)
            now = mape_of(cases)
            rows.append(
                [kind, name, str(len(cases)), str(len(configurations)), percent(now), percent(statistics.fmean(errors))]
            )
    show(
        "Configurations left out: constants refitted without them",
        ["", "program", "rows", "configurations", "MAPE, all rows", "MAPE, rows left out"],
        rows,
    )


def configuration(case: Case) -> tuple[str, ...]:
    """Rows that differ in length or batch only are one configuration: they may not stand on both sides."""
    return (case.model.name, case.gpu.name, str(case.n_gpus), case.row["quant"])


def intervals(result: Backtest) -> None:
    rows = [
        [kind, source, str(n), percent(mape), f"{100 * bias:+.1f} %", f"{100 * inside:.0f} %"]
        for (kind, source), (n, mape, bias, inside) in coverage_of_left_out_sources(result).items()
    ]
    show("Interval made from the other sources", ["class", "source", "n", "MAPE", "bias", "inside"], rows)


def record(result: Backtest) -> None:
    lines = ["class,n,mape,median_ape,bias,half_width,bound"]
    for kind, pairs in result.by_class().items():
        s = summary(pairs)
        bound = GOALS.get(kind, max(1.25 * s["mape"], s["mape"] + 0.02))
        width = class_half_width(pairs)
        lines.append(
            f"{kind},{len(pairs)},{s['mape']:.4f},{s['median_ape']:.4f},{s['bias']:.4f},{width:.4f},{bound:.3f}"
        )
    ERRORS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"recorded {ERRORS.name}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="leave the refits out")
    parser.add_argument("--record", action="store_true", help="write advisor/tables/errors.csv")
    arguments = parser.parse_args()
    result = backtest(rows_of(None))
    if arguments.record:
        record(result)
        return
    classes(result)
    rivals(result)
    intervals(result)
    if not arguments.short:
        held_out_configurations(result)
        leave_one_source_out(result)


if __name__ == "__main__":
    main()
