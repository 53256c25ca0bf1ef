"""Answers to results: every validator on every answer, one row of `results.jsonl` an item."""

from collections import Counter
from dataclasses import replace
from typing import Any

from tunegate.core.console import warn
from tunegate.core.rows import Row
from tunegate.evalkit.extract import extract
from tunegate.evalkit.outcomes import Answer, ItemResult, Outcome, Verdict, outcome_of, worst_of
from tunegate.evalkit.runner import prompt_digest
from tunegate.evalkit.task import EvalTask

REJECTED = "rejected_request"  # the cause of a failure that the endpoint's refusal of the request is
REFUSED = "refused: "  # opens the reason of a refusal
SLOW = {"sql", "judge", "python"}
EACH = {  # what of an answer is kept for each repeat, and under which name
    "tool_calls": "each_tool_calls",
    "finish_reason": "finish_reasons",
    "prompt_tokens": "each_prompt_tokens",
    "completion_tokens": "each_completion_tokens",
    "error": "errors",
    "timed_out_ms": "each_timed_out_ms",
}


def verdicts(task: EvalTask, row: Row, answer: Answer) -> dict[str, Verdict]:
    """What each validator says of one answer, by the validator's name."""
    if answer.rejected:
        refused = Verdict.no(f"the endpoint takes no such request: {answer.rejected}", REJECTED)
        return dict.fromkeys((validator.name for validator in task.validators), refused)
    judged = replace(answer, text=extract(answer.text, task.file.extract)) if task.file.extract else answer
    return {validator.name: validator.judge(judged, row) for validator in task.validators}


