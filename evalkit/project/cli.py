"""`ft init`: options and printing."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.console import JsonOption, emit_json, out

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: ft init my-model --data my.jsonl   then   cd my-model && make advice")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")] = Path("tunegate-project"),
    data: Annotated[
        Path | None, typer.Option(help="Your rows, in any format ft data prepare reads; a sample without.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model.")] = "builtin:smollm2-135m",
    method: Annotated[str, typer.Option(help="prompt, few_shot, rag, lora, qlora or full.")] = "lora",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a project that runs: held-out data, task, gate, training settings, Makefile, CI workflow. Asks nothing."""
    from tunegate.core.errors import UsageError, nearest
    from tunegate.core.methods import METHODS
    from tunegate.evalkit.project.init import init_project

    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}", where="--method", hint=nearest(method, list(METHODS)))
    made = init_project(folder, data, model=model, method=method, force=force)
    facts = made.dataset.manifest.facts
    if as_json:
        emit_json(
            {
                "project": str(made.path),
                "files": made.written,
                "train": facts["train"],
                "eval": facts["eval"],
                "outputs": made.outputs,
                "primary": made.primary,
            }
        )
        return
    out().print(f"project: {made.path}", markup=False)
    for name in made.written:
        out().print(f"  {name}", markup=False)
    out().print(
        f"answers are {made.outputs}; {made.primary} decides; {facts['train']} rows to train on, {facts['eval']} held out\n"
        f"next: cd {made.path} && make advice",
        markup=False,
    )
