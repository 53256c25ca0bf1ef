"""What a run without weights does to a request: its instructions, its examples or its retrieved passages come in."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from tunegate.core.errors import UserError, first_line, nearest
from tunegate.core.files import read_json, write_json, write_jsonl
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.rows import Message, read_jsonl
from tunegate.serve.prompting.index import ABOUT, PASSAGES, VECTORS, Index, as_kind

NAME = "prompting.json"
EXAMPLES = "examples.jsonl"
SCHEMA_VERSION = 1
# What a turn costs beyond its text: role and end marks (8 in Llama-3's template, 5 in ChatML), rounded up.
TURN_TOKENS = 12
RAG_INTRODUCTION = "Passages that may help; use what fits the question and ignore the rest:"

Selection = Literal["fixed", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How requests are prompted. method: prompt, few_shot or rag. system: instructions added to the system turn.

    system_role: the chat template accepts a system turn (else the text goes before the first user turn). k: most
    examples or passages a request gets. selection: the same examples for all requests, or the nearest to each.
    """

    method: str
    system: str = ""
    system_role: bool = True
    k: int = 0
    selection: Selection = "nearest"


class _Example(msgspec.Struct):
    id: str
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class Applied:
    """A request as the model gets it. used: ids of examples or passages, best first. dropped: that did not fit."""

    messages: list[Message]
    used: list[str]
    dropped: int


