"""An Ollama `Modelfile` whose template renders what ours renders, or none and the reason.

Ollama does not read the Jinja template in the GGUF first: `ollama create` without a TEMPLATE compares it with some twenty it
knows and takes the nearest one's Go template (server/model.go, template/template.go), or none; only then does the engine
apply the embedded one. So a TEMPLATE is written here, in Go's text/template, learned from how ours renders and checked
against it on conversations of several shapes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from tunegate.core.errors import UserError
from tunegate.core.rows import Message

Render = Callable[[Sequence[Message], bool], str]
SYSTEM, USER, ANSWER, AGAIN = "qqSYSTEMqq", "qqUSERqq", "qqANSWERqq", "qqAGAINqq"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a template renders, as the texts around the contents. head: before the first turn where there is no system message.

    system: `turn` (a turn of its own, between system_start and system_end), `first` or `last` (inside the first or last user
    turn, before its text, followed by system_end), or `none` (refused).
    """

    head: str
    user_start: str
    user_end: str
    answer_start: str
    answer_end: str
    generate: str
    system: str = "none"
    system_head: str = ""
    system_start: str = ""
    system_end: str = ""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, as the Go template below makes it."""
        given = [str(m["content"]) for m in messages if m["role"] == "system"]
        users = [index for index, m in enumerate(messages) if m["role"] == "user"]
        text = self.system_head if given else self.head
        for index, message in enumerate(messages):
            content = str(message["content"])
            if message["role"] == "system" and self.system == "turn":
                text += self.system_start + content + self.system_end
            elif message["role"] == "user":
                holder = (
                    (users[0] if self.system == "first" else users[-1]) if self.system in ("first", "last") else None
                )
                inside = given[0] + self.system_end if given and index == holder else ""
                text += self.user_start + inside + content + self.user_end
            elif message["role"] == "assistant":
                text += self.answer_start + content + self.answer_end
        return text + self.generate


def learn(render: Render) -> Shape:
    """The shape of a template, from sentinels in its rendering.

    Raises UserError, with the reason, when the template has no such shape.
    """
    user: Message = {"role": "user", "content": USER}
    answer: Message = {"role": "assistant", "content": ANSWER}
    again: Message = {"role": "user", "content": AGAIN}
    one = render([user], False)
    asked = render([user], True)
    pair = render([user, answer], False)
    three = render([user, answer, again], False)
    before, user_end = _split(one, USER)
    turn = _between(three, ANSWER, AGAIN)
    answer_end = _split(pair, ANSWER)[1]
    if not turn.startswith(answer_end) or not asked.startswith(one):
        raise UserError("it renders a turn differently when another follows")
    user_start = turn.removeprefix(answer_end)
    if not before.endswith(user_start):
        raise UserError("it renders the first question differently from later ones")
    shape = Shape(
        head=before.removesuffix(user_start) if user_start else before,
        user_start=user_start,
        user_end=user_end,
        answer_start=_between(pair, USER, ANSWER).removeprefix(user_end),
        answer_end=answer_end,
        generate=asked.removeprefix(one),
    )
    return _with_system(shape, render, user, answer, again)


def _with_system(shape: Shape, render: Render, user: Message, answer: Message, again: Message) -> Shape:
    system: Message = {"role": "system", "content": SYSTEM}
    try:
        text = render([system, user], False)
        long = render([system, user, answer, again], False)
    except UserError:  # the template refuses a system message
        return shape
    known = {
        name: getattr(shape, name)
        for name in ("head", "user_start", "user_end", "answer_start", "answer_end", "generate")
    }
    if SYSTEM not in text:
        raise UserError("it leaves the system message out")
    before, between = _split(text, SYSTEM)[0], _between(text, SYSTEM, USER)
    if long.index(SYSTEM) > long.index(ANSWER):
        head = _split(long, USER)[0].removesuffix(shape.user_start)
        return Shape(**known, system="last", system_head=head, system_end=_between(long, SYSTEM, AGAIN))
    if between.endswith(shape.user_start) and shape.user_start:
        return Shape(**known, system="turn", system_start=before, system_end=between.removesuffix(shape.user_start))
    if before.endswith(shape.user_start):
        return Shape(**known, system="first", system_head=before.removesuffix(shape.user_start), system_end=between)
    raise UserError("it places the system message in a way of its own")


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise UserError("it changes, repeats or drops the content of a message")
    before, _, after = text.partition(mark)
    return before, after


def _between(text: str, first: str, second: str) -> str:
    return _split(_split(text, first)[1], second)[0]


def differences(shape: Shape, render: Render) -> list[list[Message]]:
    """The conversations, of several shapes, that `shape` renders differently from the template."""
    contents = ("Hello", 'Zahlen 0123, naïve 東京 🙂\nsecond  line {"a": [1]}', "What is {{ this }}?")
    shapes = [["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"]]
    if shape.system != "none":
        shapes += [["system", *roles] for roles in shapes]
    found = []
    for roles, start in product(shapes, range(len(contents))):
        messages: list[Message] = [
            {"role": role, "content": contents[(start + i) % len(contents)]} for i, role in enumerate(roles)
        ]
        if shape.render(messages) != render(messages, True):
            found.append(messages)
    return found


def go_template(shape: Shape) -> str:
    """The shape as a template of Go's text/template, over Ollama's `.Messages` (`.Role`, `.Content`) and `.System`."""
    inside = {
        "first": f"{{{{ if and $.System (le $i 1) }}}}{{{{ $.System }}}}{_text(shape.system_end)}{{{{ end }}}}",
        "last": "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}"
        + _text(shape.system_end)
        + "{{ end }}",
    }.get(shape.system, "")
    system = (
        f'{{{{ if eq $m.Role "system" }}}}{_text(shape.system_start)}{{{{ $m.Content }}}}{_text(shape.system_end)}{{{{ else if eq $m.Role "user" }}}}'
        if shape.system == "turn"
        else '{{ if eq $m.Role "user" }}'
    )
    heads = _text(shape.head)
    if shape.system != "none":
        other = f"{{{{ else }}}}{_text(shape.system_head)}" if shape.system_head else ""
        heads = f"{{{{ if not .System }}}}{_text(shape.head)}{other}{{{{ end }}}}"
    return (
        (heads if shape.head or shape.system_head else "")
        + "{{ range $i, $m := .Messages }}"
        + system
        + f"{_text(shape.user_start)}{inside}{{{{ $m.Content }}}}{_text(shape.user_end)}"
        + f'{{{{ else if eq $m.Role "assistant" }}}}{_text(shape.answer_start)}{{{{ $m.Content }}}}{_text(shape.answer_end)}'
        + "{{ end }}{{ end }}"
        + _text(shape.generate)
    )


def _text(text: str) -> str:
    """A literal: quoted inside an action, so that no white space of it can be trimmed and no brace be taken for an action."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def modelfile(file: str, shape: Shape | None, reason: str, stops: list[str]) -> str:
    """The Modelfile. shape None: without a TEMPLATE, for `reason`. stops: texts that end an answer."""
    lines = [f"FROM ./{file}"]
    if shape is not None:
        lines.append(f'TEMPLATE """{go_template(shape)}"""')
    else:
        lines += [
            f"# No TEMPLATE: {reason}. Ollama takes the nearest one it knows, or the Jinja template in the GGUF:",
            "# look at `ollama show --template` and set OLLAMA_GO_TEMPLATE=0 to have the embedded one applied.",
        ]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]  # Ollama takes what is between the quotes as it is
    return "\n".join(lines) + "\n"
