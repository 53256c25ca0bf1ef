"""What a bake-off compares, and where each arm is kept."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.answers import answer_of
from tunegate.core.artifacts import Dataset
from tunegate.core.console import say
from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.files import (
    canonical_json,
    home_path,
    new_folder,
    read_json,
    relative_files,
    sha256_file,
    sha256_text,
    write_json,
    write_jsonl,
    write_text,
)
from tunegate.core.methods import METHODS, RAG_LORA, TRAINED
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import Row, read_jsonl, read_rows, read_unique_rows
from tunegate.evalkit.evaluate import identity_of, planned
from tunegate.evalkit.system import System
from tunegate.evalkit.task import EvalTask
from tunegate.serve.prompting.index import PASSAGES
from tunegate.serve.tool_calls import check_takes_tools
from tunegate.train.arms.documents import read_documents
from tunegate.train.config import from_file, resolve
from tunegate.train.data.normalize import normalized, user_text
from tunegate.train.work import working_folder

BASE = "base"  # the model as it is, asked as the task asks it
ARMS = (BASE, *METHODS, RAG_LORA)
TUNED = (*TRAINED, RAG_LORA)  # arms with weights of their own
RETRIEVING = ("rag", RAG_LORA)
FRACTIONS = (0.25, 0.5, 1.0)
SHORTEST = 20  # characters of a question that is looked for in documents
NEAR = 1000  # characters around a question in which a document answers it: about a passage
IDENTITY = "bakeoff-plan.json"
FILES = ("system_file", "docs", "adapter", "embedder")  # settings that name a file or folder
DATA = "data"  # training rows that the bake-off itself wrote


@dataclass(frozen=True, kw_only=True)
class Business:
    """What the numbers are turned into money with. gpu: of the advisor's list. calls_per_day: mean."""

    gpu: str
    calls_per_day: float
    p95_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Member:
    """One thing that is measured: an arm, made from a share of the training rows."""

    arm: str
    share: float = 1.0

    @property
    def name(self) -> str:
        """Its folder's name: `lora`, `lora-25` for a quarter."""
        return self.arm if self.share == 1.0 else f"{self.arm}-{round(100 * self.share)}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a bake-off is decided by. settings: of `ft train`, the same for each arm that reads them; own_settings:
    of one arm alone.

    budget_s: for everything; None for as long as it takes. curve: shares of the training rows for the tuned arms.
    """

    task: EvalTask
    dataset: Dataset
    source: ModelSource
    arms: tuple[str, ...]
    docs: str
    settings: dict[str, Any]
    own_settings: dict[str, dict[str, Any]]
    business: Business
    out: Path
    budget_s: float | None
    curve: tuple[float, ...]

    def members(self, arm: str) -> list[Member]:
        """What is measured of an arm: tuned ones at each share of the data, the whole last."""
        return [Member(arm=arm, share=s) for s in (self.curve if arm in TUNED else (1.0,))]

    def run_folder(self, member: Member) -> Path:
        """Where the member's run is."""
        return self.out / "runs" / member.name

    def report_folder(self, member: Member) -> Path:
        """Where the member's report is."""
        return self.out / "reports" / member.name


