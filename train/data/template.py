"""A model folder's chat template as plain jinja2, sandboxed: rendered without loading transformers or the model.

The environment is the one transformers documents for chat templates ("Writing a chat template"): blocks trimmed, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that keeps characters as they are, and `{% generation %}` blocks.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tunegate.core import template_input
from tunegate.core.chat_template import default_template
from tunegate.core.errors import UserError, first_line
from tunegate.core.files import read_json
from tunegate.core.rows import Message, Row

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A compiled template. tokens: the special tokens it may name."""

    compiled: "JinjaTemplate"
    tokens: dict[str, str]

    def render(self, row: Row, *, answer: bool) -> str:
        """The row as text, up to where the assistant's last answer begins, or with it.

        Raises UserError when the template refuses these messages.
        """

        def render_once(messages: list[Message], tools: list[Any] | None) -> str:
            text: str = self.compiled.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=not answer, **self.tokens
            )
            return text

        try:
            return template_input.rendered(render_once, row.messages if answer else row.prompt, row.tools)
        except Exception as error:  # jinja2's errors, and whatever a template raises
            raise UserError(
                f"the chat template refuses these messages: {error}", where=f"{row.file}:{row.line}"
            ) from None

    def leaves_calls_out(self, row: Row) -> bool:
        """Whether the conversation reads the same without its tool calls, so that no call in it would be learnt.

        Raises UserError when the template refuses these messages.
        """
        if not any(message.get("tool_calls") for message in row.messages):
            return False
        without = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in row.messages]
        text = self.render(row, answer=True)
        try:
            return text == self.render(replace(row, messages=tuple(without)), answer=True)
        except UserError:  # a turn without content must have calls: the template reads them
            return False


def chat_template(find: Callable[[str], Path | None]) -> ChatTemplate | None:
    """The template among a model's files; None when it has none. find: name of a file -> its path, where it is there.

    Raises UserError when the template is not valid.
    """
    from jinja2 import TemplateError

    settings_file, template_file = find("tokenizer_config.json"), find("chat_template.jinja")
    settings = read_json(settings_file) if settings_file else {}
    text = default_template(
        template_file.read_text(encoding="utf-8") if template_file else settings.get("chat_template")
    )
    if text is None:
        return None
    found = {name: settings.get(name) for name in SPECIAL}
    tokens = {name: str(v["content"] if isinstance(v, dict) else v) for name, v in found.items() if v is not None}
    try:
        return ChatTemplate(compiled=_environment().from_string(text), tokens=tokens)
    except (TemplateError, RecursionError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"not a valid chat template: {first_line(error)}", where=str(template_file or settings_file)
        ) from None


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks what is learnt; for counting only its content matters."""

        tags = {"generation"}  # noqa: RUF012  (the base class declares it on instances)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
