"""`task.yaml`: the data, how it is asked, how answers are judged. Everything in it is checked before anything is asked."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.files import canonical_json, sha256_file, sha256_text
from tunegate.core.manifest import Input
from tunegate.core.rows import Message, Row, read_unique_rows
from tunegate.core.strict_yaml import read_yaml
from tunegate.evalkit import extract as extraction
from tunegate.evalkit.options import build
from tunegate.evalkit.policy import Policy
from tunegate.evalkit.summary import LEAKAGE, REPEATED
from tunegate.evalkit.validators.base import Validator
from tunegate.evalkit.validators.kinds import make
from tunegate.train.data.normalize import input_key, said_key

SCORER_VERSION = 7  # raised whenever a validator's verdict on some answer changes
RESERVED = {"weighted", *REPEATED, *LEAKAGE}  # and every name with the unit of another metric: see `_primary`


# Fields of a request that the harness sets itself.
OURS = frozenset(("model", "messages", "tools", "stream", "stream_options", "response_format", "n"))


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Request fields sent to the endpoint as they are. max_tokens: of the answer. stop: texts that end it. extra_body: further
    fields that the endpoint takes, such as `chat_template_kwargs: {enable_thinking: false}` (vLLM) or `reasoning_effort`."""

    max_tokens: int = field(default=256, metadata={"minimum": 1})
    temperature: float = field(default=0.0, metadata={"minimum": 0})
    seed: int | None = 0
    top_p: float = field(default=1.0, metadata={"exclusiveMinimum": 0, "maximum": 1})
    stop: tuple[str, ...] = ()
    extra_body: dict[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """As request fields; absent ones left out."""
        found: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        found |= {} if self.seed is None else {"seed": self.seed}
        return found | ({"stop": list(self.stop)} if self.stop else {}) | self.extra_body

    def check(self, where: str) -> None:
        """Raise UserError for a further field that is set here by another way."""
        own = {f.name for f in fields(self)} | OURS
        if taken := sorted(own & self.extra_body.keys()):
            raise UserError(
                f"{taken[0]!r} is no further field",
                where=f"{where} extra_body",
                hint="it has a key of its own, or is the harness's",
            )


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Examples put before the question: the first `n` rows of `file`, each as a user and an assistant turn; without `n` the
    first four, or as many as there are."""

    file: Path
    n: int | None = field(default=None, metadata={"minimum": 1})


@dataclass(frozen=True, kw_only=True)
class Price:
    """What tokens cost, in USD per million."""

    prompt_usd_per_1m: float = field(metadata={"minimum": 0})
    completion_usd_per_1m: float = field(metadata={"minimum": 0})


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """The keys of `task.yaml`.

    system: replaces the rows' own leading system turns. prompt: what the last user turn becomes, `{input}` standing for it.
    extract: named steps, in order. primary: the validator that decides an item (the last one, if not named). group: key
    of rows that are not independent (the rows' own `group`, if not named). price: USD per million tokens. repeats: answers
    per item. gate: what `gate.yaml` holds. send_tools: whether the rows' tools go to the endpoint. train: rows that the
    system was trained on, for the metric `leakage`, where its lineage does not say.
    """

    name: str
    data: Path
    validators: tuple[dict[str, Any], ...] = field(metadata={"minItems": 1, "holds": Validator})
    primary: str | None = None
    slices: tuple[str, ...] = ()
    group: str | None = None
    generation: Generation = field(default_factory=Generation)
    system: str | None = None
    prompt: str | None = field(default=None, metadata={"pattern": r"\{input\}"})
    few_shot: FewShot | None = None
    extract: tuple[str, ...] = field(default=(), metadata={"items": {"enum": list(extraction.STEPS)}})
    repeats: int = field(default=1, metadata={"minimum": 1})
    gate: Policy | None = None
    send_tools: bool = True
    price: Price | None = None
    train: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """A task, checked, with its rows. digest: of what decides a score given the answers (validators, extraction).

    ids: of all rows of the data; `rows` may be the first of them only. inputs: the files it reads, its own first, as they were
    when they were read.
    """

    path: Path
    file: TaskFile
    rows: tuple[Row, ...]
    validators: tuple[Validator, ...]
    primary: str
    examples: tuple[Row, ...]
    digest: str
    data_sha256: str
    ids: frozenset[str]
    inputs: tuple[Input, ...]

    def messages(self, row: Row) -> list[Message]:
        """The prompt of one row: leading system turns, examples, the rest as it stands."""
        systems, rest = split_systems([_sent(message) for message in row.prompt])
        if self.file.system is not None:
            systems = [{"role": "system", "content": self.file.system}]
        if self.file.prompt is not None and rest and rest[-1]["role"] == "user":
            rest[-1]["content"] = self.file.prompt.replace("{input}", str(rest[-1].get("content") or ""))
        shown = [turn for example in self.examples for turn in self._as_example(example)]
        return [*systems, *shown, *rest]

    def _as_example(self, example: Row) -> list[Message]:
        _, turns = split_systems([_sent(message) for message in example.messages])
        if self.file.prompt is not None and len(turns) >= 2:
            turns[-2]["content"] = self.file.prompt.replace("{input}", str(turns[-2].get("content") or ""))
        return turns

    @property
    def sends_tools(self) -> bool:
        """Whether any request brings tools."""
        return any(self.tools(row) for row in self.rows)

    def tools(self, row: Row) -> list[Any] | None:
        """The tools sent with one row."""
        return row.tools if self.file.send_tools else None

    def group_of(self, row: Row) -> str:
        """What names the rows that are not independent of this one; the row's own id where nothing does."""
        value = _lookup(row, self.file.group) if self.file.group else row.group
        return str(value) if value is not None else f"\0{row.id}"

    def slice_of(self, row: Row, key: str) -> str | None:
        """The row's value of a slice key, as text; None where it has none."""
        value = _lookup(row, key)
        return None if value is None else value if isinstance(value, str) else canonical_json(value)


def split_systems(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """(the leading system turns, what follows). One in the midst of a conversation is said there, and stays there."""
    first = next((at for at, turn in enumerate(turns) if turn["role"] not in ("system", "developer")), len(turns))
    return turns[:first], turns[first:]


def _sent(message: Message) -> Message:
    """A turn as a request holds it: OpenAI's `weight` is for training, and its API refuses it."""
    return {key: value for key, value in message.items() if key != "weight"}


def load_task(path: Path, *, limit: int | None = None, allow_python: bool = False) -> EvalTask:
    """Read and check a task file and its data. limit: only the first rows.

    Raises UserError with file and key, or file and line, for whatever is wrong with either.
    """
    where = str(path)
    document = read_yaml(path)
    file = build(TaskFile, document, where=where, base=path.parent)
    if file.prompt is not None and "{input}" not in file.prompt:
        raise UserError(
            "the prompt has no {input}, so no question would be asked",
            where=f"{where} prompt",
            hint="write {input} where the question stands",
        )
    validators = tuple(_validator(v, f"{where} validators[{i}]", path.parent) for i, v in enumerate(file.validators))
    primary = _primary(file, validators, where)
    if not allow_python and any(v.kind == "python" for v in validators):
        raise UserError(
            "a python validator runs code of yours", where=f"{where} validators", hint="pass --allow-python"
        )
    extraction.check(file.extract, f"{where} extract")
    file.generation.check(f"{where} generation")
    if file.gate is not None:
        file.gate.check(f"{where} gate")
    if file.train is not None and not file.train.is_file():
        raise UserError("no such file", where=f"{where} train: {file.train}")
    rows = read_unique_rows(file.data)
    examples = _examples(file.few_shot, rows, where)
    inputs = _inputs(path, file, validators)  # before a judge is measured, which takes a while
    _check_rows(rows, file, validators, where)
    rules = [repr_of(v) for v in validators]
    digest = sha256_text(
        canonical_json({"v": SCORER_VERSION, "validators": rules, "extract": file.extract, "primary": primary})
    )
    return EvalTask(
        path=path,
        file=file,
        rows=tuple(rows if limit is None else rows[:limit]),
        validators=validators,
        primary=primary,
        examples=examples,
        digest=digest,
        data_sha256=next(given.digest for given in inputs if given.role == "data"),
        ids=frozenset(row.id for row in rows),
        inputs=inputs,
    )


def _inputs(path: Path, file: TaskFile, validators: tuple[Validator, ...]) -> tuple[Input, ...]:
    """The files that a task reads, its own first."""
    read = [(path, "task"), (file.data, "data"), *([(file.few_shot.file, "few_shot")] if file.few_shot else [])]
    for validator in validators:
        own = (v for v in vars(validator).values() if isinstance(v, Path) and v.is_file())
        read += [(v, f"validator {validator.name}") for v in own]
    return tuple(Input.of_file(*each) for each in read)


def repr_of(validator: Validator) -> str:
    """What decides a validator's verdicts, as text: its kind and options, a file by its content."""
    parts = {
        name: f"sha256:{sha256_file(value)}" if isinstance(value, Path) and value.is_file() else str(value)
        for name, value in sorted(vars(validator).items())
        if not (isinstance(value, Path) and value.is_dir()) and (name, value) != ("accept", None)
    }
    code = [sha256_file(path) for path in validator.code()]
    return canonical_json({"kind": validator.kind, **parts, **({"code": code} if code else {})})


def _validator(given: Any, where: str, base: Path) -> Validator:
    """One of the task's validators; what it refuses by its own name, or by another file's, names the task file too."""
    try:
        return make(given, where=where, base=base)
    except UserError as error:
        if (error.where or "").startswith(where):
            raise
        raise _of_task(error, where) from None


def _of_task(error: UserError, where: str) -> UserError:
    return UserError(error.message, where=": ".join(filter(None, (where, error.where))), hint=error.hint)


def _primary(file: TaskFile, validators: tuple[Validator, ...], where: str) -> str:
    names = [v.name for v in validators]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"two validators are called {name!r}", where=f"{where} validators[{index}] name")
        if name in RESERVED or name.endswith(("_ms", "_rate", "_bytes", "_usd")):
            raise UserError(f"{name!r} is the name of a metric of ours", where=f"{where} validators[{index}] name")
    if file.primary is not None and file.primary not in names:
        raise UserError(
            f"no validator is called {file.primary!r}", where=f"{where} primary", hint=nearest(file.primary, names)
        )
    return file.primary or names[-1]


def _check_rows(rows: list[Row], file: TaskFile, validators: tuple[Validator, ...], where: str) -> None:
    try:
        for row in rows:
            for validator in validators:
                validator.check_row(row)
    except UserError as error:
        if (error.where or "").startswith(str(file.data)):
            raise
        raise _of_task(error, where) from None
    for index, key in enumerate(file.slices):
        if key in file.slices[:index]:
            raise UserError(f"{key!r} stands twice", where=f"{where} slices[{index}]", hint="leave one out")
    for key in [*file.slices, *([file.group] if file.group else [])]:
        if all(_lookup(row, key) is None for row in rows):
            known = sorted(
                {k for row in rows[:1000] for k in (*row.tags, *row.extra, *(["group"] if row.group else []))}
            )
            raise UserError(
                f"no row has {key!r}", where=f"{where} slices/group", hint=nearest(key, known) if known else None
            )


def _examples(wanted: FewShot | None, rows: list[Row], where: str) -> tuple[Row, ...]:
    if wanted is None:
        return ()
    examples = read_unique_rows(wanted.file)[: wanted.n or 4]
    if wanted.n is not None and len(examples) < wanted.n:
        raise UserError(
            f"cannot show {wanted.n} examples: {wanted.file} holds {len(examples)}",
            where=f"{where} few_shot n",
            hint=f"add rows to it, or set n: {len(examples)}",
        )
    asked: dict[str, dict[str, str]] = {}
    for row in rows:
        asked.setdefault(_question(row), {})[input_key(row)] = row.id
    for example in examples:
        # of several items that say the same, system turns tell which is asked
        alike = asked.get(_question(example), {})
        same = next(iter(alike.values())) if len(alike) == 1 else alike.get(input_key(example))
        if same is not None:
            raise UserError(
                f"this example is also asked, by the item {same!r}: its answer would be given away",
                where=f"{wanted.file}:{example.line}",
                hint="take it out; questions are compared without case, punctuation and system turns",
            )
    return tuple(examples)


def _question(row: Row) -> str:
    """What makes two rows ask the same: the user's text, normalised, and its operators; the whole prompt where the user says
    nothing."""
    return said_key(row) or canonical_json(row.prompt)


def _lookup(row: Row, key: str | None) -> Any:
    """A key of the row's tags, else a key of the row itself (`group` included)."""
    if key is None:
        return None
    if key in row.tags:
        return row.tags[key]
    return row.group if key == "group" else row.extra.get(key)