def parse_arms(text: str) -> tuple[str, ...]:
    """Arms from `prompt,lora`; the base goes first, so that there is something to be better than."""
    named = [a.strip() for a in text.split(",") if a.strip()]
    for arm in named:
        if arm not in ARMS:
            raise UsageError(f"unknown arm {arm!r}", where="--arms", hint=nearest(arm, list(ARMS)))
    if not named:
        raise UsageError("no arm was named", where="--arms", hint=f"arms: {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in {BASE, *named})


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings for all arms, settings of single arms under the key `arms`) of a YAML file, each checked by name.

    Raises UserError for an unknown arm or setting.
    """
    settings = from_file(path)
    own = settings.pop("arms", None) or {}
    if not isinstance(own, dict):
        raise UserError('"arms" must be a mapping of arm to settings', where=str(path))
    for arm, values in own.items():
        if arm not in ARMS[1:]:
            raise UserError(f"unknown arm {arm!r}", where=f"{path} arms", hint=nearest(str(arm), list(ARMS[1:])))
        if not isinstance(values, dict):
            raise UserError("must be a mapping of settings", where=f"{path} arms/{arm}")
    for values in (settings, *own.values()):
        if taken := {"method", "model"} & set(values):
            raise UserError(f"{min(taken)} is the bake-off's to set", where=str(path), hint="use --arms and --model")
        resolve([(str(path), values)])
    return settings, own


def open_plan(plan: Plan, *, force: bool) -> None:
    """Make the folder, or go on in it. Raises UserError when another bake-off stands or was begun there, or when the task's
    tools cannot be sent to the model."""
    if plan.task.sends_tools:
        check_takes_tools(plan.source)
    if manifests.is_finished(plan.out) and not force:
        raise UserError("exists already", where=str(plan.out), hint="pass --force to decide and write it again")
    base = System(spec=plan.source.spec, kind="model", digest="")  # what differs from arm to arm plays no part
    price = plan.task.file.price
    identity = {
        **identity_of(planned(base, plan.task).report),
        "price": None if price is None else asdict(price),
        "dataset": plan.dataset.digest,
        "model": plan.source.as_input().digest,
        "settings": {**plan.settings, "arms": plan.own_settings},
        "files": {name: contents_of(name) for name in _files(plan)},
        "docs": [plan.docs, contents_of(plan.docs)],
    }
    marker = plan.out / IDENTITY
    if marker.is_file():
        before = read_json(marker)
        changed = [k for k, v in json.loads(canonical_json(identity)).items() if before.get(k) != v]
        if changed == ["docs"]:
            _remove_leaking(plan)
        if changed == ["docs"] and not _retrieved(plan):  # until an arm has read them they may be mended
            write_json(marker, identity)
        elif changed:
            raise UserError(
                f"another bake-off was begun here: {', '.join(changed)} differ",
                where=str(plan.out),
                hint="name another --out, or remove the folder",
            )
        say(f"going on in {plan.out}: finished arms are kept")
        (plan.out / manifests.NAME).unlink(missing_ok=True)
        return
    if plan.out.exists() and any(path.name != DATA for path in plan.out.iterdir()):
        raise UserError("is not empty and holds no bake-off", where=str(plan.out), hint="name another --out")
    plan.out.mkdir(parents=True, exist_ok=True)
    write_json(marker, identity)


def _retrieved(plan: Plan) -> bool:
    """Whether an arm that reads the documents was made or begun."""
    runs = [plan.run_folder(member) for arm in RETRIEVING for member in plan.members(arm)]
    return any(manifests.is_finished(run) or working_folder(run).is_dir() for run in runs)


def _remove_leaking(plan: Plan) -> None:
    """Remove the runs, with their reports, that were made of documents that answer evaluation rows: none was a fair arm."""
    for member in [member for arm in RETRIEVING for member in plan.members(arm)]:
        run = plan.run_folder(member)
        if manifests.is_finished(run) and (found := leaking(_documents_of(run), plan.task)):
            say(f"{member.name} is made again: {found[0]} answered the evaluation row {found[1]}")
            for folder in (plan.report_folder(member), run):
                shutil.rmtree(folder, ignore_errors=True)


def _documents_of(run: Path) -> list[tuple[str, str]]:
    """(name, text) of the documents that a run retrieves from, put together of its passages; none where it reads training
    rows."""
    found: dict[str, list[str]] = {}
    if not manifests.read(run).config.get("docs"):
        return []
    for _, passage in read_jsonl(run / PASSAGES):
        found.setdefault(passage["source"], []).append(passage["text"])
    return [(name, "\n".join(pieces)) for name, pieces in found.items()]


def _files(plan: Plan) -> list[str]:
    """What settings name on this machine, as they name it."""
    given = [values.get(key) for values in (plan.settings, *plan.own_settings.values()) for key in FILES]
    return sorted({str(name) for name in given if name})


def contents_of(name: str) -> str | None:
    """SHA-256 over a file, or over the names and contents of a folder's files; None where there is neither."""
    path = home_path(name)
    if not name or not path.exists():
        return None
    if path.is_file():
        return sha256_file(path)
    found = {file: sha256_file(path / file) for file in relative_files(path) if (path / file).is_file()}
    return sha256_text(canonical_json(found))


def dataset_of(path: Path, task: EvalTask, out: Path) -> Dataset:
    """The training rows: a Dataset folder, or a JSONL file of rows, of which the evaluation rows are left out.

    Raises UserError when a Dataset's own training rows hold an evaluation question: the comparison would be unfair.
    """
    if path.is_dir():
        dataset = Dataset.open(path)
        refuse_leaks(list(read_rows(dataset.train_path)), task, where=str(dataset.train_path))
        return dataset
    rows = read_unique_rows(path)
    asked = {normalized(user_text(row)) for row in task.rows}
    kept = [row for row in rows if normalized(user_text(row)) not in asked]
    if not kept:
        raise UserError("every row is also an evaluation row", where=str(path))
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} rows ask what the evaluation asks and are left out of training")
    folder = out / DATA / "train"
    source = manifests.Input.of_file(path, "rows")
    if manifests.is_finished(folder):
        dataset = Dataset.open(folder)
        if [item.digest for item in dataset.manifest.inputs] != [source.digest]:
            raise UserError(
                f"another bake-off was begun here: its training rows are not those of {path}",
                where=str(out),
                hint="name another --out, or remove the folder",
            )
        refuse_leaks(list(read_rows(dataset.train_path)), task, where=str(dataset.train_path))
        return dataset
    return write_rows(kept, folder, [source])


