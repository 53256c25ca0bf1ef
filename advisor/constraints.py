"""What the user asks for: options, a file, or the defaults that are stated as assumptions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.strict_yaml import place_of, read_yaml

NEEDS = ("format", "style", "latency", "cost", "quality", "privacy")
CHOICES = {
    "privacy": ("public", "no-egress"),
    "facts": ("static", "changing"),
    "domain": ("near", "far"),
    "ops": ("low", "medium", "high"),
    "quality": ("normal", "high", "max"),
}


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The question.

    calls_per_day: mean. input_tokens, output_tokens: mean per call. p95_ms: whole answer, 95th percentile. privacy:
    no-egress means data may not leave machines of ours. facts: changing knowledge must be looked up. needs: ordered,
    the first is the priority. examples: training rows at hand. domain: far means language the base has hardly seen.
    budget_usd: one-off. monthly_budget_usd: running. quality: max buys it at any size. hardware: GPU[:COUNT] owned, or
    cpu. ops: appetite to run servers. model: fixes the base model. peak_factor: busiest hour over mean. stated: names
    given by the user or measured from data; the rest are assumptions.
    """

    calls_per_day: float = 1000.0
    input_tokens: float = 600.0
    output_tokens: float = 150.0
    p95_ms: float | None = None
    privacy: str = "public"
    facts: str = "static"
    needs: tuple[str, ...] = ()
    examples: int = 0
    domain: str = "near"
    budget_usd: float | None = None
    monthly_budget_usd: float | None = None
    quality: str = "normal"
    hardware: str | None = None
    ops: str = "medium"
    model: str | None = None
    peak_factor: float = 3.0
    stated: frozenset[str] = field(default_factory=frozenset)

    @property
    def priority(self) -> str | None:
        """The first need, None when there is none."""
        return self.needs[0] if self.needs else None

    def under(self, over: "Constraints") -> "Constraints":
        """These with what `over` states laid over them; only what was stated, so that defaults stay assumptions."""
        told = {name: getattr(over, name) for name in over.stated}
        return replace(self, **told, stated=self.stated | over.stated)

    def wants(self, *names: str) -> bool:
        """True when any of these needs was named."""
        return any(name in self.needs for name in names)


NAMES = tuple(f.name for f in fields(Constraints) if f.name != "stated")
# Least (above 0 where the number is open) and most.
_RANGES = {
    "calls_per_day": (0.0, 1e10), "input_tokens": (0.0, 1e7), "output_tokens": (0.0, 1e6), "p95_ms": (0.0, 1e8),
    "peak_factor": (1.0, 1e3), "examples": (0.0, 1e10), "budget_usd": (0.0, 1e10), "monthly_budget_usd": (0.0, 1e10),
}  # fmt: skip
_ABOVE_ZERO = ("calls_per_day", "input_tokens", "output_tokens", "p95_ms")


def from_mapping(values: Mapping[str, Any], *, file: Path | None = None) -> Constraints:
    """Check values and make Constraints; a None is as if absent. file: where the values are from.

    Raises UserError for an unknown key (nearest name), a wrong type, an absurd number, an unknown choice; with the line
    where they are from a file.
    """
    clean: dict[str, Any] = {}
    for raw, value in values.items():
        name = str(raw).replace("-", "_")
        where = name if file is None else place_of(file, str(raw))
        if name not in NAMES:
            raise UserError(f"unknown constraint {raw!r}", where=where, hint=nearest(name, list(NAMES)))
        if name in clean:
            raise UserError(f"{name} stands twice", where=where)
        if value is not None:
            clean[name] = _check(name, value, where)
    return Constraints(**clean, stated=frozenset(clean))


def read_file(path: Path) -> dict[str, Any]:
    """A YAML file of constraints as a mapping. Raises UserError with the line of a fault."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise UserError("expected a mapping of constraints", where=str(path), hint=f"keys: {', '.join(NAMES)}")
    return document


def refuse_contradictions(c: Constraints) -> None:
    """Raise UserError naming the two constraints that cannot both hold."""
    if c.wants("privacy") and c.privacy == "public" and "privacy" in c.stated:
        raise _contradiction(
            "needs: privacy", "privacy: public", "say --privacy no-egress, or drop privacy from --needs"
        )
    own_nothing = c.hardware is None
    if c.privacy == "no-egress" and c.ops == "low" and own_nothing:
        raise _contradiction(
            "privacy: no-egress" if "privacy" in c.stated else "needs: privacy",
            "ops: low",
            "data that may not leave needs servers of your own: --ops medium, or name --hardware",
        )
    if c.privacy == "no-egress" and c.monthly_budget_usd == 0 and own_nothing:
        raise _contradiction(
            "privacy: no-egress" if "privacy" in c.stated else "needs: privacy",
            "monthly_budget_usd: 0",
            "name the hardware you own, or give a budget",
        )
    if c.domain == "far" and c.examples == 0 and "examples" in c.stated and c.quality == "max":
        raise _contradiction("quality: max", "examples: 0", "a far domain is learned from examples: collect some first")


def implied(c: Constraints) -> Constraints:
    """Constraints with what the stated ones mean: a need for privacy is that data may not leave."""
    if c.wants("privacy") and "privacy" not in c.stated:
        return replace(c, privacy="no-egress")
    return c


def with_data(c: Constraints, measured: Mapping[str, float]) -> Constraints:
    """Constraints with lengths and row count measured from data, where the user did not state them."""
    new = {name: value for name, value in measured.items() if name not in c.stated}
    if "examples" in new:
        new["examples"] = int(new["examples"])
    return replace(c, **new, stated=c.stated | frozenset(new))  # type: ignore[arg-type]


def _contradiction(one: str, other: str, hint: str) -> UserError:
    where = f"{one.partition(':')[0]}, {other.partition(':')[0]}"
    return UserError(f"contradictory constraints: {one} and {other}", where=where, hint=hint)


def _check(name: str, value: Any, where: str) -> Any:
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise UserError(f"unknown {name} {value!r}", where=where, hint=nearest(str(value), list(CHOICES[name])))
        return value
    if name == "needs":
        return _needs(value, where)
    if name in ("hardware", "model"):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{name} must be a name, found {value!r}", where=where)
        return value.strip()
    return _number(name, value, where)


def _needs(value: Any, where: str) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"needs must be a list of names, found {value!r}", where=where, hint=f"of {', '.join(NEEDS)}")
    names = [part.strip() for part in parts if part.strip()]
    for name in names:
        if name not in NEEDS:
            raise UserError(f"unknown need {name!r}", where=where, hint=nearest(name, list(NEEDS)))
    return tuple(dict.fromkeys(names))


def _number(name: str, value: Any, where: str) -> float | int:
    try:
        if isinstance(value, bool):
            raise TypeError
        amount = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a number, found {value!r}", where=where) from None
    except OverflowError:
        amount = math.inf
    least, most = _RANGES[name]
    if not math.isfinite(amount) or amount < least or amount > most or (name in _ABOVE_ZERO and amount == 0):
        words = "more than 0" if name in _ABOVE_ZERO else f"at least {least:g}"
        shown = value if math.isfinite(amount) else str(value)[:20]
        raise UserError(f"{name} must be {words} and at most {most:g}, found {shown}", where=where)
    if name != "examples":
        return amount
    if amount != int(amount):
        raise UserError(f"{name} must be a whole number, found {value!r}", where=where)
    return int(amount)
