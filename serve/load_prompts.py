"""The prompts of a load test that names none: the held-out rows behind the target, else some of ours, which is said."""

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import datasets_behind
from tunegate.core.console import say, warn
from tunegate.core.files import home_path, sha256_text
from tunegate.core.manifest import Input
from tunegate.serve.load_plan import Prompt, make_prompt, read_data

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
        for folder, dataset, why in datasets_behind(manifests.read(path).inputs):
            if dataset is None:
                say(f"the data {folder} that the target was made from {why}: its held-out rows are not sent")
            elif dataset.eval_path.is_file() and (found := read_data(dataset.eval_path)):
                file = dataset.eval_path
                say(f"prompts: {file}, held out of the target's own data (--data FILE or --prompts FILE: others)")
                return found, str(file), Input.of_file(file, "prompts")
    texts = [task.format(topic) for task in _TASKS for topic in _TOPICS]
    warn(
        f"no --data and no --prompts: {len(texts)} short prompts of a general kind; with other prompts than your own "
        "another service is measured"
    )
    source = Input(role="prompts", kind="file", path=GENERIC, digest=sha256_text("\n".join(texts)))
    return [make_prompt(({"role": "user", "content": text},)) for text in texts], GENERIC, source