def dataset_with(task: EvalTask) -> Path:
    """The Dataset folder that the task's items were held out in. Raises UsageError where they lie in none."""
    folder = task.file.data.parent
    if manifests.is_finished(folder) and manifests.read(folder).kind == Dataset.kind:
        return folder
    hint = "a Dataset folder of ft data prepare, or a JSONL file of rows"
    raise UsageError(f"no training rows are named, and {folder} is no Dataset", where="--train", hint=hint)


def refuse_leaks(rows: Sequence[Row], task: EvalTask, *, where: str) -> None:
    """Raise UserError naming the first evaluation question that stands among the training rows (normalised text)."""
    seen = {normalized(user_text(row)): row.id for row in rows}
    hits = [(row.id, seen[text]) for row in task.rows if (text := normalized(user_text(row))) in seen]
    if hits:
        raise UserError(
            f"{len(hits)} evaluation rows are among the training rows; the first: {hits[0][0]} is {hits[0][1]}",
            where=where,
            hint="hold out first: ft data prepare; or see ft data leakage",
        )


def refuse_leaking_documents(docs: str, task: EvalTask) -> None:
    """Raise UserError when a document holds an evaluation question and, near it, its expected answer; for documents that cannot
    be read."""
    path = home_path(docs)
    if found := leaking(read_documents(path), task):
        name, row = found
        told = f"{name} answers the evaluation row {row} word by word"
        raise UserError(told, where=str(path), hint="take it out of the documents")


def leaking(documents: Sequence[tuple[str, str]], task: EvalTask) -> tuple[str, str] | None:
    """(name of a document, id of the evaluation row whose question it holds and within NEAR characters the words of its
    answer), the first; None where there is none. Passages do not cut a document here."""
    texts = [(name, normalized(text)) for name, text in documents]
    together = "\n".join(text for _, text in texts)  # most questions stand in no document: one search tells
    for row in task.rows:
        question, answer = normalized(user_text(row)), _answer_words(row)
        if len(question) < SHORTEST or not answer or question not in together:
            continue
        for name, text in texts:
            if any(all(words.search(near) for words in answer) for near in _around(question, text)):
                return name, row.id
    return None


def _around(question: str, text: str) -> Iterator[str]:
    """What stands before and behind a question, wherever the text holds it."""
    at = text.find(question)
    while at >= 0:
        end = at + len(question)
        yield text[max(0, at - NEAR) : at] + "\n" + text[end : end + NEAR]
        at = text.find(question, end)


def _answer_words(row: Row) -> list[re.Pattern[str]]:
    """What an answer's text is told by, normalised, as whole words: the text; of calls the names and all values of the
    arguments."""
    _, calls = answer_of(row)
    words = [str(value) for value in _values(calls)] if calls else [row.expected]
    return [re.compile(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])") for text in map(normalized, words) if text]


def _values(value: Any) -> Iterator[Any]:
    """The values that a JSON value is made of; no keys."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _values(part)
    elif value is not None:
        yield json.dumps(value) if isinstance(value, bool) else value


def subset(plan: Plan, share: float) -> Dataset:
    """A share of the training rows as a Dataset; smaller shares are parts of larger ones (by the hash of the id)."""
    if share == 1.0:
        return plan.dataset
    folder = plan.out / DATA / f"train-{round(100 * share)}"
    if manifests.is_finished(folder):
        return Dataset.open(folder)
    rows = list(read_rows(plan.dataset.train_path))
    order = sorted(rows, key=lambda row: sha256_text(f"share {row.id}"))[: max(1, round(share * len(rows)))]
    chosen = {row.id for row in order}
    return write_rows([row for row in rows if row.id in chosen], folder, [plan.dataset.as_input("dataset")])


def write_rows(rows: Sequence[Row], folder: Path, inputs: list[manifests.Input]) -> Dataset:
    """A Dataset folder of training rows alone."""
    with new_folder(folder) as temporary:
        write_jsonl(temporary / "train.jsonl", (row.to_json() for row in rows))
        for name in ("eval.jsonl", "rejected.jsonl"):
            write_text(temporary / name, "")
        manifests.write(temporary, Dataset.kind, inputs=inputs, config={}, facts={"train": len(rows)})
    return Dataset.open(folder)
