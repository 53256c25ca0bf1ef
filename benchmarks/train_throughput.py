"""Tokens per second of `ft train` on this CPU, beside plain TRL scripts: same model, rows, order, batch, rank, steps.

    python benchmarks/train_throughput.py [--short] [--rounds 3] [--steps 8] [--methods lora,qlora,full]

plain: SFTTrainer with SFTConfig's defaults. best: what TRL itself can set: gradient checkpointing off. malloc: plain, and
glibc told to keep freed memory (what `ft train` tells it), by its environment variables. answers: `ft train --no-fast-cpu`,
which projects label rows only, and no more. spin: `ft train` with OpenMP's own time of spinning (300,000 turns). ft: `ft train`
as users call it. llamafactory: LLaMA-Factory's command with its defaults (in an environment of its own). --busy: beside a
process of another session that takes all the CPU it gets. Runs are interleaved; the table has medians. On a processor that
does not multiply in bfloat16 every side computes in float32 (which `ft train` chooses there by itself).
Padding is not counted as tokens. Wall time from the first step's start to the last step's end. Loss: answers of 48
held-out rows after the last step, by one evaluator for all, in fp32. Peak memory is taken before that evaluation. GEMM: share of the machine's rate (2048^3, all threads, bf16 or fp32)
that the operations which cannot be left out take: 4 a frozen weight and token (forward, and backward to the input), 6 a
trained one, the output matrix at label positions only, attention's own products left out.
"""

import argparse
import atexit
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import python_of

from tunegate.core.machine import bf16_flags, peak_resident_gb
from tunegate.train import thread_waits

MODEL = "builtin:smollm2-135m"
LENGTH = 512
BATCH = 4
DTYPE = "bfloat16" if bf16_flags() else "float32"
RATE = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
SIDES = ("plain", "best", "malloc", "answers", "ft")
BESIDE = {"plain": "a plain TRL script", "spin": "OpenMP's own spinning", "llamafactory": "LLaMA-Factory"}
SPIN = {"GOMP_SPINCOUNT": "300000"}
KEEP = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "-1"}


def rows_and_model(data: Path, part: str, count: int) -> tuple[Any, list[Any], Any, list[int]]:
    """(tokenizer, masked examples, model source, stop ids) of the first rows that fit."""
    from tunegate.core.model_source import resolve
    from tunegate.core.rows import read_rows
    from tunegate.train import examples, model_loading

    source = resolve(MODEL)
    tokenizer = model_loading.load_tokenizer(source)
    stops = model_loading.stop_ids(source, tokenizer)
    kept, _ = examples.build(list(read_rows(data / part)), tokenizer, stops, max_length=LENGTH, max_left_out_share=0.9)
    return tokenizer, kept[:count], source, stops


def plain(method: str, data: Path, out: Path, steps: int, best: bool) -> dict[str, float]:
    """A TRL script as its documentation writes it, on rows tokenized beforehand (loss on the answers only)."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer, kept, source, _ = rows_and_model(data, "train.jsonl", steps * BATCH)
    options: dict[str, Any] = {"dtype": torch.float32 if method == "full" else getattr(torch, DTYPE)}
    if method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, DTYPE),
        )  # fmt: skip
        options["device_map"] = {"": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(source.location, **options)
    config = SFTConfig(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
        learning_rate=RATE[method], lr_scheduler_type="cosine", warmup_steps=0, bf16=DTYPE == "bfloat16", use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=1, seed=0, data_seed=0, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        **({"gradient_checkpointing": False} if best else {}),
    )  # fmt: skip
    adapter = None if method == "full" else adapter_config()
    columns = {"input_ids": [e.input_ids for e in kept], "labels": [e.labels for e in kept]}
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    started = time.perf_counter()
    trainer.train()
    seconds, peak = time.perf_counter() - started, peak_resident_gb()
    speed = sum(len(e.input_ids) for e in kept) / seconds
    return {"tokens_per_s": speed, "peak_gb": peak, "loss": held_out_loss(trainer.model, method, data)}


def ours(method: str, data: Path, out: Path, steps: int, fast: bool = True) -> dict[str, float]:
    """`ft train` through its own function, on a Dataset of the same rows; timed around its trainer's loop."""
    from tunegate.core.artifacts import Dataset
    from tunegate.train import sft
    from tunegate.train.config import resolve

    _, kept, source, _ = rows_and_model(data, "train.jsonl", steps * BATCH)
    chosen = {e.id for e in kept}
    folder = out / "data"
    folder.mkdir(parents=True)
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text("".join(x + "\n" for x in lines if json.loads(x)["id"] in chosen))
    from tunegate.core.manifest import write

    write(folder, "dataset", inputs=[], config={}, facts={})
    settings = {
        "method": method, "model": MODEL, "max_steps": steps, "max_length": LENGTH, "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1, "learning_rate": RATE[method], "warmup_ratio": 0.0, "validation_share": 0.0,
        "save_steps": 0, "seed": 0, "fast_cpu": fast,
    }  # fmt: skip
    took: dict[str, float] = {}
    import trl

    inner = trl.SFTTrainer.train

    def timed(self: Any, *args: Any, **more: Any) -> Any:
        started = time.perf_counter()
        result = inner(self, *args, **more)
        took["seconds"], took["peak_gb"] = time.perf_counter() - started, peak_resident_gb()
        took["loss"] = held_out_loss(self.model, method, data)
        return result

    trl.SFTTrainer.train = timed
    sft.train(
        Dataset.open(folder), source, resolve([("benchmark", settings)])[0], out / "run", resume=False, force=True
    )
    return {"tokens_per_s": sum(len(e.input_ids) for e in kept) / took.pop("seconds"), **took}


