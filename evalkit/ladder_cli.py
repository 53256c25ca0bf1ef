"""`ft ladder`: options, one call, a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import GgufExport, Release
from tunegate.core.console import JsonOption, emit_json, out, table
from tunegate.core.errors import UserError

if TYPE_CHECKING:
    from tunegate.evalkit.ladder import Ladder

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: ft ladder release-awq/ --task task.yaml --out ladder/ --gguf gguf/")
def ladder(
    release_folder: Annotated[
        Path, typer.Argument(metavar="RELEASE", help="Release folder; its steps come from its lineage.")
    ],
    task: Annotated[Path, typer.Option("--task", help="The task file (task.yaml).")],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for the reports and the page; run again, it goes on.")
    ] = Path("ladder"),
    gguf: Annotated[
        Path | None, typer.Option("--gguf", help="GGUF folder of ft export, judged in llama.cpp as a last step.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N items.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=4096, help="Most requests at once.")] = 32,
    allow_python: Annotated[bool, typer.Option("--allow-python", help="Let the task run python validators.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make the result anew where one stands; finished steps are kept.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The same items through base, adapter, merged, quantized (and GGUF): which step a drop is due to, with interval and test."""
    release = Release.open(release_folder)
    export = GgufExport.open(gguf) if gguf else None
    if manifests.is_finished(out_folder) and not force:
        raise UserError(
            "a finished ladder stands here", where=str(out_folder), hint="choose another --out, or pass --force"
        )
    from tunegate.evalkit.ladder import ladder as climb
    from tunegate.evalkit.runner import RunOptions
    from tunegate.evalkit.task import load_task

    loaded = load_task(task, limit=limit, allow_python=allow_python)
    done = climb(release, export, loaded, out_folder, options=RunOptions(concurrency=concurrency, timeout_s=600.0))
    document = done.document
    if as_json:
        emit_json({**document, "report": str(done.folder / "ladder.html")})
        return
    _show(done)


def _show(done: "Ladder") -> None:
    """The table, what the prompts' tokens say, and the largest drop."""
    document = done.document
    changes = {change["to"]: change for change in document["changes"]}
    rows = []
    for step in document["steps"]:
        change = changes.get(step["name"])
        moved = [f"{change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]", f"{change['fixed']}/{change['broken']}",
                 f"{change['mcnemar_p']:.3f}", change["verdict"], change["cause"]] if change else [""] * 5  # fmt: skip
        rows.append([step["name"], f"{step['value']:.3f} [{step['low']:.3f}, {step['high']:.3f}]", *moved])
    title = f"{document['task']['name']}: {document['task']['metric']} on {document['task']['n']} items, step by step"
    table(
        title,
        [
            "step",
            document["task"]["metric"],
            "change, 90 % interval",
            "fixed/broken",
            "McNemar p",
            "shown (Holm)",
            "due to",
        ],
        rows,
    )
    other = [c["to"] for c in document["changes"] if c["same_prompt_tokens"] is False]
    if other:
        out().print(
            f"the prompts' token ids differ at: {', '.join(other)}: look at the chat template first", markup=False
        )
    drop = document["largest_drop"]
    out().print(f"largest drop that is shown: {drop}" if drop else "no step shows a drop", markup=False)
    seen = max((c["detectable"] or 0.0 for c in document["changes"] if c["cause"] != "training"), default=0.0)
    out().print(
        f"{document['task']['n']} items show a drop of about {seen:.2f} or more (power 80 %); smaller ones go unseen",
        markup=False,
    )
    out().print(f"page: {done.folder / 'ladder.html'}", markup=False)
