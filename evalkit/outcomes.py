"""What came of one item: the answer as it was received, each validator's verdict, and one outcome of a closed set."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# Openings of a refusal; looked at only where the answer is wrong anyway, to name the cause.
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very )?sorry|i am sorry|sorry|i apologi[sz]e|i['’]?m afraid|unfortunately)?\W*(but )?"
    r"(as an ai\b|i (can['’]?t|cannot|can not|won['’]t|will not)\b|i( am|['’]?m) (unable|not able) to\b)",
    re.IGNORECASE,
)

# What an endpoint whose account is empty or closed says, with HTTP 400 or 422 too.
_SPENT = re.compile(
    r"credit balance|out of credits?\b|(insufficient|not enough|no)[ _](funds|balance|credits?|quota)\b|\bbilling\b|payment required"
    r"|(exceeded|exhausted)[^.]{0,40}\bquota\b|\bquota\b[^.]{0,40}(exceeded|exhausted)"
    r"|\baccount\b[^.]{0,40}(not active|inactive|suspended|disabled|deactivated|overdue)",
    re.IGNORECASE,
)
DEAD_AFTER = 20  # requests in a row that nothing answered: the endpoint is gone, and asking on would only waste time
REJECTIONS = frozenset({400, 413, 422})  # HTTP: this request is wrong for this endpoint, whenever it is sent

# of an answer, where known
NUMBERS = ("latency_ms", "ttft_ms", "timed_out_ms", "prompt_tokens", "completion_tokens", "cost_usd")
COUNTS = ("prompt_tokens", "completion_tokens")  # those of them that are whole
# finish reasons in lower case: of an answer that ended by itself, of one that was cut, of one that was held back
ENDED = {
    "stop",
    "stop_sequence",
    "end_turn",
    "eos",
    "eos_token",
    "end_of_text",
    "complete",
    "completed",
    "finished",
    "done",
}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
HELD_BACK = {"content_filter", "content_filtered", "refusal", "safety"}
LARGEST = 1e15  # beyond any latency, count or price: sums of them stay numbers


def amount(name: str, value: Any) -> Any:
    """A value from somebody's file as the one of NUMBERS called `name`; a count of 1.0, as pandas writes it, is 1.

    Raises ValueError, with what it must be.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"must be a number from 0 to {LARGEST:.0e}")
    if name not in COUNTS:
        return value
    if value != int(value):
        raise ValueError(f"must be a whole number, found {value:g}")
    return int(value)


def is_spent(status: int | None, text: str) -> bool:
    """Whether an HTTP status and the text beside it say that the account pays for no more requests: nothing about the one made."""
    return status == 402 or (status in REJECTIONS and _SPENT.search(text) is not None)


class Outcome(StrEnum):
    """What came of one item. Only `infra_error` says nothing about the model; it is left out of every score."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    UNPARSABLE = "unparsable"
    INFRA_ERROR = "infra_error"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as it came. error: why there is none. Latencies in ms; timed_out_ms: how long one that never came was waited
    for. cost_usd: where the record says so. context: ids of the examples or passages that a prompted run was shown. rejected: why
    the endpoint takes no such request (HTTP 400, 413, 422); without an error beside it that is the system's own failure, not
    infrastructure's."""

    text: str = ""
    finish_reason: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1
    cost_usd: float | None = None
    context: dict[str, Any] | None = None
    rejected: str | None = None
    timed_out_ms: float | None = None

    @property
    def end(self) -> str | None:
        """The finish reason in lower case, without the name of its list (`FinishReason.STOP`); None where nothing tells it (Inspect
        writes `unknown` then)."""
        told = (self.finish_reason or "unknown").strip().lower().rpartition(".")[2]
        return None if told in ("", "unknown") else told

    @property
    def unfinished(self) -> str | None:
        """Why it is not the whole of what the model had to say: refused, filtered, cut or broken off; None where it ended by
        itself, and where nothing tells how it ended."""
        if self.refusal:
            return "refused"
        return None if self.end is None or self.end in ENDED else f"it ended with {self.finish_reason!r}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one validator says. score: 0 to 1. cause: one of a few words that failures are grouped by.

    parsable: False where the answer had not even the form that is judged (no JSON, no number). lost: there is no verdict, and
    it is not the answer's fault (a judge that said nothing readable).
    """

    passed: bool
    score: float
    reason: str = ""
    cause: str = ""
    parsable: bool = True
    lost: bool = False

    @staticmethod
    def yes(reason: str = "") -> "Verdict":
        """It passes."""
        return Verdict(passed=True, score=1.0, reason=reason)

    @staticmethod
    def no(reason: str, cause: str, *, score: float = 0.0) -> "Verdict":
        """It fails, and why."""
        return Verdict(passed=False, score=score, reason=reason, cause=cause)

    @staticmethod
    def unparsable(reason: str) -> "Verdict":
        """It has not the form that is judged."""
        return Verdict(passed=False, score=0.0, reason=reason, cause="unparsable", parsable=False)

    @staticmethod
    def none(reason: str) -> "Verdict":
        """Nothing is known of the answer, and why."""
        return Verdict(passed=False, score=0.0, reason=reason, cause=Outcome.INFRA_ERROR, lost=True)


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """One item: what was asked, what came, what it is worth.

    scores: by validator, 0 to 1, the mean over repeats. outcomes: of each repeat. reasons: by validator, of those that
    failed, of the repeat that the outcome is named by. judged: what each judge said of it, right or wrong.
    """

    id: str
    outcome: Outcome
    scores: dict[str, float]
    reason: str
    reasons: dict[str, str]
    cause: str
    answers: tuple[Answer, ...]
    outcomes: tuple[Outcome, ...]
    judged: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        """The answer that the outcome is named by: of several repeats the first with it."""
        return self.answers[self.outcomes.index(self.outcome)]


def outcome_of(answer: Answer, primary: Verdict) -> Outcome:
    """The outcome of an answer that arrived, by its primary validator.

    A right answer passes however it ended. A wrong one is named by its first cause: refused, cut off, without form, wrong.
    """
    if answer.error is not None:
        return Outcome.INFRA_ERROR
    if primary.passed:
        return Outcome.PASS
    if answer.refusal or answer.end in HELD_BACK:
        return Outcome.REFUSED
    if answer.end in CUT:
        return Outcome.TRUNCATED
    if _REFUSAL.match(answer.text[:200]):
        return Outcome.REFUSED
    return Outcome.FAIL if primary.parsable else Outcome.UNPARSABLE


def worst_of(outcomes: tuple[Outcome, ...]) -> Outcome:
    """One outcome for an item that was asked several times: what most of its failures are, pass only if all passed."""
    counted = [o for o in outcomes if o is not Outcome.INFRA_ERROR]
    if not counted:
        return Outcome.INFRA_ERROR
    failures = [o for o in counted if o is not Outcome.PASS]
    return max(failures, key=failures.count) if failures else Outcome.PASS
