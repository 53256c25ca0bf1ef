"""The proof of a merge: adapter on base, as PEFT computes it, against the merged weights, on the run's prompts and held-out
answers; and which base to merge onto, by what those answers say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.core.console import say, warn
from tunegate.core.errors import TunegateError
from tunegate.train.examples import Example
from tunegate.train.release import prove
from tunegate.train.release.merge_adapter import Adapter
from tunegate.train.release.prove import Said, as_facts, difference, listen, loss_of, words
from tunegate.train.release.prove_model import Source, given

# Rounding weights to bf16 moves logits by 1 to 7 hundredths of their spread (SmolLM2-135M; most after few steps, where an
# update is smaller than a weight's last place); a matrix in the place of its neighbour layer's moves them by 26 to 31.
LARGEST_MEAN_SHARE = 0.15
# From here it is said: the release may answer worse than base and adapter.
MUCH_MEAN_SHARE = 0.05
# Unrounded, the merge is the same arithmetic in another order: fp32's own error, as a share of the logits' spread.
LARGEST_UNROUNDED_SHARE = 1e-3
ANSWER_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is compared on. config: folder of the base's config; adapter: folder and reading of it; trained: the base as
    training saw it; prompts: of probe.json; rows: held-out answers; keep: the model stays in memory."""

    config: Path
    folder: Path
    adapter: Adapter
    trained: Source
    prompts: list[Example]
    rows: list[Example]
    pad: int
    stops: list[int]
    keep: bool
    vocabulary: int | None = None

    @property
    def all(self) -> list[Example]:
        """Prompts, then held-out rows."""
        return [*self.prompts, *self.rows]

    def trained_with_whole(self, name: str) -> Any:
        """The base's tensor; the adapter's own where it has one of more rows (tokens added to the base's)."""
        tensor = self.trained(name)
        own = self.adapter.whole.get(self.adapter.named(name))
        return (
            tensor
            if own is None or tensor.shape == self.adapter.files.specs[own].shape
            else self.adapter.files.read(own)
        )


@dataclass
class Reference:
    """What adapter on base says on all rows; its greedy answers (empty where the model does not stay in memory)."""

    said: list[Said]
    answers: list[list[int]] = field(default_factory=list)


def reference(bench: Bench) -> tuple[Reference, float]:
    """(adapter on base, how far the adapter moves the logits of the prompts on average)."""
    model = given(
        bench.config, bench.trained_with_whole, keep=bench.keep, adapter=bench.folder, vocabulary=bench.vocabulary
    )
    found = Reference(listen(model, bench.all, "adapter on base", pad=bench.pad))
    found.answers = _answers(model, bench)
    with model.disable_adapter():
        bare = listen(model, bench.prompts, "base alone", pad=bench.pad)
    return found, difference(found.said[: len(bare)], bare).mean_logit_difference


def check_arithmetic(bench: Bench, known: Reference, merged_config: Path) -> float:
    """The merge before rounding equals adapter on base; the mean difference of logits.

    Raises TunegateError where it does not: a fault in the merge, which rounding would hide.
    """
    model = given(merged_config, lambda name: bench.adapter.apply(name, bench.trained(name)), keep=False)
    said = listen(model, bench.prompts, "merged, unrounded", pad=bench.pad)
    found = difference(known.said[: len(said)], said)
    if not found.mean_logit_difference <= LARGEST_UNROUNDED_SHARE * found.spread:
        raise TunegateError(
            f"the merged model does not answer as the adapter on its base does, rounding apart (logits differ by "
            f"{found.mean_logit_difference:.4f} on average); nothing was written",
            hint="serve base and adapter: ft merge --keep-adapter",
        )
    return found.mean_logit_difference


