"""How near two candidates are: by the packaged MiniLM or another sentence encoder, else by their letters.

A verdict depends on the two texts alone, never on the other rows (cleanlab's threshold moves with the median distance).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from tunegate.core import embedding
from tunegate.core.console import warn
from tunegate.core.errors import UserError
from tunegate.train.data.engine import Mapped
from tunegate.train.data.near import BAND_WIDTH, band_width, jaccard, letter_apart
from tunegate.train.data.words import neighbours
from tunegate.train.paths import given_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEXICAL = "lexical"
# 0.95 of MiniLM's cosine: of SNIPS's train pairs at or above it 36 % have the same answer, of Banking77's 99 %; a pair goes
# only where the answers are the same as well. 0.9 of the overlap: one letter changed in some 80.
THRESHOLDS = {LEXICAL: 0.9, "cosine": 0.95}
CURVES = {LEXICAL: (0.98, 0.95, 0.9, 0.85, 0.8, 0.7), "cosine": (0.99, 0.98, 0.95, 0.9, 0.85, 0.8)}
# The overlap from which a pair of texts is looked at by the encoder.
FLOOR = 0.5
# Texts of this overlap that are one letter apart are near without being asked about. Measured: of Banking77's and SNIPS's train
# pairs at this overlap with one answer (39, no more than some letters apart) all say the same, and the cosine of six, a plural
# in each, is below 0.95.
SURE = 0.9
# Texts embedded together: the same ones on every engine, because padding changes the last digits of a vector.
CHUNK = 512
SPELLING = f"one letter apart and overlap of character 4-grams >= {SURE:g}"
Candidate = tuple[str, str, float]


class Verdict(NamedTuple):
    """On one pair. spelling: by its letters, of which score is the overlap then."""

    score: float
    near: bool
    spelling: bool


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The verdict on candidate pairs of one kind.

    rule: what a score is, as reports name it. threshold: from which a pair is near. curve: other thresholds; the lowest is
    the lowest that may be asked for. floor: overlap of 4-grams below which a pair is no candidate. scores: (text, text,
    overlap where letters made it a candidate, else 0) of each pair -> its score, 0 to 1, to four decimals. neighbours:
    (texts, None) -> the places of more candidates of each among the earlier ones; (texts, others) -> of each other among
    the texts; None: overlap alone makes a candidate. spelling: whether a pair one letter apart is near without being asked
    about.
    """

    rule: str
    threshold: float
    curve: tuple[float, ...]
    floor: float
    scores: Callable[[Sequence[Candidate]], list[float]]
    neighbours: Callable[[Sequence[str], Sequence[str] | None], list[list[int]]] | None = None
    spelling: bool = False

    @property
    def band_width(self) -> int:
        """Hashes of one band (`near.band_keys`): letters alone must meet the pairs at the threshold."""
        return BAND_WIDTH if self.neighbours else band_width(self.threshold)

    @property
    def named(self) -> str:
        """The whole rule with its threshold."""
        return self.named_for(spelling=False) + (f", or {SPELLING}" if self.spelling else "")

    def named_for(self, *, spelling: bool) -> str:
        """The half of the rule that decided."""
        return SPELLING if spelling else f"{self.rule} >= {self.threshold:g}"

    def sure(self, pair: Candidate) -> bool:
        """Whether the pair is near by its letters alone."""
        return self.spelling and pair[2] >= SURE and letter_apart(pair[0], pair[1])

    def verdicts(self, pairs: Sequence[Candidate], known: Sequence[bool | None] | None = None) -> list[Verdict]:
        """One for each pair; what letters do not decide goes to `scores` together. known: what `sure` said of each pair; None
        where it was not asked."""
        told = known or [None] * len(pairs)
        sure = [self.sure(pair) if said is None else said for pair, said in zip(pairs, told, strict=True)]
        asked = [pair for pair, spelt in zip(pairs, sure, strict=True) if not spelt]
        scores = iter(self.scores(asked) if asked else ())
        found = [round(pair[2], 4) if spelt else next(scores) for pair, spelt in zip(pairs, sure, strict=True)]
        return [Verdict(s, spelt or s >= self.threshold, spelt) for s, spelt in zip(found, sure, strict=True)]


