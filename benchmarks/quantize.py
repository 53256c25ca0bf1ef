"""Time of our quantizer against AutoAWQ's, on one two-layer model with the same calibration rows and group size.

Prints the seconds of work, and apart from them those for loading libraries and model, which do not grow with the layers.
Nothing is extrapolated: two layers are measured.

Usage: python benchmarks/quantize.py [--short] [--hidden 576] [--ffn 1536] [--rows 128] [--tokens 256]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tunegate.core.files import write_json
from tunegate.train.release import environments, quantize_worker


def make_model(folder: Path, hidden: int, ffn: int, vocabulary: int) -> None:
    """A Llama of two layers of the given widths with random weights, and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<end>", *alphabet])}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=2,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 192), tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def run(backend: str, work: Path, model: Path, rows: list[list[int]], group: int, **choice: str) -> dict:
    """Seconds of one quantizer: inside it, and with its start."""
    environments.ensure(backend)
    place = work / "-".join([backend, *choice.values()])
    place.mkdir()
    lines = [json.dumps({"input_ids": row, "loss_mask": [1] * len(row)}) for row in rows]
    (place / "calibration.jsonl").write_text("\n".join(lines) + "\n")
    job = {"model": str(model), "out": str(place / "out"), "calibration": str(place / "calibration.jsonl"), "scheme": "awq",
           "group_size": group, "symmetric": False, "batch_size": 8, "ignore": ["lm_head"], "grid": 20,
           "search": "gram", "rounding": "gptq", "seed": 0, **choice}  # fmt: skip
    write_json(place / "job.json", job)
    started = time.monotonic()
    quantize_worker.run(
        backend, place / "job.json", 2 * (2 if job["rounding"] == "gptq" and backend != "autoawq" else 1)
    )
    result = json.loads((place / "result.json").read_text())
    return {**result, "with_start": time.monotonic() - started}


def main() -> None:
    """Measure and print one line a quantizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="16 rows of 128 tokens, narrow layers: seconds")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--ffn", type=int, default=1536)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256, help="tokens a row")
    options = parser.parse_args()
    if options.short:
        options.hidden, options.ffn, options.rows, options.tokens = 192, 512, 16, 128
    import torch

    torch.manual_seed(1)
    rows = torch.randint(1, 256, (options.rows, options.tokens)).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_model(work / "model", options.hidden, options.ffn, 1024)
        theirs = run("autoawq", work, work / "model", rows, 32)
        print(
            f"two layers, hidden {options.hidden}, feed-forward {options.ffn}, {options.rows} rows of {options.tokens} tokens"
        )
        print(f"AutoAWQ 0.2.9: {words(theirs)}")
        for rounding in ("gptq", "nearest"):
            ours = run("llmcompressor", work, work / "model", rows, 32, rounding=rounding)
            print(f"ours, {rounding}: {words(ours)}; {working(ours) / working(theirs):.1%} of AutoAWQ's work")


def working(result: dict) -> float:
    """Seconds after the libraries and the model were loaded."""
    return result["seconds"] - result["loading_seconds"]


def words(result: dict) -> str:
    """Work, loading and start apart: only the first grows with the layers."""
    return (
        f"{working(result):.1f} s of work, {result['loading_seconds']:.1f} s for loading libraries and model "
        f"({result['with_start']:.1f} s in all)"
    )


if __name__ == "__main__":
    main()
