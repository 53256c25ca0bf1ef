"""AWQ W4A16 with AutoAWQ 0.2.9. Runs in an environment of its own, so it imports nothing of ours.

Usage: python autoawq_awq.py JOB.json with the same job as llmcompressor_awq.py. AutoAWQ has no loss mask and joins rows to
blocks of one length: all tokens of all rows are used, cut into equal blocks. Progress: one line a layer, `layer I`.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
BLOCK = 512  # tokens, at most


def readable(model: Path, copy: Path) -> None:
    """A copy (weights linked) that transformers 4.51.3 reads: `rope_parameters`, `dtype` and the tokenizer's class are named
    otherwise there."""
    copy.mkdir()
    for path in model.iterdir():
        if path.suffix in (".safetensors", ".jinja", ".json"):
            (copy / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    config["torch_dtype"] = config.pop("dtype", config.get("torch_dtype", "bfloat16"))
    replace(copy / "config.json", config)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    if tokenizer.get("tokenizer_class", "").endswith("Backend"):
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    replace(copy / "tokenizer_config.json", tokenizer)


def replace(path: Path, value: dict) -> None:
    """Write JSON in place of a link."""
    path.unlink()
    path.write_text(json.dumps(value), encoding="utf-8")


def blocks(rows: list[list[int]]) -> list:
    """All tokens of all rows, one after the other, in equal blocks of at most `BLOCK` tokens, each (1, length); the last one
    is filled up with the first tokens."""
    import torch

    ids = [token for row in rows for token in row]
    count = -(-len(ids) // BLOCK)
    length = -(-len(ids) // count)
    ids += ids[: count * length - len(ids)]
    return [torch.tensor([ids[i * length : (i + 1) * length]]) for i in range(count)]


def main(job_path: str) -> None:
    """Run one job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    started = time.monotonic()
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize import quantizer
    from transformers import AutoTokenizer

    torch.manual_seed(job["seed"])
    rows = [json.loads(line)["input_ids"] for line in Path(job["calibration"]).read_text(encoding="utf-8").splitlines()]
    if not sum(map(len, rows)):
        raise SystemExit("there is not one calibration token")
    quantizer.get_calib_dataset = lambda **_: blocks(rows)

    def counted(layers, **_):
        for number, layer in enumerate(layers):
            yield layer
            print(f"layer {number + 1}", file=sys.stderr, flush=True)

    quantizer.tqdm = counted
    copy = Path(job_path).with_name("readable")
    readable(Path(job["model"]), copy)
    with contextlib.redirect_stdout(sys.stderr):
        tokenizer = AutoTokenizer.from_pretrained(copy, trust_remote_code=False)
        model = AutoAWQForCausalLM.from_pretrained(
            str(copy),
            device_map="cpu",
            torch_dtype=torch.bfloat16,
            safetensors=True,
            use_cache=False,
            trust_remote_code=False,  # AutoAWQ's own default is True
        )
        loaded, loaded_cpu = time.monotonic() - started, time.process_time()
        settings = {"zero_point": True, "q_group_size": job["group_size"], "w_bit": 4, "version": "GEMM"}
        model.quantize(tokenizer, quant_config=settings, calib_data=rows)
        model.save_quantized(job["out"])
    result = {
        "seconds": time.monotonic() - started,
        "loading_seconds": loaded,
        "cpu_seconds": time.process_time(),
        "loading_cpu_seconds": loaded_cpu,
        "rows_used": len(rows),
        "tokens_used": sum(map(len, rows)),
    }
    Path(job_path).with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