def judge(model: str = embedding.BUILTIN, threshold: float | None = None, mapped: Mapped = map) -> Judge:
    """The verdict that `model` names: an encoder (builtin:minilm, a folder, a hub id), or `lexical`. mapped: the engine that
    embeds.

    Without the package of the builtin encoder the verdict is lexical, which is said on standard error and in the rule.
    Raises UserError for an encoder that cannot be loaded and a threshold outside the curve.
    """
    if model == embedding.BUILTIN and not embedding.is_installed():
        warn(f"the package that holds {model} is not installed: near duplicates are judged by their letters")
        return _checked(_lexical(f" ({model} is not installed)"), threshold)
    if model == LEXICAL:
        return _checked(_lexical(""), threshold)
    cosine = _Cosine(given_name("--near-model", model), mapped)
    if model != embedding.BUILTIN:
        embedding.load(model, quick=True)
    found = Judge(
        rule=f"cosine of {model}",
        threshold=THRESHOLDS["cosine"],
        curve=CURVES["cosine"],
        floor=FLOOR,
        scores=cosine.scores,
        neighbours=lambda texts, others: neighbours(texts, model, others),
        spelling=True,
    )
    return _checked(found, threshold)


def _lexical(why: str) -> Judge:
    return Judge(
        rule=f"overlap of character 4-grams{why}",
        threshold=THRESHOLDS[LEXICAL],
        curve=CURVES[LEXICAL],
        floor=CURVES[LEXICAL][-1],
        scores=lambda pairs: [round(overlap, 4) for _, _, overlap in pairs],
    )


def _checked(found: Judge, threshold: float | None) -> Judge:
    if threshold is None:
        return found
    if not found.curve[-1] <= threshold <= 1:
        raise UserError(f"must be between {found.curve[-1]:g} and 1 for {found.rule}", where="--near-threshold")
    return replace(found, threshold=threshold, spelling=found.spelling and threshold <= found.threshold)


def _embedded(chunk: tuple[str, list[str]]) -> "tuple[npt.NDArray[np.float16], list[bool]]":
    """float16 [n, d] of n texts, and which of them were read to their end."""
    import numpy as np
    import torch

    model, texts = chunk
    encoder = embedding.load(model, quick=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # short texts: a second thread mostly waits, and both engines compute the same
    try:
        return encoder.embed(texts).astype(np.float16), encoder.reads_whole(texts)
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Cosine:
    """Cosines of an encoder that is loaded when the first pair comes; each text is embedded once (768 bytes)."""

    model: str
    mapped: Mapped
    vectors: "dict[str, npt.NDArray[np.float16]]" = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    def scores(self, pairs: Sequence[Candidate]) -> list[float]:
        """The cosine of each pair; where the encoder cannot read a text to its end, the overlap if that is less."""
        import numpy as np

        new = list(dict.fromkeys(t for a, b, _ in pairs for t in (a, b) if t not in self.vectors))
        chunks = [(self.model, new[at : at + CHUNK]) for at in range(0, len(new), CHUNK)]
        for (_, texts), (vectors, whole) in zip(chunks, self.mapped(_embedded, chunks), strict=True):
            self.vectors.update(zip(texts, vectors, strict=True))
            self.cut.update(text for text, read in zip(texts, whole, strict=True) if not read)
        found = []
        for a, b, _ in pairs:
            cosine = float(np.dot(self.vectors[a].astype(np.float32), self.vectors[b].astype(np.float32)))
            found.append(1.0 if a == b else round(min(1.0, max(0.0, cosine)), 4))
            if a in self.cut or b in self.cut:
                found[-1] = min(found[-1], round(jaccard(a, b), 4))
        return found
