"""Hybrid retrieval over passages: BM25 and embeddings, fused by rank."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from tunegate.core import embedding
from tunegate.core.errors import UserError, first_line
from tunegate.core.files import read_json, write_json, write_jsonl
from tunegate.core.rows import read_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
# The vectors are no .safetensors file: an engine takes every such file of a release for weights.
PASSAGES, VECTORS, ABOUT = "passages.jsonl", "vectors.npy", "index.json"
# Candidates of each ranking, and the constant of reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009, eq. 1).
CANDIDATES = 50
FUSION_K = 60


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One thing that can be retrieved. id: named in citations. text: what the model is shown. source: where it is from."""

    id: str
    text: str
    source: str = ""


class _About(msgspec.Struct):
    embedder: str
    embedder_digest: str


class _Line(msgspec.Struct):
    id: str
    text: str
    source: str
    key: str


def as_kind(value: Any, kind: type[T], path: Path, line: int | None = None) -> T:
    """A part of a saved index or prompting in its form. Raises UserError with file, line and key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        place = f"{path}:{line}" if line else str(path)
        raise UserError(f"damaged: {first_line(error)}", where=place, hint="make the run again") from None


@dataclass(frozen=True)
class Index:
    """Passages with their vectors (float32 [n, d], unit length) and their BM25 statistics.

    keys: the texts that a question is compared with; for examples the question, for documents the passage itself.
    """

    passages: Sequence[Passage]
    keys: Sequence[str]
    vectors: "NDArray[np.float32]"
    embedder: str
    embedder_digest: str
    lexical: Any

    @classmethod
    def build(cls, passages: Sequence[Passage], *, embedder: str, keys: Sequence[str] | None = None) -> Self:
        """Embed and index passages. Raises UserError for none, or an embedding model that cannot be loaded."""
        if not passages:
            raise UserError("there is nothing to index", hint="give documents that hold text")
        keys = [p.text for p in passages] if keys is None else keys
        model = embedding.load(embedder)
        return cls(passages, keys, model.embed(keys), embedder, model.digest, _bm25(keys))

    def search(self, questions: Sequence[str], k: int) -> list[list[int]]:
        """Positions of the k best passages for each question, best first: BM25 and cosine ranks fused; ties by position.

        The questions are embedded together, which for many costs a fraction of one after another.
        """
        vectors = embedding.load(self.embedder).embed(questions)
        return [self._best(question, vector, k) for question, vector in zip(questions, vectors, strict=True)]

    def _best(self, question: str, vector: "NDArray[np.float32]", k: int) -> list[int]:
        import numpy as np

        scores = np.zeros(len(self.passages))
        lexical = _ranked(_bm25_scores(self.lexical, question), positive=True)
        for ranked in (_ranked(self.vectors @ vector), lexical):
            for rank, position in enumerate(ranked):
                scores[position] += 1 / (FUSION_K + 1 + rank)
        return [int(i) for i in np.argsort(-scores, kind="stable")[:k] if scores[i] > 0]

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder."""
        import numpy as np

        lines = [{**asdict(p), "key": key} for p, key in zip(self.passages, self.keys, strict=True)]
        write_jsonl(folder / PASSAGES, lines)
        np.save(folder / VECTORS, self.vectors, allow_pickle=False)
        write_json(folder / ABOUT, {"embedder": self.embedder, "embedder_digest": self.embedder_digest})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an index. Raises UserError when it was made with another embedding model than the one that is here."""
        import numpy as np

        about = as_kind(read_json(folder / ABOUT, strict=True), _About, folder / ABOUT)
        model = embedding.load(about.embedder)
        if model.digest != about.embedder_digest:
            raise UserError(
                f"this index was made with other weights of {about.embedder} than those installed here",
                where=str(folder / ABOUT),
                hint="make it again: ft train --method rag (or few_shot)",
            )
        lines = [as_kind(value, _Line, folder / PASSAGES, line) for line, value in read_jsonl(folder / PASSAGES)]
        passages = [Passage(id=v.id, text=v.text, source=v.source) for v in lines]
        keys = [v.key for v in lines]
        try:
            vectors = np.load(folder / VECTORS, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError(f"no vectors: {first_line(error)}", where=str(folder / VECTORS)) from None
        shape = (len(passages), model.model.config.hidden_size)
        if vectors.shape != shape or vectors.dtype != np.float32:
            raise UserError(
                f"{vectors.dtype} {list(vectors.shape)}, float32 {list(shape)} is needed", where=str(folder / VECTORS)
            )
        return cls(passages, keys, vectors, model.spec, model.digest, _bm25(keys))


def _bm25(texts: Sequence[str]) -> Any:
    """Okapi BM25 as Lucene scores it, k1 = 1.5, b = 0.75 (bm25s)."""
    import bm25s

    model = bm25s.BM25()
    model.index(_words(texts), show_progress=False)
    return model


def _bm25_scores(model: Any, question: str) -> "NDArray[np.float32]":
    import numpy as np

    words = [w for w in _words([question])[0] if w and w in model.vocab_dict]
    if not words:
        return np.zeros(model.scores["num_docs"], dtype=np.float32)
    found: NDArray[np.float32] = model.get_scores(words)
    return found


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Lower-cased words of any script; every list has one word at least (an empty one breaks the index)."""
    import bm25s

    found: list[list[str]] = bm25s.tokenize(
        list(texts),
        stopwords=None,
        return_ids=False,
        show_progress=False,
        token_pattern=r"(?u)\w+",  # noqa: S106 a pattern of words
    )
    return [words or [""] for words in found]


def _ranked(scores: "NDArray[np.float32]", *, positive: bool = False) -> list[int]:
    import numpy as np

    best = np.argsort(-scores, kind="stable")[:CANDIDATES]
    return [int(i) for i in best if not positive or scores[i] > 0]