@dataclass(frozen=True)
class Prompting:
    """Settings with what they need. examples: messages by id (few_shot). index: for nearest examples and for passages.

    count: tokens of a text, by the model's tokenizer.
    """

    settings: Settings
    count: Any
    examples: dict[str, list[Message]]
    index: Index | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run's (or release's) prompting. Raises UserError for a missing or newer one."""
        from tokenizers import Tokenizer

        document = read_json(folder / NAME, strict=True)
        if not isinstance(document, dict) or document.pop("schema_version", None) != SCHEMA_VERSION:
            raise UserError("written by another version of Tunegate", where=str(folder / NAME))
        unknown = [key for key in document if key not in Settings.__dataclass_fields__]
        if unknown:
            raise UserError(
                f"unknown key {unknown[0]!r}",
                where=str(folder / NAME),
                hint=nearest(unknown[0], list(Settings.__dataclass_fields__)),
            )
        settings = as_kind(document, Settings, folder / NAME)
        if settings.method not in WEIGHTLESS:
            raise UserError(f"no such method: {settings.method!r}", where=str(folder / NAME))
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"no tokenizer: {first_line(error)}", where=str(folder / "tokenizer.json")) from None
        tokenizer.no_truncation()
        examples = {}
        if (folder / EXAMPLES).is_file():
            found = [as_kind(v, _Example, folder / EXAMPLES, line) for line, v in read_jsonl(folder / EXAMPLES)]
            examples = {example.id: example.messages for example in found}
        index = Index.load(folder) if (folder / ABOUT).is_file() else None
        looked_up = settings.k != 0 and (settings.method == "rag" or settings.selection == "nearest")
        if settings.method != "prompt" and looked_up and index is None:
            raise UserError(f"{ABOUT} is missing: nothing to look up in", where=str(folder), hint="make the run again")
        if index is not None and settings.method == "few_shot":
            unknown = [p.id for p in index.passages if p.id not in examples]
            if unknown:
                raise UserError(f"no example is called {unknown[0]!r}", where=str(folder / EXAMPLES))
        return cls(settings, counter(tokenizer), examples, index)

    def save(self, folder: Path) -> None:
        """Write everything but the tokenizer, which the run saves itself."""
        write_json(folder / NAME, {"schema_version": SCHEMA_VERSION, **asdict(self.settings)})
        if self.examples:
            lines = [{"id": key, "messages": messages} for key, messages in self.examples.items()]
            write_jsonl(folder / EXAMPLES, lines)
        if self.index is not None:
            self.index.save(folder)

    def apply(self, messages: Sequence[Message], *, room: int) -> Applied:
        """The messages with instructions, and as many examples or passages, best first, as `room` tokens hold.

        room: tokens that the whole prompt may take: the model's context less the answer and the tools.
        """
        return self.apply_all([messages], room=room)[0]

    def apply_all(self, requests: Sequence[Sequence[Message]], *, room: int) -> list[Applied]:
        """`apply` to each of several requests, whose questions are looked up together."""
        wanted = self._candidates([question(messages) for messages in requests])
        return [self._applied(messages, names, room) for messages, names in zip(requests, wanted, strict=True)]

    def _applied(self, messages: Sequence[Message], wanted: Sequence[str], room: int) -> Applied:
        system, rest = _split_system(messages)
        left = room - self._tokens([system, self.settings.system, *map(_text, rest)])
        used: list[str] = []
        turns: list[Message] = []
        passages: list[str] = []
        for name in wanted:
            cost = self._costs[name]
            if cost > left:
                continue
            left -= cost
            used.append(name)
            if self.settings.method == "few_shot":
                turns = [*_as_turns(self.examples[name], system), *turns]  # the nearest stands next to the question
            else:
                passages.append(f"[{len(passages) + 1}] {self._passages[name]}")
        context = "\n".join([RAG_INTRODUCTION, *passages]) if passages else ""
        instructions = "\n\n".join(text for text in (system, context, self.settings.system) if text)
        return Applied(self._joined(instructions, [*turns, *rest]), used, len(wanted) - len(used))

    def _candidates(self, questions: Sequence[str]) -> list[list[str]]:
        """Ids of the examples or passages for each question, best first."""
        if self.settings.method == "prompt" or self.settings.k == 0:
            return [[] for _ in questions]
        if self.settings.method == "few_shot" and self.settings.selection == "fixed":
            return [list(self.examples)[: self.settings.k] for _ in questions]
        assert self.index is not None
        passages, found = self.index.passages, self.index.search(questions, self.settings.k)
        return [[passages[i].id for i in places] for places in found]

    @cached_property
    def _passages(self) -> dict[str, str]:
        return {p.id: p.text for p in self.index.passages} if self.index else {}

    @cached_property
    def _costs(self) -> dict[str, int]:
        """Tokens that each example or passage adds to a prompt."""
        if self.settings.method == "few_shot":
            return {name: self._tokens([*map(_text, messages)]) for name, messages in self.examples.items()}
        return {name: self._tokens([text]) for name, text in self._passages.items()}

    def _tokens(self, texts: Sequence[str]) -> int:
        return int(self.count(list(texts))) + TURN_TOKENS * len(texts)

    def _joined(self, instructions: str, turns: list[Message]) -> list[Message]:
        """Instructions as the system turn, or before the first user turn where the template has no system turn."""
        if not instructions:
            return turns
        if self.settings.system_role:
            return [{"role": "system", "content": instructions}, *turns]
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            return [{"role": "user", "content": instructions}, *turns]
        return [*turns[:first], _opened(turns[first], instructions), *turns[first + 1 :]]


def counter(tokenizer: Any) -> Any:
    """A function texts -> tokens altogether, from a `tokenizers.Tokenizer`."""
    return lambda texts: sum(len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))


def has_prompting(folder: Path) -> bool:
    """Whether a run or release changes requests before the model sees them."""
    return (folder / NAME).is_file()


def copy_prompting(source: Path, folder: Path) -> None:
    """What changes requests, from a run or release into the release that is made of it; nothing where there is none."""
    for name in (NAME, EXAMPLES, PASSAGES, VECTORS, ABOUT):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


def _split_system(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """(text of the leading system turns, the rest)."""
    count = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    return "\n\n".join(_text(m) for m in messages[:count] if _text(m)), list(messages[count:])


def _as_turns(messages: Sequence[Message], system: str) -> list[Message]:
    """An example as turns; its own system text, where it differs from the request's, opens its first user turn."""
    own, turns = _split_system(messages)
    if not own or own == system:
        return turns
    return [_opened(turns[0], own), *turns[1:]]


def _opened(turn: Message, text: str) -> Message:
    """A turn that begins with `text` and an empty line. Content in parts keeps them all; text parts are joined by a line
    end where the template takes no parts."""
    content = turn.get("content")
    if isinstance(content, list):
        return {**turn, "content": [{"type": "text", "text": f"{text}\n"}, *content]}
    return {**turn, "content": f"{text}\n\n{_text(turn)}"}


def question(messages: Sequence[Message]) -> str:
    """What is retrieved for: the last user turn."""
    return next((_text(m) for m in reversed(messages) if m["role"] == "user"), "")


def _text(message: Message) -> str:
    """A turn's text; of content in parts, the text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    calls = message.get("tool_calls")
    return str(content or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")
