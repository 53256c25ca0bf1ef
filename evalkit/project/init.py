"""`ft init`: a project folder that runs: data held out, task, gate, training settings, a Makefile and a CI workflow."""

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.errors import UserError
from tunegate.core.files import new_folder, write_jsonl, write_text
from tunegate.evalkit.init import init_task
from tunegate.evalkit.project.sample import sample_rows
from tunegate.train.config import commented_yaml
from tunegate.train.data.prepare import PrepareConfig, prepare

TEMPLATES = {
    "Makefile": "Makefile",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/model-gate.yml",
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What was written. outputs: what the expected answers are (label, json, tool_call, number, text)."""

    path: Path
    dataset: Dataset
    outputs: str
    primary: str
    written: list[str]


def init_project(folder: Path, data: Path | None, *, model: str, method: str, force: bool) -> Project:
    """Write a project folder whole, or nothing. data: the user's rows in any format that `ft data prepare` reads; a
    sample set without it.

    Raises UserError for a folder that exists, and for data that cannot be read.
    """
    if data is not None and not data.is_file():
        raise UserError(
            "no such file" if not data.exists() else "is a folder, a file of rows is needed", where=str(data)
        )
    with new_folder(folder, force=force) as temporary:
        source = temporary / ("data.jsonl" if data is None else data.name)
        if data is None:
            write_jsonl(source, sample_rows())
        else:
            shutil.copyfile(data, source)
        dataset, _ = prepare([str(data or source)], temporary / "dataset", PrepareConfig())
        task = init_task(dataset.eval_path, temporary / "task.yaml", force=False)
        write_text(temporary / "gate.yaml", _gate(task))
        write_text(temporary / "train.yaml", commented_yaml(method, {"model": model}))
        words = {"SOURCE": source.name, "MODEL": model, "PRIMARY": task["primary"], "METHOD": method}
        for name, target in TEMPLATES.items():
            text = (files("tunegate.evalkit.project") / "templates" / name).read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(f"@{word}@", value)
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            write_text(temporary / target, text)
        shutil.rmtree(temporary / "dataset")  # made again by `make data`, with paths of the final folder
    prepared, _ = prepare([str(folder / source.name)], folder / "dataset", PrepareConfig())
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "dataset" not in p.parts)
    return Project(path=folder, dataset=prepared, outputs=task["outputs"], primary=task["primary"], written=written)


def _gate(task: dict[str, Any]) -> str:
    lines = [
        "alpha: 0.05",
        "conditions:",
        f"  - {{metric: {task['primary']}, rule: non_inferior, margin: 0.02}}  # paired with the baseline, item by item",
        "  - {metric: infra_error_rate, rule: at_most, value: 0.01}",
        "  - {metric: truncated_rate, rule: at_most, value: 0.02}",
    ]
    if task["outputs"] in ("json", "tool_call"):
        lines.append("  - {metric: json_valid, rule: at_least, value: 0.95}  # the interval's lower end, not the point")
    return "\n".join([*lines, ""])
