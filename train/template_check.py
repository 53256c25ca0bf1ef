"""Whether a prompt is the same tokens in training and at the server, looked at on the first rows before anything is trained."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegate.core import template_input
from tunegate.core.chat_template import clock, is_learnt, render_ids, template_digest
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource, of_folder
from tunegate.core.rows import Message, Row
from tunegate.train.model_loading import load_tokenizer, stop_ids

if TYPE_CHECKING:
    from tunegate.train.sft import Prepared

ROWS = 32


@dataclass(frozen=True, kw_only=True)
class TemplateCheck:
    """What was found equal. rows: looked at. stops: the tokens that end an answer; learnt: of them, those that the rows end with."""

    digest: str
    rows: int
    stops: tuple[str, ...]
    learnt: tuple[str, ...]


def check(ready: "Prepared", source: ModelSource) -> TemplateCheck:
    """Compare, for each row: the prompt as the server renders and tokenizes it, with the tokenizer as the run will hold
    it (saved and loaded again), and the beginning of what is trained, on the day that the rows are trained with; and that what
    is learnt ends with a stop token.

    Raises UserError with the row that differs.
    """
    stops = stop_ids(source, ready.tokenizer)
    kept = {example.id: example for example in ready.kept}
    named = Counter(row.id for row in ready.rows)
    rows = [row for row in ready.rows if row.id in kept and named[row.id] == 1][:ROWS]
    learnt = set()
    with tempfile.TemporaryDirectory() as folder:
        ready.tokenizer.save_pretrained(folder)
        server = load_tokenizer(of_folder(Path(folder)))
        if template_digest(server) != template_digest(ready.tokenizer):
            raise UserError("the chat template is another one after the tokenizer is saved", where=source.spec)
        more = clock(server.chat_template, ready.began)
        for row in rows:
            example = kept[row.id]
            asked = _asked(row)
            ids = render_ids(server, asked, tools=row.tools, generate=True, **more)
            other = _at_once(server, asked, row.tools, more)
            if ids != example.input_ids[: len(ids)] or ids != other:
                raise UserError(
                    f"row {row.id}: the server would make other tokens of the prompt than training does",
                    where=f"{row.file}:{row.line}",
                    hint="the chat template or the tokenizer adds or drops tokens between the two",
                )
            learnt.add(next(label for label in reversed(example.labels) if label >= 0))
    if not learnt <= set(stops):
        words = ready.tokenizer.convert_ids_to_tokens(sorted(learnt - set(stops)))
        raise UserError(f"answers end with {words}, which stops no generation", where=source.spec)
    tokens: Any = ready.tokenizer.convert_ids_to_tokens
    return TemplateCheck(
        digest=template_digest(server),
        rows=len(rows),
        stops=tuple(tokens(stops)),
        learnt=tuple(tokens(sorted(learnt))),
    )


def _asked(row: Row) -> list[Message]:
    """The turns before the last answer that is learnt (without `"weight": 0`)."""
    last = max(i for i, turn in enumerate(row.messages) if is_learnt(turn))
    return list(row.messages[:last])


def _at_once(tokenizer: Any, asked: list[Message], offered: list[Any] | None, more: dict[str, Any]) -> list[int]:
    """Rendered and tokenized in one call, as some servers do."""

    def render(turns: list[Message], tools: list[Any] | None) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(
            turns, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **more
        )
        return ids

    return template_input.rendered(render, asked, offered)
