"""Near-duplicate candidates by MinHash, verified exactly: two texts are near when their character 4-grams overlap enough.

Candidates: MinHash signatures (Broder 1997, "On the resemblance and containment of documents") of 128 hashes in b bands of
r (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4): a pair of Jaccard s is met with probability
1 - (1 - s^r)^b. 16 bands of 8 meet 0.9999 at 0.9 and 0.95 at 0.8; for lower thresholds there are more and narrower ones, 32
of 4 at 0.7 (0.9998), so that of the pairs at the threshold itself at least 0.99 are met. The exact Jaccard of the sets is computed for each, and pairs with other numbers or
symbols, in order, are no candidates, so that "table for 2" is never near "table for 3", nor "x > 2" near "x < 2". A text shorter than a 4-gram is one gram of its own.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GRAM = 4
HASHES, BAND_WIDTH = 128, 8
# The least chance that a pair at the threshold itself is met.
MET = 0.99
# Texts hashed at once: bounds the memory of the vectorised step to some 10 MB.
BATCH = 1024
# Kept texts of one bucket that a new text is compared with at most; more are counted in `NearIndex.skipped`.
BUCKET_MOST = 200
# Characters of texts whose grams are kept: rows of one template are compared with the same ones again and again. Some 90 MB.
MEMO_MOST = 1 << 20
_EXACT = re.compile(r"\d+|[^\w\s]")


def grams(text: str) -> frozenset[str]:
    """The set of character 4-grams of a text."""
    return frozenset(intern(text[at : at + GRAM]) for at in range(max(1, len(text) - GRAM + 1)))


class _Memo(dict[str, Any]):
    """What a function makes of a text, kept for `MEMO_MOST` characters of texts, then forgotten at once."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make, self._characters = make, 0

    def __missing__(self, text: str) -> Any:
        self._characters += len(text) + 1
        if self._characters > MEMO_MOST:
            self.clear()
            self._characters = len(text) + 1
        self[text] = made = self._make(text)
        return made


_grams = _Memo(grams)


def jaccard(a: str, b: str) -> float:
    """Overlap of two texts' 4-grams: |A and B| / |A or B|, 0 to 1."""
    left, right = _grams[a], _grams[b]
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def similarity(a: str, b: str) -> float:
    """The Jaccard overlap, but 0 when the numbers or symbols in the texts differ."""
    return jaccard(a, b) if same_numbers(a, b) else 0.0


def letter_apart(a: str, b: str) -> bool:
    """Whether one letter put in, left out or exchanged makes one text the other."""
    if abs(len(a) - len(b)) > 1:
        return False
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[at + (len(a) >= len(b)) :] == b[at + (len(b) >= len(a)) :]


def same_numbers(a: str, b: str) -> bool:
    """Whether two texts have the same numbers and symbols in the same order."""
    return bool(_numbers[a] == _numbers[b])


def _exact(text: str) -> list[str]:
    """Numbers and symbols (Unicode categories S*) in order; accents of a script that writes them apart are letters."""
    return [part for part in _EXACT.findall(text) if part.isdigit() or unicodedata.category(part)[0] == "S"]


_numbers = _Memo(_exact)


def band_width(threshold: float) -> int:
    """Hashes of one band, `BAND_WIDTH` at most: as many as leave a pair whose overlap is `threshold` (above 0) the chance `MET`."""
    widths = range(BAND_WIDTH, 1, -1)
    return next((r for r in widths if 1 - (1 - threshold**r) ** (HASHES // r) >= MET), 1)


def band_keys(texts: Sequence[str], width: int = BAND_WIDTH) -> Iterator[tuple[bytes, ...]]:
    """The band keys of each text, in order, as many as bands of `width` hashes there are; two texts that share one are
    candidates."""
    import numpy as np

    mixing = np.random.default_rng(20260000).integers(1, 2**63, size=(2, HASHES), dtype=np.uint64)
    multipliers, offsets = mixing[0] | np.uint64(1), mixing[1]
    for start in range(0, len(texts), BATCH):
        hashes, starts = _gram_hashes(texts[start : start + BATCH])
        signatures = np.empty((len(starts), HASHES), dtype=np.uint32)
        for column, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            mixed = ((hashes * multiplier + offset) >> np.uint64(32)).astype(np.uint32)
            signatures[:, column] = np.minimum.reduceat(mixed, starts)
        raw = signatures.tobytes()
        for at in range(0, len(raw), HASHES * 4):
            found = (raw[at + band * width * 4 : at + (band + 1) * width * 4] for band in range(HASHES // width))
            yield tuple(bytes([band]) + key for band, key in enumerate(found))


@dataclass
class NearIndex:
    """Texts met so far, by band; `skipped` counts comparisons left out because a bucket was full."""

    texts: list[str] = field(default_factory=list)
    buckets: dict[bytes, list[int]] = field(default_factory=dict)
    skipped: int = 0

    def near(self, text: str, keys: tuple[bytes, ...], threshold: float) -> list[tuple[int, float]]:
        """(index, similarity) of the texts at or above `threshold`, most similar first, ties by index."""
        seen: set[int] = set()
        for key in keys:
            bucket = self.buckets.get(key, ())
            self.skipped += max(0, len(bucket) - BUCKET_MOST)
            seen.update(bucket[:BUCKET_MOST])
        scored = [(index, similarity(text, self.texts[index])) for index in sorted(seen)]
        return sorted(((i, s) for i, s in scored if s >= threshold), key=lambda item: (-item[1], item[0]))

    def add(self, text: str, keys: tuple[bytes, ...]) -> int:
        """Remember a text; returns its index."""
        index = len(self.texts)
        self.texts.append(text)
        for key in keys:
            self.buckets.setdefault(key, []).append(index)
        return index


def _gram_hashes(texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
    """(hash of every 4-gram of all texts, one after another; where each text starts)."""
    import numpy as np

    padded = [text if len(text) >= GRAM else text.ljust(GRAM, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    at = np.arange(len(codes) - GRAM + 1)
    hashes = np.zeros(len(at), dtype=np.uint64)
    for step in range(GRAM):
        hashes = (hashes + codes[step : len(codes) - GRAM + 1 + step] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    inside = np.ones(len(at), dtype=bool)
    for step in range(1, GRAM):
        crossing = ends[:-1] - step
        inside[crossing] = False
    starts = np.concatenate([[0], np.cumsum(lengths - GRAM + 1)[:-1]])
    return hashes[inside], starts