def choose(
    bench: Bench, candidates: dict[str, Source], merged_config: Path, asked: str
) -> tuple[str, dict[str, float]]:
    """(the base to merge onto, the held-out loss of each): the one asked for, or the one that answers better.

    A later candidate has to be better, not equal; without held-out rows it is the first.
    """
    losses = {}
    for onto, source in candidates.items():
        model = given(merged_config, source, keep=bench.keep)
        losses[onto] = loss_of(listen(model, bench.rows, f"merged onto the {onto} base", pad=bench.pad))
    best = asked if asked in candidates else min(losses, key=lambda onto: losses[onto])
    shown = ", ".join(f"{onto} {loss:.4f} (perplexity {math.exp(loss):.3f})" for onto, loss in losses.items())
    why = "as asked" if asked in candidates else "the better one is kept"
    say(f"loss on {len(bench.rows)} held-out answers, merged onto: {shown}; {best}: {why}")
    return best, losses


def check_files(bench: Bench, known: Reference, effect: float, merged: Path, source: Source) -> dict[str, Any]:
    """Read the written weights and compare: the proof as it stands in `release.yaml`, printed.

    Raises TunegateError when they are further from adapter on base than rounding explains.
    """
    model = given(merged, source, keep=bench.keep)
    said = listen(model, bench.all, "merged", pad=bench.pad)
    found = difference(known.said, said)
    answers = _answers(model, bench)
    proof: dict[str, Any] = {
        "prompts": len(bench.prompts),
        **as_facts(found),
        "adapter_effect": round(effect, 7),
        **_held_out(bench, known.said, said),
    }
    say(f"merged against adapter on base, {found.rows} prompts and held-out answers: {words(found)}")
    if answers:
        proof["greedy_prompts"] = len(answers)
        proof["equal_greedy_answers"] = sum(a == b for a, b in zip(known.answers, answers, strict=True))
        say(f"greedy answers (up to {ANSWER_TOKENS} tokens): {proof['equal_greedy_answers']} of {len(answers)} equal")
    if not found.mean_logit_difference <= LARGEST_MEAN_SHARE * found.spread:
        raise TunegateError(
            "the merged model does not answer as the adapter on its base does; nothing was written",
            where=str(bench.folder),
        )
    if found.mean_logit_difference > min(effect / 2, MUCH_MEAN_SHARE * found.spread):
        warn(
            f"rounding the merged weights moves logits by {found.mean_logit_difference:.4f}, {found.mean_logit_difference / found.spread:.1%} "
            f"of their spread; the adapter itself moves them by {effect:.4f}: some of what was learnt may be lost, the gate shows it; "
            "--keep-adapter serves base and adapter instead"
        )
    return proof


def _held_out(bench: Bench, before: Sequence[Said], after: Sequence[Said]) -> dict[str, Any]:
    if not bench.rows:
        return {"held_out_rows": 0}
    first = len(bench.prompts)
    losses = {"adapter": loss_of(before[first:]), "merged": loss_of(after[first:])}
    say(f"loss on {len(bench.rows)} held-out answers: adapter {losses['adapter']:.4f}, merged {losses['merged']:.4f}")
    tokens = sum(len(s.labels) for s in after[first:])
    score = prove.answers(before[first:], after[first:])
    say(f"held-out answers given exactly: adapter {score['before']}, merged {score['after']} of {score['rows']}")
    return {
        "held_out_rows": len(bench.rows),
        "held_out_tokens": tokens,
        "held_out_loss": losses,
        "exact_answers": score,
    }


def _answers(model: Any, bench: Bench) -> list[list[int]]:
    """Greedy answers to the prompts, where the model stays in memory."""
    import torch

    if not bench.keep or not bench.prompts:
        return []
    width = max(len(p.input_ids) for p in bench.prompts)
    rows = [[bench.pad] * (width - len(p.input_ids)) + p.input_ids for p in bench.prompts]
    mask = [[0] * (width - len(p.input_ids)) + [1] * len(p.input_ids) for p in bench.prompts]
    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask), max_new_tokens=ANSWER_TOKENS, do_sample=False,
            pad_token_id=bench.pad, eos_token_id=bench.stops,
        )  # fmt: skip
    return [list(row[width:].tolist()) for row in made]
