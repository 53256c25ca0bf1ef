"""What refuses an option, by how much, and the smallest change that would admit it."""

import math

from tunegate.advisor.constraints import Constraints
from tunegate.advisor.data_profile import DataProfile

# The last two: what is asked for, and priced, where there are no examples.
FEW_SHOTS, LEAST_SHOTS, LEAST_ROWS = 8, 3, 100
RETRIEVED_TOKENS = 1200.0
Violation = tuple[str, float, str]  # constraint, relative excess, smallest change that would admit it


def retrieves(method: str, c: Constraints) -> bool:
    """Whether passages are looked up into the prompt: by RAG always, beside a hosted API where facts change."""
    return method in ("rag", "rag_lora") or (method == "hosted_api" and c.facts == "changing")


def prompt_shape(method: str, c: Constraints) -> tuple[float, float]:
    """(input tokens, share of them found in the prefix cache) of one call with this method."""
    shots = min(FEW_SHOTS, c.examples or LEAST_SHOTS) * (c.input_tokens + c.output_tokens)
    if method == "few_shot":
        return c.input_tokens + shots, shots / (c.input_tokens + shots)
    if retrieves(method, c):
        return c.input_tokens + RETRIEVED_TOKENS, 0.0
    return c.input_tokens, 0.0


def over(name: str, needed: float, allowed: float | None) -> list[Violation]:
    """The violation of a budget, if it is one."""
    if allowed is None or needed <= allowed:
        return []
    return [(name, needed / max(0.01, allowed) - 1, f"raise {name} to {enough(needed)}")]


def too_late(needed: float, bound: float) -> Violation:
    """The violation of a latency bound (ms). A millionth more than needed: the bound is converted to seconds and back."""
    return ("p95_ms", needed / bound - 1, f"raise p95_ms from {bound:g} to {enough(needed * (1 + 1e-6))}")


def enough(needed: float) -> str:
    """A bound that admits what is needed: rounded up, to cents where they matter."""
    if not math.isfinite(needed):
        return "any"
    return f"{math.ceil(needed)}" if needed >= 100 else f"{math.ceil(needed * 100) / 100:g}"


def too_long(
    method: str, name: str, context: int | None, c: Constraints, profile: DataProfile | None
) -> list[Violation]:
    """Prompt, examples or passages, and answer have to go into the context, where it is known; with DATA, 95 % of its rows."""
    tokens = prompt_shape(method, c)[0] + c.output_tokens
    if profile is not None:
        tokens += (c.input_tokens + c.output_tokens) * max(0.0, profile.p95_tokens / profile.mean_tokens - 1.0)
    if context is None or tokens <= context:
        return []
    change = f"a model whose context holds {math.ceil(tokens):,} tokens ({name}: {context:,})"
    return [("context", tokens / context - 1, change)]


def untrainable(max_length: int, rows: float) -> list[Violation]:
    """Where no row of the data is short enough to be trained on. rows: share of them that is."""
    return [] if rows > 0 else [("context", 1.0, f"rows of at most {max_length:,} tokens to train on")]


def frozen(method: str, c: Constraints) -> list[Violation]:
    """What must be looked up is in no weights: they hold the facts of the day they were trained."""
    stale = c.facts == "changing" and not retrieves(method, c)
    return [("facts", 1.0, "only with --facts static")] if stale else []


def too_few(method: str, c: Constraints) -> list[Violation]:
    """Examples are needed to show, and to train on."""
    if c.examples >= 1 or method in ("prompt", "rag", "hosted_api"):
        return []
    wanted = f"{LEAST_SHOTS} examples to show" if method == "few_shot" else f"at least {LEAST_ROWS} examples"
    return [("examples", 1.0, f"collect {wanted}")]