def own_failures(answers: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
    """Requests that the endpoint rejects are the system's failures where it answers others; where it takes none, it is set up
    wrong, and they stay errors."""
    if all(answer.error is not None for each in answers.values() for answer in each):
        return answers
    return {
        key: [replace(answer, error=None) if answer.rejected else answer for answer in each]
        for key, each in answers.items()
    }


def _said(task: EvalTask, row: Row, answer: Answer) -> tuple[Answer, dict[str, Verdict] | None]:
    """An answer and what is said of it; None, and the answer with its error, where nothing is by the primary validator."""
    if answer.error is not None:
        return answer, None
    found = verdicts(task, row, answer)
    primary = found[task.primary]
    return (replace(answer, error=primary.reason), None) if primary.lost else (answer, found)


def score(task: EvalTask, row: Row, given: list[Answer]) -> ItemResult:
    """The result of one item from its answers, one for each repeat."""
    pairs = [_said(task, row, answer) for answer in given]
    answers, said = [answer for answer, _ in pairs], [found for _, found in pairs]
    outcomes = tuple(
        Outcome.INFRA_ERROR if verdict is None else outcome_of(answer, verdict[task.primary])
        for answer, verdict in zip(answers, said, strict=True)
    )
    outcome = worst_of(outcomes)
    index = outcomes.index(outcome)
    found = said[index]
    scores = {}
    for validator in task.validators:
        told = [each[validator.name] for each in said if each is not None and not each[validator.name].lost]
        if told:
            scores[validator.name] = sum(verdict.score for verdict in told) / len(told)
    reason, cause = _why(outcome, answers[index], None if found is None else found[task.primary])
    return ItemResult(
        id=row.id,
        outcome=outcome,
        scores=scores | _weighted(task, scores),
        reason=reason,
        reasons={name: v.reason or v.cause for name, v in (found or {}).items() if not v.passed},
        cause=cause,
        judged={v.name: found[v.name].reason for v in task.validators if v.kind == "judge"} if found else {},
        answers=tuple(answers),
        outcomes=outcomes,
    )


def _why(outcome: Outcome, answer: Answer, primary: Verdict | None) -> tuple[str, str]:
    if primary is None:
        return answer.error or "no answer", Outcome.INFRA_ERROR
    if outcome is Outcome.PASS:
        return primary.reason, ""
    if outcome is Outcome.TRUNCATED:
        return f"cut off at max_tokens; {primary.reason}", outcome
    if outcome is Outcome.REFUSED:
        return f"{REFUSED}{answer.refusal or answer.text[:200]}", outcome
    return primary.reason, primary.cause or outcome


def _weighted(task: EvalTask, scores: dict[str, float]) -> dict[str, float]:
    total = sum(v.weight for v in task.validators)
    if not total or any(v.weight and v.name not in scores for v in task.validators):
        return {}
    return {"weighted": sum(v.weight * scores[v.name] for v in task.validators if v.weight) / total}


def result_row(task: EvalTask, row: Row, result: ItemResult) -> dict[str, Any]:
    """One item as it stands in `results.jsonl`."""
    answer = result.answer
    repeats = (
        {}
        if len(result.answers) == 1
        else {
            "outcomes": [str(o) for o in result.outcomes],
            "outputs": [a.text for a in result.answers],
            "latencies_ms": [a.latency_ms for a in result.answers],
            "ttfts_ms": [a.ttft_ms for a in result.answers],
            **{many: [getattr(a, one) for a in result.answers] for one, many in EACH.items()},
        }
    )
    slices = {key: value for key in task.file.slices if (value := task.slice_of(row, key)) is not None}
    group = task.group_of(row)
    return {
        "id": row.id,
        "output": answer.text,
        "outcome": str(result.outcome),
        "scores": result.scores,
        "reason": result.reason,
        "reasons": result.reasons,
        "cause": result.cause,
        "latency_ms": answer.latency_ms,
        "ttft_ms": answer.ttft_ms,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish_reason": answer.finish_reason,
        "attempts": answer.attempts,
        "error": answer.error,
        "tool_calls": answer.tool_calls,
        "cost_usd": _mean([_cost(task, a) for a in result.answers if a.error is None]),
        "prompt_digest": prompt_digest(task, row),
        "messages": task.messages(row),
        "expected": row.expected,
        "tags": {**row.tags, **slices},
        "group": None if group.startswith("\0") else group,
        **({"judged": result.judged} if result.judged else {}),
        **({"context": answer.context} if answer.context else {}),
        **({"rejected": answer.rejected} if answer.rejected else {}),
        **({} if answer.timed_out_ms is None else {"timed_out_ms": answer.timed_out_ms}),
        **({"unjudged": True} if answer.error and answer.text else {}),
        **repeats,
    }


def _cost(task: EvalTask, answer: Answer) -> float | None:
    """What the answer cost in USD: as recorded, else by the task's token prices."""
    price = task.file.price
    if answer.cost_usd is not None or price is None:
        return answer.cost_usd
    if answer.rejected:
        return 0.0
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    prompt_usd = answer.prompt_tokens * price.prompt_usd_per_1m
    return (prompt_usd + answer.completion_tokens * price.completion_usd_per_1m) / 1e6


def _mean(costs: list[float | None]) -> float | None:
    """Mean cost of one answer; None where one of them is not known."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) / len(known) if known and len(known) == len(costs) else None


def check_gold(task: EvalTask) -> int:
    """Judge the expected answers themselves and warn of those that do not pass: number of them.

    A row whose own answer fails can be passed by no model; usually the data is wrong, or the validator.
    """
    if any(v.kind in SLOW for v in task.validators):
        return 0
    failing: list[str] = []
    kinds: Counter[str] = Counter()
    plain = replace_extract(task)
    for row in task.rows:
        calls = list(row.messages[-1].get("tool_calls") or [])
        gold = Answer(text=row.expected, tool_calls=calls, finish_reason="stop")
        bad = [name for name, verdict in verdicts(plain, row, gold).items() if not verdict.passed]
        failing += [row.id] if bad else []
        kinds.update(bad)
    if failing:
        by = ", ".join(f"{name} {n}" for name, n in kinds.most_common())
        warn(f"{len(failing)} of {len(task.rows)} expected answers do not pass themselves ({by}); first: {failing[0]}")
    return len(failing)


def replace_extract(task: EvalTask) -> EvalTask:
    """The task without extraction steps: an expected answer needs none."""
    return replace(task, file=replace(task.file, extract=()))
