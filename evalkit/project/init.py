"""`ft init`: a project folder that runs: data held out, task, gate, training settings, a Makefile and a CI workflow."""

import math
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunegate.advisor.models import find
from tunegate.core.artifacts import Dataset
from tunegate.core.errors import UserError
from tunegate.core.files import home_path, new_folder, refuse_existing, relative_files, write_jsonl, write_text
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import BUILTIN_PREFIX, BUILTINS, has_hub_form, resolve
from tunegate.core.power import detectable_difference, pairs_for_difference
from tunegate.core.rows import read_rows
from tunegate.core.statistics import clopper_pearson
from tunegate.evalkit.init import init_task
from tunegate.evalkit.project.sample import sample_rows
from tunegate.train.config import commented_yaml
from tunegate.train.data.prepare import PrepareConfig, Report, prepare
from tunegate.train.data.read import Reading
from tunegate.train.data.tokens import counter, sizes

ALPHA = 0.05
MARGIN = 0.02  # of the default gate, where there are items enough
FLOOR = 0.1  # for free text: below any use, above what answers without meaning reach
DISCORDANCE = 0.1  # share of items on which two models differ: what `ft eval power` takes too
TEMPLATES = {
    "Makefile": "Makefile",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/model-gate.yml",
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """What was written. outputs: what the expected answers are (label, json, tool_call, number, text). margin: of the
    gate, the least that the held-out rows can show. need_n: rows that MARGIN would take. calls_left_out: rows whose tool
    calls the model's chat template drops, so that training will refuse them."""

    path: Path
    dataset: Dataset
    outputs: str
    primary: str
    written: list[str]
    margin: float
    need_n: int
    calls_left_out: int


# The stage between a run with weights and its release; a run without weights is served as it is.
MERGE = "release/manifest.json: run/manifest.json\n\t$(FT) merge run --out release --force\n\n"


def init_project(folder: Path, data: Path | None, *, reading: Reading, model: str, method: str, force: bool) -> Project:
    """Write a project folder whole, or nothing. data: the user's rows in any format that `ft data prepare` reads; a
    sample set without it. reading: how they are read.

    Raises UserError for a folder that exists, for data that cannot be read, and for a model that can be none.
    """
    if data is not None and not data.is_file():
        what = "is a folder" if data.is_dir() else "is no file that can be copied" if data.exists() else "no such file"
        raise UserError(what, where=str(data), hint="a file of rows is needed")
    # A folder without a tokenizer is refused before anything is written; a GGUF file has its own inside, estimated here.
    count = counter(None if home_path(model).is_file() else model)
    _refuse_no_model(model)
    named = folder.name not in ("", "..")  # else refused, as every output folder is
    earlier = force and named and all((folder / name).is_file() for name in ("task.yaml", "gate.yaml", "train.yaml"))
    if earlier:
        _refuse_others(folder, "data.jsonl" if data is None else _plain_name(data))
    else:
        refuse_existing(folder, force=force, called="folder", example="my-model")
    with new_folder(folder, force=force, own=earlier) as temporary:
        source = temporary / ("data.jsonl" if data is None else _plain_name(data))
        if data is None:
            write_jsonl(source, sample_rows())
        else:
            shutil.copyfile(data, source)
        config = PrepareConfig(reading=reading)
        dataset, report = _prepared(str(data or source), temporary / "dataset", config)
        task = init_task(dataset.eval_path, temporary / "task.yaml", force=False)
        margin = _margin(report.questions)
        write_text(temporary / "gate.yaml", _gate(task, report.questions, margin))
        base = _seen_from(folder, model)
        write_text(temporary / "train.yaml", commented_yaml(method, {"model": base}))
        words = {"SOURCE": source.name, "PRIMARY": task["primary"], "METHOD": method, "VERSION": version("tunegate")}
        words["PATH"] = source.name.replace("+", r"\\+")  # in a double-quoted pattern of GitHub's, where + repeats
        words |= {"SHIPPED": "run", "MERGE": ""} if method in WEIGHTLESS else {"SHIPPED": "release", "MERGE": MERGE}
        for name, target in TEMPLATES.items():
            text = (files("tunegate.evalkit.project") / "templates" / name).read_text(encoding="utf-8")
            in_make = name == "Makefile"
            words["OPTIONS"] = _options(reading, in_make=in_make)
            words["MODEL"] = shlex.quote(base).replace("$", "$$") if in_make else base
            words["FIXED"] = f" --model {words['MODEL']}" if _is_known(model) else ""
            for word, value in words.items():
                text = text.replace(f"@{word}@", value)
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            write_text(temporary / target, text)
        shutil.rmtree(temporary / "dataset")  # made again by `make data`, with paths of the final folder
    prepared, _ = prepare([str(folder / source.name)], folder / "dataset", config)
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "dataset" not in p.parts)
    return Project(
        path=folder, dataset=prepared, outputs=task["outputs"], primary=task["primary"], written=written, margin=margin,
        need_n=pairs_for_difference(DISCORDANCE, MARGIN, alpha=ALPHA),
        calls_left_out=sum(size.calls_left_out for size in sizes(read_rows(prepared.train_path), count)),
    )  # fmt: skip


