"""The two sides of a split compared: train rows that ask what an eval row asks, equal under a rule or near. Eval stays as it is."""

from collections.abc import Callable, Sequence

from tunegate.core.rows import Row
from tunegate.train.data.beginnings import Beginnings, common
from tunegate.train.data.judge import Judge
from tunegate.train.data.leakage import near_twins
from tunegate.train.data.normalize import RULE_NAMES, input_key, normalized, said_key, user_text
from tunegate.train.data.rejected import Reason, Rejected
from tunegate.train.data.twins import Pair

LEAK = f"system and user turns and tools equal to an eval row's: {RULE_NAMES['normalized']}; operators as they are"


def without_leaks(train: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], list[Rejected]]:
    """Train without the rows that ask an eval row's whole prompt, before their answer or an earlier one, and those rows."""
    prompts = {key: row for row in reversed(held_out) if (key := input_key(row))}
    texts = {normalized(user_text(row)) for row in held_out}
    beginnings = Beginnings(held_out)
    begun = [[key for part in beginnings.of(row) if (key := input_key(part)) in prompts] for row in train]
    openings = common((key for each in begun for key in each), len(train))
    kept, leaks = [], []
    for row, each in zip(train, begun, strict=True):
        whole = [input_key(row)] if normalized(user_text(row)) in texts else []  # quick, and equal where a key is
        asked = (*whole, *(key for key in each if key not in openings))
        twin = next((prompts[key] for key in asked if key in prompts), None)
        if twin is None:
            kept.append(row)
        else:
            leaks.append(Rejected.of(row, Reason.LEAKS_EVAL, kept=twin.id, rule=LEAK, score=1.0))
    return kept, leaks


def equal_asked(train: Sequence[Row], held_out: Sequence[Row]) -> dict[str, list[Pair]]:
    """The train rows that are or begin as an eval row (a: the eval row), by kind. same_input: with its whole prompt;
    same_user_text: with its user text, under another system text or with other tools."""
    whole, said = _asked(train, held_out, input_key), _asked(train, held_out, said_key)
    found: dict[str, list[Pair]] = {"same_input": [], "same_user_text": []}
    for row, same, text in zip(train, whole, said, strict=True):
        if twin := same or text:
            found["same_input" if same else "same_user_text"].append(Pair(a=twin, b=row, score=1.0))
    return found


def _asked(train: Sequence[Row], held_out: Sequence[Row], key: Callable[[Row], str]) -> list[Row | None]:
    """For each train row the first eval row whose key it, or a beginning of it, has."""
    known = {found: row for row in reversed(held_out) if (found := key(row))}
    texts = {normalized(user_text(row)) for row in held_out}  # quick, and equal where a key is
    beginnings = Beginnings(held_out)
    parts = ((part for part in (row, *beginnings.of(row)) if normalized(user_text(part)) in texts) for row in train)
    keys = (map(key, each) for each in parts)
    return [next((known[found] for found in each if found in known), None) for each in keys]


def near_in_eval(train: Sequence[Row], held_out: Sequence[Row], judged: Judge) -> int:
    """Eval rows near a train row that asks otherwise, as `ft data leakage` counts them."""
    beginnings = Beginnings(held_out)
    texts = {normalized(user_text(part)) for row in train for part in (row, *beginnings.of(row))}
    missed = [at for at, row in enumerate(held_out) if normalized(user_text(row)) not in texts]
    return len(near_twins(train, held_out, judged, missed))
