"""Train against eval, as a ladder of named rules from strict to loose, reported per eval item.

`exact` raw user text; `lower_spaces`; `normalized` (NFKC, case-folded, punctuation to space); `ngram`: every run of 13
words of the eval text is compared with those of train (texts shorter than that are not seen at all, and their share is
said); `near`: the verdict of `judge` at or above its threshold, beyond `normalized`.
Under the rules of equality a train row counts with what it asks before each answer that is learnt, not the last one alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.rows import Row
from tunegate.train.data.beginnings import Beginnings
from tunegate.train.data.judge import LEXICAL, Judge, judge
from tunegate.train.data.near import NearIndex, band_keys, same_numbers
from tunegate.train.data.normalize import RULES, answer_key, exact_marks, user_text

# 13-grams of words: Brown et al. 2020 (GPT-3, appendix C).
NGRAM = 13
EQUALITY = {"exact": "raw", "lower_spaces": "lower_spaces", "normalized": "normalized", "alphanumeric": "alphanumeric"}


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One eval row met in train. rule: the strictest rule that finds it; score: overlap (1.0 under a rule of equality).
    same_answer: whether the train row has its answer."""

    eval_row: Row
    train_row: Row
    rule: str
    score: float
    same_answer: bool

    def to_json(self) -> dict[str, Any]:
        """Ids, places and the eval row's text."""
        return {
            "eval_id": self.eval_row.id,
            "eval_line": self.eval_row.line,
            "train_id": self.train_row.id,
            "train_line": self.train_row.line,
            "rule": self.rule,
            "score": round(self.score, 4),
            "same_answer": self.same_answer,
            "text": user_text(self.eval_row)[:500],
        }


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """counts: eval rows found by each rule (the rules of equality include the stricter ones; `near` is what they miss).
    ngram_blind: share of eval rows too short to own an n-gram. clean: eval rows that no rule up to `normalized` finds.
    near_rule: what `near` compares."""

    counts: dict[str, int]
    ngram_blind: float
    hits: list[Hit]
    clean: list[Row]
    n: int
    near_rule: str


def leakage(train: Sequence[Row], held_out: Sequence[Row], *, near: Judge | None = None) -> Leakage:
    """Compare the user texts of two sets under every rule; `near` None: by their letters, which needs no encoder."""
    judged = near or judge(LEXICAL)
    counts: dict[str, int] = {}
    found: dict[int, Hit] = {}
    texts = [user_text(row) for row in held_out]
    beginnings = Beginnings(held_out)
    parts = [part for row in train for part in beginnings.of(row)]
    for name, rule_name in EQUALITY.items():
        rule = RULES[rule_name]
        known: dict[str, list[Row]] = defaultdict(list)
        for row in (*train, *parts):
            if text := user_text(row).strip() and rule(user_text(row)):
                known[text].append(row)
        counts[name] = 0
        for index, row in enumerate(held_out):
            if twins := known.get(rule(texts[index])):
                counts[name] += 1
                found.setdefault(index, _hit(row, twins, name, 1.0))
    counts["ngram"], blind = _ngram(train, held_out, found)
    missed = [at for at in range(len(held_out)) if at not in found or found[at].rule in ("alphanumeric", "ngram")]
    near_ones = near_twins(train, held_out, judged, missed)
    counts["near"] = len(near_ones)
    for at, (twin, score) in near_ones.items():
        found.setdefault(at, _hit(held_out[at], [twin], "near", score))
    strict = ("exact", "lower_spaces", "normalized")
    clean = [row for index, row in enumerate(held_out) if index not in found or found[index].rule not in strict]
    return Leakage(
        counts=counts,
        ngram_blind=blind,
        hits=[found[index] for index in sorted(found)],
        clean=clean,
        n=len(held_out),
        near_rule=judged.named,
    )


def _ngram(train: Sequence[Row], held_out: Sequence[Row], found: dict[int, Hit]) -> tuple[int, float]:
    wanted: dict[int, list[int]] = defaultdict(list)
    blind = 0
    for index, row in enumerate(held_out):
        windows = {hash(gram) for gram in _windows(row)}
        blind += not windows
        for window in windows:
            wanted[window].append(index)
    hit: dict[int, Row] = {}
    for row in train if wanted else ():
        for gram in _windows(row):
            for index in wanted.get(hash(gram), ()):
                hit.setdefault(index, row)
    for index, twin in hit.items():
        found.setdefault(index, _hit(held_out[index], [twin], "ngram", 1.0))
    return len(hit), blind / len(held_out) if held_out else 0.0


def _windows(row: Row) -> Iterator[tuple[str, ...]]:
    words = RULES["normalized"](user_text(row)).split()
    return (tuple(words[at : at + NGRAM]) for at in range(len(words) - NGRAM + 1))


def near_twins(
    train: Sequence[Row], held_out: Sequence[Row], judged: Judge, missed: Sequence[int]
) -> dict[int, tuple[Row, float]]:
    """The nearest train row and its score, of each eval row at a place of `missed` that has a near one."""
    rule = RULES["normalized"]
    index = NearIndex()
    train_texts = [rule(user_text(row)) for row in train]
    texts = [rule(user_text(held_out[at])) for at in missed]
    text_keys = list(band_keys(texts, judged.band_width))
    wanted = {key for keys in text_keys for key in keys}
    for text, keys in zip(train_texts, band_keys(train_texts, judged.band_width), strict=True):
        index.add(text, tuple(key for key in keys if key in wanted))
    close = judged.neighbours(train_texts, texts) if judged.neighbours and train and missed else [[] for _ in missed]
    candidates = []
    for at, text, keys, places in zip(missed, texts, text_keys, close, strict=True):
        known = dict(index.near(text, keys, judged.floor)) if text else {}
        rest = [twin for twin in places if twin not in known and same_numbers(train_texts[twin], text)] if text else []
        marks = exact_marks(user_text(held_out[at]))
        near = [*known.items(), *((twin, 0.0) for twin in rest)]
        candidates.append((at, text, [item for item in near if exact_marks(user_text(train[item[0]])) == marks]))
    pairs = [(text, train_texts[twin], overlap) for _, text, near in candidates for twin, overlap in near]
    verdicts = iter(judged.verdicts(pairs))
    found = {}
    for at, _, near in candidates:
        scored = [(next(verdicts), twin) for twin, _ in near]
        verdict, twin = max(scored, key=lambda item: (item[0].near, item[0].score, -item[1]), default=(None, 0))
        if verdict is not None and verdict.near:
            found[at] = train[twin], verdict.score
    return found


def _hit(row: Row, twins: Sequence[Row], rule: str, score: float) -> Hit:
    answer = answer_key(row)
    same = next((twin for twin in twins if answer_key(twin) == answer), None)
    return Hit(eval_row=row, train_row=same or twins[0], rule=rule, score=score, same_answer=same is not None)