def _refuse_others(folder: Path, source: str) -> None:
    """Raise UserError where an earlier project holds more than was written into it, a trained run or notes: `--force` would take
    it away. source: the name of the rows."""
    ours = {"task.yaml", "task.schema.json", "gate.yaml", "train.yaml", "data.jsonl", source, *TEMPLATES.values()}
    for name in relative_files(folder):
        if name not in ours and not name.startswith("dataset/"):
            raise UserError(
                f"holds {name}, which --force would remove",
                where=str(folder),
                hint="move it away, or choose another folder",
            )


def _refuse_no_model(model: str) -> None:
    """Raise UserError, in the words of every command that loads one, for what no later stage could take as a model. What is
    there, a known builtin, an URL and the form of a hub id pass; nothing is fetched or unpacked."""
    path = home_path(model)
    builtin = model.removeprefix(BUILTIN_PREFIX) in BUILTINS and model.startswith(BUILTIN_PREFIX)
    hub_id = has_hub_form(model) and path.suffix != ".gguf"
    if not (builtin or path.exists() or "://" in model or hub_id):
        resolve(model)


def _is_known(model: str) -> bool:
    """Whether the advisor knows the model's shape; of another it is asked which one to take."""
    try:
        find(model)
    except UserError:
        return False
    return True


def _seen_from(folder: Path, model: str) -> str:
    """The model as it is named inside the project, where make runs: a relative path leads there from the project's folder."""
    if Path(model).is_absolute() or not Path(model).exists():
        return model
    return os.path.relpath(Path(model).resolve(), folder.resolve())


def _prepared(rows: str, folder: Path, config: PrepareConfig) -> tuple[Dataset, Report]:
    """As `ft data prepare` does it. Raises UserError in words of `ft init`, which has not all of its options."""
    try:
        dataset, report = prepare([rows], folder, config)
    except UserError as error:
        if not any(option in (error.hint or "") for option in ("--on-error", "--eval-fraction", "--yes")):
            raise
        hint = "mend the rows, or make the folder by ft data prepare, which has options for it"
        raise UserError(error.message, where=error.where, hint=hint) from None
    if not report.eval:
        raise UserError(
            f"of {report.rows_in} rows none can be held out to judge by",
            where=rows,
            hint="give more, hundreds if you can",
        )
    return dataset, report


def _plain_name(data: Path) -> str:
    """The file's name where make can take it as a target, else `data` with its suffixes."""
    if re.fullmatch(r"[\w.+-]+", data.name):
        return data.name
    packed = data.suffix in (".gz", ".zst")
    return "data" + "".join(data.suffixes[-2 if packed else -1 :])


def _options(reading: Reading, *, in_make: bool) -> str:
    """The options of `ft data prepare` that read the rows in the same way, as text of a shell or a Makefile."""
    columns = reading.columns
    given = [("--format", reading.format), *(("--tag", key) for key in reading.tag_keys)]
    if columns is not None:
        given += [("--prompt-key", columns.prompt), ("--completion-key", columns.completion)]
        given += [("--system-key", columns.system)]
    text = "".join(f" {option} {shlex.quote(value)}" for option, value in given if value is not None)
    return text.replace("$", "$$") if in_make else text


def _margin(n: int) -> float:
    """The margin that n items show for equal models, in whole points, at least MARGIN."""
    return max(MARGIN, math.ceil(100 * detectable_difference(n, DISCORDANCE, alpha=ALPHA)) / 100)


def _gate(task: dict[str, Any], n: int, margin: float) -> str:
    """The text of gate.yaml. What n different questions cannot show is not asked of them: one slip among them must still pass."""
    slip = math.ceil(100 * (clopper_pearson(1, n, level=1 - 2 * ALPHA).high or 1.0)) / 100
    lines = [
        f"# For {n} different held-out questions: less than these numbers they cannot show. With more of them, ask for more (ft eval power).",
        f"alpha: {ALPHA}",
        "conditions:",
        f"  - {{metric: {task['primary']}, rule: non_inferior, margin: {margin:g}}}  # paired with the baseline, item by item",
        "  - {metric: infra_error_rate, rule: at_most, value: 0.01}",
        f"  - {{metric: truncated_rate, rule: at_most, value: {max(0.02, slip):g}}}  # the interval's upper end, not the point",
    ]
    if task["outputs"] in ("json", "tool_call"):
        lines.append(
            f"  - {{metric: json_valid, rule: at_least, value: {min(0.95, round(1 - slip, 2)):g}}}  # its lower end"
        )
    if task["outputs"] == "text":
        lines += [
            "  # Without a floor a model that is never right passes beside a baseline that is never right. Raise it to what you need.",
            f"  - {{metric: {task['primary']}, rule: at_least, value: {FLOOR:g}}}",
        ]
    return "\n".join([*lines, ""])