def llama_factory(method: str, data: Path, out: Path, steps: int) -> dict[str, float]:
    """LLaMA-Factory's own command in its own environment, on the same rows in the same order; its defaults otherwise. Its loop's
    time is the one it writes (transformers' train_runtime), its memory that of its process."""
    import yaml
    from transformers import AutoModelForCausalLM

    _, kept, source, _ = rows_and_model(data, "train.jsonl", steps * BATCH)
    chosen = {e.id for e in kept}
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps([{"messages": row["messages"]} for row in rows if row["id"] in chosen]))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    (out / "dataset_info.json").write_text(json.dumps({"rows": {**entry, "tags": {**tags, "system_tag": "system"}}}))
    model = source.location
    if DTYPE == "float32":  # it takes the type of the weights
        AutoModelForCausalLM.from_pretrained(source.location, dtype="float32").save_pretrained(out / "model")
        for file in (
            f for f in Path(source.location).iterdir() if not (out / "model" / f.name).exists() and f.is_file()
        ):
            shutil.copy(file, out / "model")
        model = str(out / "model")
    (out / "torchaudio.py").write_text("")  # imported at its start, used for sound alone
    kind = {"finetuning_type": "full"} if method == "full" else {
        "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0,
    }  # fmt: skip
    settings = {
        "stage": "sft", "do_train": True, "model_name_or_path": str(model), "template": "smollm2", "dataset": "rows",
        "dataset_dir": str(out), "cutoff_len": LENGTH, "output_dir": str(out / "run"), "max_steps": steps, "use_cpu": True,
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": RATE[method], "bf16": DTYPE == "bfloat16",
        "lr_scheduler_type": "cosine", "warmup_steps": 0, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "seed": 0, "disable_shuffling": True, **kind, **({"quantization_bit": 4} if method == "qlora" else {}),
    }  # fmt: skip
    (out / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [str(python_of("llamafactory").parent / "llamafactory-cli"), "train", str(out / "settings.yaml")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(out)}
    )
    if done.returncode:
        raise SystemExit(f"LLaMA-Factory failed:\n{done.stderr[-2000:]}")
    seconds = json.loads((out / "run" / "train_results.json").read_text())["train_runtime"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    if method == "full":
        trained = AutoModelForCausalLM.from_pretrained(out / "run")
    else:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(source.location)
        trained = PeftModel.from_pretrained(base, out / "run", is_trainable=True)
    loss = held_out_loss(trained, method, data)
    return {"tokens_per_s": sum(len(e.input_ids) for e in kept) / seconds, "peak_gb": peak, "loss": loss}


def adapter_config() -> Any:
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")


def held_out_loss(model: Any, method: str, data: Path) -> float:
    """Mean cross entropy per answer token over 48 held-out rows of what was trained, laid onto a fresh model in fp32: in bf16
    with autocast a good part of a young adapter's effect is rounded away (docs/training.md), more on one side than the other."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    _, kept, source, _ = rows_and_model(data, "eval.jsonl", 48)
    fresh = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32)
    if method != "full":
        fresh = get_peft_model(fresh, adapter_config())
    trained = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    unknown = fresh.load_state_dict(trained, strict=False).unexpected_keys
    if unknown or not trained:
        raise RuntimeError(f"not the same model: {unknown[:3]}")
    total, count = 0.0, 0
    fresh.eval()
    with torch.no_grad():
        for example in kept:
            ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels)[1:]
            inside = labels != -100
            logits = fresh(input_ids=ids).logits[0, :-1][inside]
            total += float(torch.nn.functional.cross_entropy(logits, labels[inside], reduction="sum"))
            count += int(inside.sum())
    return total / count


def gemm_gflops() -> float:
    """2048^3 product in DTYPE, all threads: the machine's own rate, the best of five tries (other programs only slow it)."""
    import torch

    a = torch.randn(2048, 2048, dtype=getattr(torch, DTYPE))
    a @ a
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(8):
            a @ a
        seconds.append(time.perf_counter() - started)
    return 8 * 2 * 2048**3 / min(seconds) / 1e9


def needed(method: str, data: Path, steps: int) -> float:
    """Operations per token that no implementation can leave out, 1e9."""
    from tunegate.core.architecture import from_folder

    _, kept, source, _ = rows_and_model(data, "train.jsonl", steps * BATCH)
    shape = from_folder(Path(source.location))
    head = shape.vocab * shape.hidden
    adapter, linear = shape.lora_params(16), shape.linear_params
    tokens = sum(len(e.input_ids) for e in kept)
    labels = sum(label >= 0 for e in kept for label in e.labels)
    each, extra = (6.0, 0.0) if method == "full" else (4.0, 6.0 * adapter)
    return (each * linear + extra + each * head * labels / tokens) / 1e9


def worker(side: str, method: str, data: Path, steps: int) -> None:
    """One run in a process of its own; the figures go to standard output as JSON."""
    os.environ["TQDM_DISABLE"] = "1"
    if side not in ("plain", "best", "malloc", "llamafactory"):
        thread_waits.keep_short()  # as `ft train` does at its start
    with tempfile.TemporaryDirectory() as scratch:
        if side == "llamafactory":
            found = llama_factory(method, data, Path(scratch), steps)
        elif side in ("ft", "answers", "spin"):
            found = ours(method, data, Path(scratch), steps, fast=side != "answers")
        else:
            found = plain(method, data, Path(scratch), steps, best=side == "best")
    found["gflop_per_token"] = needed(method, data, steps)
    print("RESULT " + json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--methods", default="lora,qlora,full")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--busy", action="store_true", help="with one busy process beside")
    parser.add_argument("--short", action="store_true", help="one round of four steps, LoRA only")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.data / "train.jsonl").is_file():
        raise SystemExit(f"no {options.data}: make it with  ft data prepare builtin:bfcl --out {options.data}")
    if options.worker:
        worker(*options.worker, options.data, options.steps)
        return
    if options.short:
        options.rounds, options.steps, options.methods = 1, 4, "lora"
    rate = gemm_gflops()
    if options.busy:
        beside = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        atexit.register(beside.kill)
    print(
        f"{DTYPE} GEMM {rate:.0f} GFLOP/s; {options.steps} steps of {BATCH} rows, {options.rounds} interleaved rounds"
    )
    print("\n| method | side | tokens/s | of first | of GEMM | held-out loss | peak GB | each round |", flush=True)
    print("|---|---|---:|---:|---:|---:|---:|---|")
    headlines = []
    for method in options.methods.split(","):
        found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides.split(",")}
        for _ in range(options.rounds):
            for side, runs in found.items():
                command = [sys.executable, __file__, "--worker", side, method, "--data", str(options.data)]
                done = subprocess.run(
                    [*command, "--steps", str(options.steps)], capture_output=True, text=True, check=False,
                    env={**os.environ, **{"malloc": KEEP, "spin": SPIN}.get(side, {})},
                )  # fmt: skip
                line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
                if line is None:
                    raise SystemExit(f"{side} {method} failed:\n{done.stderr[-2000:]}")
                runs.append(json.loads(line.removeprefix("RESULT ")))
                print(f"  {method} {side}: {line}", file=sys.stderr, flush=True)
        rates = {side: statistics.median(r["tokens_per_s"] for r in runs) for side, runs in found.items()}
        base = next(iter(rates.values()))
        for side, runs in found.items():
            speed = rates[side]
            peak, loss = (statistics.median(r[k] for r in runs) for k in ("peak_gb", "loss"))
            each = ", ".join(f"{r['tokens_per_s']:.0f}" for r in runs)
            share = speed * runs[0]["gflop_per_token"] / rate
            line = f"| {method} | {side} | {speed:.0f} | {speed / base:.2f} | {share:.0%} | {loss:.4f} | {peak:.1f} | {each} |"
            print(line, flush=True)
            if side == "ft":
                what = f"{method} on this CPU{' beside a busy process' * options.busy}, tokens a second"
                beside = [f"{rates[s]:.0f}: {name}" for s, name in BESIDE.items() if s in rates and s != side]
                times = f", {speed / base:.1f} times as many" if next(iter(found)) in BESIDE else ""
                headlines.append(f"headline | {what} | {speed:.0f}{times} | {', '.join(beside)}")
    print("\n" + "\n".join(headlines))


if __name__ == "__main__":
    main()
