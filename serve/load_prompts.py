"""The prompts of a load test that names none: the held-out rows behind the target, else some of ours, which is said."""

from pathlib import Path

from tunegate.core import manifest as manifests
from tunegate.core.console import say, warn
from tunegate.core.files import home_path, sha256_text
from tunegate.core.manifest import Input
from tunegate.serve.load_plan import Prompt, make_prompt, read_data

HELD_OUT = "eval.jsonl"
GENERIC = "builtin:generic"
_TASKS = (
    "Explain {} to a child.", "Write a short story about {}.", "List five facts about {}.", "What would change without {}?",
    "Write an advertisement for {}.", "What is the history of {}?", "Compare {} with what came before.", "Name three risks of {}.",
)  # fmt: skip
_TOPICS = (
    "the bicycle", "electric light", "a public library", "the harbour of a small town", "the printing press", "bread",
    "weather forecasts", "a railway timetable",
)  # fmt: skip


def unnamed_prompts(target: str) -> tuple[list[Prompt], str, Input]:
    """(prompts, where they are from, that as an input) for a test of `target` without --data and --prompts."""
    path = home_path(target)
    if manifests.is_finished(path):
        lineage = manifests.lineage(manifests.read(path).inputs)
        for folder in (Path(row["path"]) for row in lineage if row["kind"] == "dataset"):
            if (folder / HELD_OUT).is_file() and (found := read_data(folder / HELD_OUT)):
                say(
                    f"prompts: {folder / HELD_OUT}, held out of the target's own data (--data FILE or --prompts FILE: others)"
                )
                return found, str(folder / HELD_OUT), Input.of_file(folder / HELD_OUT, "prompts")
    texts = [task.format(topic) for task in _TASKS for topic in _TOPICS]
    warn(
        f"no --data and no --prompts: {len(texts)} short prompts of a general kind; with other prompts than your own "
        "another service is measured"
    )
    source = Input(role="prompts", kind="file", path=GENERIC, digest=sha256_text("\n".join(texts)))
    return [make_prompt(({"role": "user", "content": text},)) for text in texts], GENERIC, source
