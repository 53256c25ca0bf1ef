"""Which of vLLM's parsers reads the tool calls that a model writes: told by the chat template, which writes them too.

vLLM refuses a request with `tools` unless it was started with `--enable-auto-tool-choice` and a parser's name, which its
documentation ("Tool Calling") gives by model. A template holds the form itself, so a fine-tuned model under any name is
read right. Each form here was rendered by its template and read back by the parser (vLLM 0.32), but for the last two, which
are that page's.
"""

from pathlib import Path

from tunegate.core.console import warn
from tunegate.core.errors import UserError
from tunegate.serve.preflight import flag
from tunegate.serve.served_model import Target, describe, template_of

ENABLE, PARSER = "--enable-auto-tool-choice", "--tool-call-parser"
# A parser, and what stands in the template of its form, all of it; the first that fits.
FORMS = (
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("glm45", ("<tool_call>", "<arg_key>")),
    ("hermes", ("<tool_call>", '"arguments":')),
    ("gemma4", ("<|tool_call>call:",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("muse_glimmer", ("<atem:function_calls>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("llama3_json", ('"parameters": ', "ipython")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("openai", ("<|channel|>commentary",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
)


def parser_of(template: str) -> str | None:
    """The parser of the form in which a chat template writes tool calls; None where it writes none, or in another form."""
    if "tool_calls" not in template:
        return None
    return next((name for name, marks in FORMS if all(mark in template for mark in marks)), None)


def tool_flags(target: Target, extra: tuple[str, ...]) -> list[str]:
    """vLLM's flags for requests with tools; what the user passes on stands. Warns where the template writes calls in a form
    that is not known here."""
    template = _template(target, extra)
    asked, enabled = flag(extra, PARSER), flag(extra, ENABLE) is not None
    if asked is not None:
        return [] if enabled else [ENABLE]
    name = parser_of(template) if template else None
    if name is None:
        if template and "tool_calls" in template and not enabled:
            warn(f"the chat template's tool calls are of a form not known here: -- {ENABLE} {PARSER} NAME reads them")
        return []
    return [*([] if enabled else [ENABLE]), PARSER, name]


def check_takes_tools(target: Target) -> None:
    """A server started for `target` answers requests with tools. Raises UserError."""
    template = _template(target, ())
    if template is None or parser_of(template) is not None:
        return
    shown = "tool_calls" in template
    raise UserError(
        f"the rows bring tools, but {describe(target)} "
        + ("writes calls in a form not known here" if shown else "has a chat template without tools"),
        where="tools",
        hint=f"ft serve it with -- {ENABLE} {PARSER} NAME and judge its URL"
        if shown
        else "send_tools: false in the task asks without them; or take a model whose chat template shows tools",
    )


def _template(target: Target, extra: tuple[str, ...]) -> str | None:
    own = flag(extra, "--chat-template")
    if own and Path(own).is_file():
        return Path(own).read_text(encoding="utf-8")
    found = template_of(target, tools=True)
    return found[1] if found else None
