"""Template equality: what the server makes of messages is what training made of them, token by token."""

from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Release, Run
from tunegate.core.chat_template import PROBE, probe_digest, probe_of, render_ids
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import canonical_json, read_json, sha256_text
from tunegate.serve.plain_http import call
from tunegate.serve.served_model import has_dated_template

FILE = "probe.json"


def probe_prompts(folder: Path) -> list[dict[str, Any]]:
    """The prompts that a run or release brings along, with the token ids training made of them; none where it has none."""
    path = folder / FILE
    found: list[dict[str, Any]] = read_json(path)["prompts"] if path.is_file() else []
    return found


def check_template(
    artifact: Release | Run, root: str, model: str, *, key: str | None, certificate: Path | None = None
) -> int:
    """Ask the server's /tokenize for the run's probe prompts and for special-token text in contents; the number compared.

    root: the server's URL without /v1. A template that writes today's date is rendered anew, by the artifact's own tokenizer.
    Raises UserError with the first position that differs.
    """
    today = _tokenizer(artifact) if has_dated_template(artifact) else None

    def served(messages: Any, tools: Any, *, generate: bool) -> list[int]:
        body = {
            "model": model, "messages": messages, "add_generation_prompt": generate, "add_special_tokens": False,
            **({"tools": tools} if tools else {}),
        }  # fmt: skip
        try:
            reply = call(f"{root}/tokenize", body=body, key=key, timeout_s=30.0, certificate=certificate)
            return [int(token) for token in reply.json()["tokens"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InfrastructureError(f"the server does not tokenize: {error!r}", where=f"{root}/tokenize") from None

    prompts = probe_prompts(artifact.path)
    for number, prompt in enumerate(prompts):
        messages, tools = prompt["messages"], prompt.get("tools")
        ids = prompt["ids"] if today is None else render_ids(today, messages, tools=tools, generate=True)
        found = served(messages, tools, generate=True)
        if found != ids:
            raise _differs(artifact, f"prompt {number} of {artifact.path / FILE}", ids, found)
    wanted = artifact.manifest.facts.get("probe_digest")
    if wanted:
        try:
            found = served(list(PROBE), None, generate=False)
        except InfrastructureError:  # a template that takes no system turn, as it did in training
            found = served(list(PROBE[1:]), None, generate=False)
        same = sha256_text(canonical_json(found)) == wanted if today is None else found == _rendered(artifact, today)
        if not same:
            ids_then = _rendered(artifact, today or _tokenizer(artifact))
            raise _differs(artifact, "the probe with special-token text in its contents", ids_then, found)
    compared = len(prompts) + bool(wanted)
    if compared:
        dated = ", with today's date, which the template writes" if today else ""
        say(f"the server tokenizes as training did ({compared} prompts compared{dated})")
    return compared


def first_difference(wanted: list[int], found: list[int]) -> int | None:
    """The first position at which two lists differ; None when they are equal."""
    for position, (a, b) in enumerate(zip(wanted, found, strict=False)):
        if a != b:
            return position
    return None if len(wanted) == len(found) else min(len(wanted), len(found))


def _differs(artifact: Release | Run, what: str, wanted: list[int] | None, found: list[int]) -> UserError:
    hint = f"the chat template or tokenizer is not the one of training: ft verify {artifact.path}"
    if wanted is None or (position := first_difference(wanted, found)) is None:
        return UserError(f"the server tokenizes {what} differently from training", hint=hint)
    a, b = wanted[position : position + 4], found[position : position + 4]
    return UserError(
        f"the server tokenizes {what} differently from training: first at token {position}, "
        f"training {a or 'has ended'}, server {b or 'has ended'}",
        hint=hint,
    )


def _tokenizer(artifact: Release | Run) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(artifact.path), trust_remote_code=False)


def _rendered(artifact: Release | Run, tokenizer: Any) -> list[int] | None:
    """The probe's ids by the artifact's own tokenizer, where that is still the one of training."""
    if probe_digest(tokenizer) != artifact.manifest.facts["probe_digest"]:
        return None
    return render_ids(tokenizer, probe_of(tokenizer))
