"""`gate.yaml`: the conditions under which a candidate may replace the baseline, checked before anything is asked."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunegate.core.errors import UserError
from tunegate.core.measurements import load_metrics
from tunegate.core.strict_yaml import read_yaml
from tunegate.evalkit.options import build
from tunegate.evalkit.summary import LEAKAGE

PAIRED = ("non_inferior", "superior")
MAX_INFRA_ERROR_RATE = 0.05
TAKES = {"non_inferior": "margin", "superior": None, "at_least": "value", "at_most": "value"}  # what a rule is given


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition. margin: of non_inferior, in the metric's unit. value: of at_least and at_most. slice: a slice key; the
    condition must then hold for each of its values."""

    metric: str
    rule: Literal["non_inferior", "superior", "at_least", "at_most"]
    margin: float | None = field(default=None, metadata={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
    value: float | None = None
    slice: str | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """alpha: the promised error rate of each condition, on each side. max_infra_error_rate: above it nothing is judged; None:
    what a condition on infra_error_rate says, else `MAX_INFRA_ERROR_RATE`."""

    conditions: tuple[Condition, ...] = field(metadata={"minItems": 1})
    alpha: float = field(default=0.05, metadata={"minimum": 1e-9, "exclusiveMaximum": 0.5})
    max_infra_error_rate: float | None = field(default=None, metadata={"minimum": 0, "maximum": 1})

    def check(self, where: str) -> None:
        """Raise UserError, with the key, for a rule without its number or with another's."""
        for index, condition in enumerate(self.conditions):
            _check(condition, f"{where} conditions[{index}]")

    def to_json(self) -> dict[str, Any]:
        """What `gate.yaml` would hold."""
        given = [{key: value for key, value in asdict(c).items() if value is not None} for c in self.conditions]
        return {**asdict(self), "conditions": given}


def load_policy(path: Path) -> Policy:
    """Read and check a `gate.yaml`. Raises UserError with file and key."""
    return make_policy(read_yaml(path), str(path))


def make_policy(given: Any, where: str) -> Policy:
    """A policy from a mapping. Raises UserError with `where` and key."""
    policy = build(Policy, given, where=where, base=Path())
    policy.check(where)
    return policy


def default_policy(primary: str) -> Policy:
    """Without a policy: the primary metric is not inferior by more than 0.02, alpha 0.05."""
    return Policy(conditions=(Condition(metric=primary, rule="non_inferior", margin=0.02),))


def _check(condition: Condition, where: str) -> None:
    wanted = TAKES[condition.rule]
    for name in ("margin", "value"):
        if (getattr(condition, name) is None) == (name == wanted):
            word = f"needs a {name}" if name == wanted else f"takes no {name}"
            hint = "margin: 0.02 is two points" if name == wanted == "margin" else None
            raise UserError(f"{condition.rule} {word}", where=f"{where} {name}", hint=hint)
    if condition.slice is not None and condition.metric in ("size_bytes", *LEAKAGE, *load_metrics()):
        raise UserError(f"{condition.metric} has no slices", where=f"{where} slice")
