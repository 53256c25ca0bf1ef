"""`make demo`: the main job, end to end, on a real model. Shows each command before running it; paste them one by one.

A stage whose command and inputs did not change is taken from build/demo/, and said so; --fresh runs all of them again.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tunegate.core.machine import lacks_avx512

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples/demo")
BUILD = Path("build/demo")
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One command. makes: what it writes; reads: files or folders whose change makes it run again.

    verdict: its exit code is a gate's verdict (0, 1, 3), not a failure.
    """

    title: str
    command: str
    makes: Path
    reads: tuple[Path, ...] = ()
    verdict: bool = False


DATA, ADVICE, RUN = BUILD / "data", BUILD / "recommendation.yaml", BUILD / "run"
# vLLM's 4-bit product needs AVX-512; a processor without it gets the 8-bit kind.
SCHEME, BITS = ("w8a8", "8") if lacks_avx512() else ("awq", "4")
RELEASE, QUANTIZED = BUILD / "release", BUILD / f"release-{SCHEME}"
BASE_REPORT, REPORT = BUILD / "eval-base", BUILD / f"eval-{SCHEME}"
TASK, GATE = HERE / "task.yaml", HERE / "gate.yaml"

STAGES = (
    Stage(
        "Questions to rows, and 100 of them held out before anything else",
        f"ft data prepare builtin:bfcl --out {DATA}",
        DATA,
    ),
    Stage(
        "Should we fine-tune, with what?",
        f"ftadvise recommend {DATA}/train.jsonl --model builtin:smollm2-135m --needs format,cost,privacy --privacy no-egress "
        f"--hardware cpu --calls-per-day 20000 --out {ADVICE}",
        ADVICE,
        (DATA,),
    ),
    Stage(
        "The baseline: the base model as it is, served by vLLM and scored",
        f"ft eval builtin:smollm2-135m --task {TASK} --out {BASE_REPORT} --save-as baseline",
        BASE_REPORT,
        (DATA, TASK),
    ),
    Stage(
        "Train what was recommended (one pass here; the recommendation says three)",
        f"ft train {DATA} --from {ADVICE} --num-train-epochs 1 --max-length 512 --out {RUN}",
        RUN,
        (DATA, ADVICE),
    ),
    Stage("Merge the adapter, and prove that nothing was lost", f"ft merge {RUN} --out {RELEASE}", RELEASE, (RUN,)),
    Stage(
        f"Quantize to {BITS} bits ({SCHEME}), calibrated on training rows",
        f"ft quantize {RELEASE} --out {QUANTIZED} --rows 64 --scheme {SCHEME}",
        QUANTIZED,
        (RELEASE, DATA),
    ),
    Stage(
        f"The candidate: the {BITS}-bit release served by vLLM, on the same questions, against the baseline",
        f"ft eval {QUANTIZED} --task {TASK} --out {REPORT} --against baseline --policy {GATE}",
        REPORT,
        (QUANTIZED, DATA, TASK, GATE, BASE_REPORT),
        verdict=True,
    ),
)


def digest(path: Path) -> str:
    """What a stage's input is: a folder by its manifest's digest, a file by its bytes; timestamps do not count."""
    manifest = path / "manifest.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text())["digest"])
    if path.suffix == ".yaml" and path.is_file():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("created:")]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def run(stage: Stage, number: int, *, fresh: bool) -> int:
    """Run one stage, or take it from the build folder; returns the exit code."""
    print(f"\n[{number}/{len(STAGES)}] {stage.title}\n$ {stage.command}", flush=True)
    key = hashlib.sha256(json.dumps([stage.command, [digest(p) for p in stage.reads]]).encode()).hexdigest()
    mark = BUILD / f".{stage.makes.name}.stage.json"
    before = json.loads(mark.read_text()) if mark.is_file() else {}
    if not fresh and before.get("key") == key and stage.makes.exists():
        print(
            f"unchanged: taken from {stage.makes} (made in {before['seconds']:.0f} s; make demo FRESH=1 runs it again)"
        )
        return int(before["code"])
    if stage.makes.is_dir():
        shutil.rmtree(stage.makes)
    started = time.monotonic()
    words = stage.command.split()
    code = subprocess.run([str(BIN / words[0]), *words[1:]], check=False).returncode
    seconds = time.monotonic() - started
    if code not in ((0, 1, 3) if stage.verdict else (0,)):
        print(f"demo: stopped, the command above ended with exit code {code}", file=sys.stderr)
        raise SystemExit(code)
    mark.write_text(json.dumps({"key": key, "seconds": seconds, "code": code}))
    print(f"({seconds:.0f} s)", flush=True)
    return code


def summary() -> None:
    """One table: base and candidate side by side, with intervals, latency and size."""
    from tunegate.core.artifacts import EvalReport, Release
    from tunegate.core.console import table

    base, candidate = (EvalReport.open(p).report() for p in (BASE_REPORT, REPORT))
    release = Release.open(QUANTIZED).manifest.facts

    def rate(report: dict, name: str) -> str:
        metric = report["metrics"][name]
        return f"{metric['value']:.1%} [{metric['low']:.1%}, {metric['high']:.1%}]"

    rows = [[name, rate(base, name), rate(candidate, name)] for name in ("json_valid", "schema", "admissible")]
    rows.append(
        ["cut off at max_tokens", *(f"{r['outcomes'].get('truncated', 0)} of {r['n']}" for r in (base, candidate))]
    )
    latency = [r["latency"]["latency_ms"]["p95"] for r in (base, candidate)]
    rows.append(["latency p95 under load, ms", *(f"{value:,.0f}" for value in latency)])
    rows.append(["weights, MB", f"{release['bytes_before'] / 1e6:.0f}", f"{release['bytes'] / 1e6:.0f}"])
    changes = (candidate["comparison"] or {"metrics": {"admissible": {"fixed": 0, "broken": 0}}})["metrics"][
        "admissible"
    ]
    rows.append(["admissible: fixed / broken", "", f"{changes['fixed']} / {changes['broken']}"])
    print()
    table(
        f"SmolLM2-135M-Instruct on {candidate['n']} held-out function-calling questions",
        ["", "base (bf16)", f"LoRA + {SCHEME.upper()} {BITS}-bit"],
        rows,
    )
    print(f"report: {REPORT}/report.html")


def main() -> int:
    """Run all stages; 0 when all of them ran, whatever the gate's verdict, which is the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="run every stage again")
    fresh = parser.parse_args().fresh
    os.chdir(ROOT)
    BUILD.mkdir(parents=True, exist_ok=True)
    os.environ["TUNEGATE_HOME"] = str(BUILD / "registry")
    started, code = time.monotonic(), 0
    for number, stage in enumerate(STAGES, 1):
        code = run(stage, number, fresh=fresh)
    summary()
    words = {0: "PASS", 1: "FAIL", 3: "INCONCLUSIVE"}
    print(f"demo: {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"gate: {words[code]} (exit {code})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
