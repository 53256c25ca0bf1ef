"""Answers as they come in, append-only: after kill -9 nothing that was answered is asked again, and nothing is lost."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.fast_json import decode, encode
from tunegate.core.files import canonical_json, sha256_text
from tunegate.evalkit.outcomes import Answer


def key_of(prompt_digest: str, generation: dict[str, Any], model_digest: str, repeat: int) -> str:
    """What names one answer: the same prompt, settings, model and repeat give the same key, anything else another.

    The model is part of it, so that a candidate is never judged by the baseline's answers.
    """
    return sha256_text(canonical_json([prompt_digest, generation, model_digest, repeat]))


class ResultLog:
    """A JSONL file of `{"key": ..., "answer": {...}}`; use as `with`. One process at a time holds it.

    A line that a kill cut short is dropped when the file is opened again; its request is made again. fresh: what it holds
    is dropped.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._fresh = fresh
        self._known: dict[str, Answer] = {}
        self._stream: Any = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise UserError(
                "another evaluation is writing there", where=str(self.path), hint="wait for it, or choose another --out"
            ) from None
        if self._fresh:
            self._stream.truncate(0)
        self._load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._known:  # nothing was answered, so nothing is left behind
            self.discard()
        self._stream.close()

    def _load(self) -> None:
        self._stream.seek(0)
        good = 0
        for line in self._stream:
            try:
                record = decode(line)
                self._known[record["key"]] = Answer(**record["answer"])
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            good += len(line)
        if self._stream.seek(0, os.SEEK_END) > good:  # else untouched: its time tells whether a run was begun since
            self._stream.truncate(good)
        self._stream.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`."""
        return self._known.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer: one write to the file, whole. Raises InfrastructureError when the disk takes no more."""
        self._known[key] = answer
        try:
            self._stream.write(encode({"key": key, "answer": vars(answer)}) + b"\n")
            self._stream.flush()
        except OSError as error:
            raise InfrastructureError(f"the answer cannot be written: {error.strerror}", where=str(self.path)) from None

    def discard(self) -> None:
        """Remove the file: its answers stand in a finished report."""
        self.path.unlink(missing_ok=True)
