"""`merge(Run) -> Release`: the adapter folded into its base, in fp32, rounded to bf16 once, and compared with what it was."""

import json
import shutil
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Release, Run
from tunegate.core.chat_template import template_digest
from tunegate.core.console import progress, say
from tunegate.core.errors import TunegateError, UserError
from tunegate.core.files import new_folder
from tunegate.core.machine import memory_gb
from tunegate.core.model_source import ModelSource, quiet_transformers
from tunegate.train.model_loading import load_tokenizer
from tunegate.train.release import card

# Rounding weights to bf16 moves logits by a few hundredths; far more than that means that the merge went wrong.
LARGEST_MEAN_DIFFERENCE = 0.25


def merge(run: Run, base: ModelSource, out: Path, *, force: bool) -> Release:
    """Write a release with merged bf16 weights, tokenizer, template and generation config.

    Raises UserError when the base is not the one the run was trained on; TunegateError when the merged model does not
    answer as the adapter on its base does.
    """
    _same_base(run, base)
    quiet_transformers()
    tokenizer = load_tokenizer(ModelSource(str(run.path), "folder", str(run.path), run.path.name))
    if template_digest(tokenizer) != run.manifest.facts["template_digest"]:
        raise UserError(
            "the run's chat template is not the one it was trained with", where=str(run.path), hint="ft verify"
        )
    model, proof = _full(run) if run.method == "full" else _merged(run, base)
    dataset = next((i for i in run.manifest.inputs if i.role == "dataset"), None)
    facts: dict[str, Any] = {
        "base": run.base,
        "base_name": run.manifest.facts.get("base_name", run.base),
        "license": run.manifest.facts.get("license"),
        "method": run.method,
        "quantization": "none",
        "template_digest": template_digest(tokenizer),
        "probe_digest": run.manifest.facts["probe_digest"],
        "dataset_digest": dataset.digest if dataset else "unknown",
        "run_digest": run.digest,
        "merge": proof,
    }
    with new_folder(out, force=force) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        shutil.copy(run.path / "probe.json", folder / "probe.json")
        facts["bytes"] = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        card.write(folder, facts, name=out.name)
        manifests.write(folder, "release", inputs=[run.as_input("run")], config={}, facts=facts)
    return Release.open(out)


def _same_base(run: Run, base: ModelSource) -> None:
    trained = next((i for i in run.manifest.inputs if i.role == "base_model"), None)
    if trained is not None and trained.digest != base.as_input().digest:
        raise UserError(
            f"the base model {base.spec!r} has changed since the run was trained on it",
            where=base.location,
            hint="restore the base the run was trained on; its digest is in the run's manifest",
        )


def _full(run: Run) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(run.path, dtype=torch.bfloat16), {
        "kind": "full weights, nothing to merge"
    }


def _merged(run: Run, base: ModelSource) -> tuple[Any, dict[str, Any]]:
    """The merged model in bf16 and the proof that it answers as before."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(_load_base(run, base), str(run.path))
    model.eval()
    prompts = json.loads((run.path / "probe.json").read_text(encoding="utf-8"))["prompts"]
    before = _logits(model, prompts, "adapter on base")
    merged = model.merge_and_unload()
    # Round to bf16, then compare in fp32: what differs is the rounding of the weights, not of the arithmetic.
    merged.to(torch.bfloat16).float()
    after = _logits(merged, prompts, "merged")
    merged.to(torch.bfloat16)
    merged.config.dtype = torch.bfloat16
    merged.config.use_cache = True
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    pairs = list(zip(before, after, strict=True))
    proof = {
        "kind": "adapter merged in fp32, rounded to bf16 once",
        "prompts": len(prompts),
        "max_logit_difference": max(float((a - b).abs().max()) for a, b in pairs),
        "mean_logit_difference": sum(float((a - b).abs().mean()) for a, b in pairs) / len(pairs),
        "same_next_token_share": sum(float((a.argmax(-1) == b.argmax(-1)).float().mean()) for a, b in pairs)
        / len(pairs),
    }
    say(
        f"merged against adapter on base, {proof['prompts']} prompts: logits differ by {proof['mean_logit_difference']:.4f} "
        f"on average, {proof['max_logit_difference']:.3f} at most; same next token at {proof['same_next_token_share']:.1%} of positions"
    )
    if float(str(proof["mean_logit_difference"])) > LARGEST_MEAN_DIFFERENCE:
        raise TunegateError(
            "the merged model does not answer as the adapter on its base does; nothing was written", where=str(run.path)
        )
    return merged, proof


def _load_base(run: Run, base: ModelSource) -> Any:
    """The base in fp32 (bf16 where memory would not hold it); for qlora the dequantised NF4 weights it was trained on."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunegate.train.config import TrainConfig
    from tunegate.train.model_loading import load_base

    if run.method == "qlora":
        config = TrainConfig(method="qlora", model=run.base)
        return load_base(base, config, "cpu", "sdpa").dequantize().to(torch.float32)
    fits = float(run.manifest.facts["total_params"]) * 4 / 1e9 < 0.6 * memory_gb()
    if not fits:
        say("not enough memory to merge in fp32: merging in bf16")
    dtype = torch.float32 if fits else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(base.location, revision=base.revision, dtype=dtype)


def _logits(model: Any, prompts: list[dict[str, Any]], what: str) -> list[Any]:
    """Logits of each probe prompt, a list of (S, V) fp32 tensors, each position's mean taken off: a shift of all of
    them changes no probability."""
    import torch

    found = []
    with torch.no_grad(), progress(f"probing {what}", len(prompts)) as tick:
        for prompt in prompts:
            logits = model(torch.tensor([prompt["ids"]])).logits[0].float()
            found.append(logits - logits.mean(-1, keepdim=True))
            tick()
    return found
