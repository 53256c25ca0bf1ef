"""llama.cpp at work: convert and quantize, tokenize, answer. Runs in an environment of its own and imports nothing of ours.

python gguf_export.py JOB.json  with {action: make|probe, result, ...}; progress as lines `step NAME` on standard error.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

DIRECT = ("f32", "f16", "bf16", "q8_0")  # what the converter itself writes; the others are quantized from bf16


def main(path):
    """Do the job and write its result file."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    result = {"make": make, "probe": probe}[job["action"]](job)
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def step(name):
    """Say what begins now."""
    print(f"step {name}", file=sys.stderr, flush=True)


def make(job):
    """model (a folder) -> out (a .gguf file) of `type`."""
    out, kind = Path(job["out"]), job["type"]
    first = out if kind in DIRECT else out.with_suffix(".bf16.gguf")
    step("converting")
    convert(job["converter"], job["model"], first, kind if kind in DIRECT else "bf16")
    if kind not in DIRECT:
        step("quantizing")
        quantize(first, out, kind, job["threads"])
        first.unlink()
    return {"bytes": out.stat().st_size}


def convert(converter, model, out, kind):
    """Run the converter; its last lines go to standard error where it fails."""
    command = [sys.executable, converter, "--outfile", str(out), "--outtype", kind, model]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        print("\n".join((done.stderr or done.stdout).strip().splitlines()[-30:]), file=sys.stderr)
        raise SystemExit(3)


def quantize(source, out, kind, threads):
    """llama_model_quantize, from bf16."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)):
        raise SystemExit("llama.cpp refuses to quantize this model")


def probe(job):
    """Load the model once: token ids of `texts`, and for each of `prompts` ({ids, answer}) its greedy answer and, reading
    the given answer along, at how many of its tokens it would have said the same."""
    import llama_cpp
    import numpy as np
    from llama_cpp import Llama

    step("loading")
    longest = max([len(p["ids"]) + max(len(p["answer"]), job["max_tokens"]) for p in job["prompts"]] or [64]) + 8
    model = Llama(job["model"], n_ctx=longest, n_threads=job["threads"], logits_all=True, verbose=False)
    texts = [model.tokenize(text.encode("utf-8"), add_bos=False, special=True) for text in job["texts"]]
    answers, agreeing = [], []
    for number, prompt in enumerate(job["prompts"]):
        step(f"answering {number + 1} of {len(job['prompts'])}")
        model.reset()
        model.eval(prompt["ids"] + prompt["answer"])
        start = len(prompt["ids"]) - 1
        said = np.argmax(model.scores[start : start + len(prompt["answer"])], axis=-1)
        agreeing.append(int(np.sum(said == np.array(prompt["answer"], dtype=said.dtype))))
        answers.append(greedy(model, prompt["ids"], job["stops"], job["max_tokens"]))
    adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model.model)))
    found = {"texts": texts, "answers": answers, "agreeing": agreeing}
    return {**found, "vocabulary": model.n_vocab(), "adds_bos": adds_bos}


def greedy(model, ids, stops, limit):
    """The most likely token, one by one, until a stop token (kept) or `limit`."""
    import numpy as np

    model.reset()
    model.eval(ids)
    answer = []
    while len(answer) < limit and (not answer or answer[-1] not in stops):
        answer.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        if len(answer) < limit and answer[-1] not in stops:
            model.eval(answer[-1:])
    return answer


if __name__ == "__main__":
    main(sys.argv[1])
