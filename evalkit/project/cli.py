"""`ft init`: options and printing."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.console import JsonOption, emit_json, out, warn
from tunegate.train.data import options as o

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: ft init my-model --data my.jsonl && cd my-model && make advice")
@o.takes(o.READING)
def init(
    ctx: typer.Context,
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
    from tunegate.core.methods import METHODS, WEIGHTLESS
    from tunegate.evalkit.project.init import MARGIN, init_project

    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}", where="--method", hint=nearest(method, list(METHODS)))
    made = init_project(folder, data, reading=o.reading(ctx.params), model=model, method=method, force=force)
    if made.calls_left_out and method not in WEIGHTLESS:
        warn(
            f"{made.calls_left_out} training rows call tools and the chat template of {model} leaves the calls out: ft train "
            "will refuse them; choose a model with tool calls in its template (--model), or write a call as JSON text in content"
        )
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
                "margin": made.margin,
            }
        )
        return
    out().print(f"project: {made.path}", markup=False)
    for name in made.written:
        out().print(f"  {name}", markup=False)
    questions = facts["eval"] - facts["eval_duplicates"]
    asked = f", {questions} distinct questions," if facts["eval_duplicates"] else ""
    ours = "" if shutil.which("ft") else f" FT={Path(sys.argv[0]).absolute()}"
    out().print(
        f"answers are {made.outputs}; {made.primary} decides; {facts['train']} rows to train on, {facts['eval']} held out\n"
        f"margin of the gate: {made.margin:g}, the least that {facts['eval']} held-out rows{asked} can show; for a margin of "
        f"{MARGIN:g} hold out about {made.need_n:,} (ft eval power)\n"
        f"next: cd {shlex.quote(str(made.path))} && make advice{ours}",
        markup=False,
    )
