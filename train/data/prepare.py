"""`prepare`: from files to a Dataset folder. The hold-out is chosen first; only then is what is left cleaned.

read -> same ids and copies -> hold-out by group -> train: leaks, row rules, duplicates -> checks -> profile -> folder
Duplicates come last, so that the row each was removed for is one that stays.
Every row in is in `train.jsonl`, in `eval.jsonl` or in `rejected.jsonl` with its reason; the same input and seed give the
same bytes.
"""

import json
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tunegate.core import manifest
from tunegate.core.artifacts import Dataset
from tunegate.core.console import ticked
from tunegate.core.errors import UserError
from tunegate.core.files import new_folder, refuse_input, write_json, write_jsonl
from tunegate.core.manifest import Input
from tunegate.core.profile import DatasetProfile
from tunegate.core.rows import Row, content_id, read_rows
from tunegate.train.data import bfcl
from tunegate.train.data.beginnings import groups_of
from tunegate.train.data.check import Finding, check_row, claims_json, short_outputs_matter
from tunegate.train.data.clean import CleanConfig, drop, hidden, hidden_pair, measure
from tunegate.train.data.dedup import (
    DedupConfig,
    contradictions,
    deduplicate,
    preferred,
    refuse_mass_removal,
    through,
    with_accept_of,
)
from tunegate.train.data.engine import Mapped, rows_of
from tunegate.train.data.labels import labels, no_row_has, of_key, reader
from tunegate.train.data.language import language
from tunegate.train.data.lines import Fault
from tunegate.train.data.normalize import asked_key, normalized, user_text
from tunegate.train.data.read import Reading, sources
from tunegate.train.data.rejected import Reason, Rejected, tally
from tunegate.train.data.sides import equal_asked, near_in_eval, without_leaks
from tunegate.train.data.split import Split, SplitConfig, split
from tunegate.train.data.tokens import Counter, Sizer, counter
from tunegate.train.data.twins import Pair

# Rows that are checked together.
CHECKED = 4096


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides what `prepare` writes."""

    reading: Reading = field(default_factory=Reading)
    split: SplitConfig = field(default_factory=SplitConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    group: str | None = None
    """tag or key of the row whose value rows of one source share; None: the row's `group`, else its user text"""
    label: str | None = None
    """tag or key of the row's label; None: found out"""
    keep_eval: Path | None = None
    """an earlier eval.jsonl or Dataset folder, whose rows stay held out"""
    keep_leaks: bool = False
    """keep train rows whose normalised prompt stands in eval"""
    on_error: str = "stop"
    """stop at the first malformed line, or reject it"""
    model: str | None = None
    """whose tokenizer counts tokens; None: an estimate"""
    yes: bool = False
    """go on when a step would remove over half of a source"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `prepare` did. rows_in = train + eval + sum(rejected). findings: rows (not stretches) by code."""

    rows_in: int
    train: int
    eval: int
    rejected: dict[str, int]
    findings: dict[str, int]
    split: Split
    label_source: str | None
    conflicts: int
    contrast_pairs: int
    eval_conflicts: int
    """eval rows that ask what an earlier one asks and admit none of its answers: listed in `pairs.jsonl`, kept"""
    same_input: int
    """train rows that ask, or begin with, an eval row's whole prompt, such as those --keep-leaks keeps: listed, kept"""
    same_user_text: int
    """train rows with an eval row's user text under another prompt: listed, kept"""
    eval_duplicates: int
    """eval rows whose whole prompt, normalised, an earlier one has: they tell nothing new of a model"""
    near_in_eval: int | None
    """eval rows near a train row, as `ft data leakage` counts them; None: not looked for (--no-near)"""
    near_skipped: int
    short_rule: str
    """why the rule of 20 output tokens is off; empty: it is on"""
    notes: list[str]
    profile: DatasetProfile

    @property
    def questions(self) -> int:
        """Different prompts among the eval rows: what an evaluation can show hangs on them, not on the rows."""
        return self.eval - self.eval_duplicates


def prepare(
    names: Sequence[str], out: Path, config: PrepareConfig, *, force: bool = False, mapped: Mapped = map
) -> tuple[Dataset, Report]:
    """Read the sources, split, clean, and write a Dataset folder; what is computed row by row runs on the engine `mapped`.

    Raises UserError for bad input (with `on_error` stop: the first malformed line), before anything is written.
    """
    refuse_input(out, *names, *sources(names), config.keep_eval or "")
    rejected: list[Rejected] = []
    everyone = admitted(rows_of(names, config.reading, mapped), config, rejected)
    rows_in = len(everyone) + len(rejected)
    rows, copies = _distinct(everyone, config, rejected)
    if not rows:
        raise UserError("no row is left", where=", ".join(names), hint="every line was rejected")
    label_source, found_labels = labels(rows, config.label)
    if config.group is not None and all(of_key(row, config.group) is None for row in rows):
        raise no_row_has(config.group, rows, "--group")
    groups = groups_of(rows, config.group)
    keep, notes = _kept_flags(rows, config.keep_eval)
    chosen = split(groups, found_labels, config.split, keep)
    notes += _split_notes(chosen, groups, config.split)
    held_out = [row for row, flag in zip(rows, chosen.held_out, strict=True) if flag]
    train = [row for row, flag in zip(rows, chosen.held_out, strict=True) if not flag]
    if not train:
        raise UserError("nothing is left to train on", where=", ".join(names), hint="lower --eval-fraction or add rows")
    token_counter = counter(config.model)
    sizer = Sizer(counter=token_counter)
    done = _clean_train(train, held_out, copies, config, sizer, mapped)
    train, pairs = done.kept, done.pairs
    rejected += done.rejected
    refuse_mass_removal(everyone, rejected, yes=config.yes)
    refuse_nothing_left(train, done.rejected, names)
    measured = measure(train, held_out, config.clean, sizer)
    findings = _findings([*train, *held_out], mapped)
    notes += [*done.notes, *measured.notes]
    profile = profile_of(train, token_counter, label_source)
    report = Report(
        rows_in=rows_in,
        train=len(train),
        eval=len(held_out),
        rejected=tally(rejected),
        findings=_rows_by_code(findings) | measured.findings,
        split=chosen,
        label_source=label_source,
        conflicts=len(pairs["conflict"]),
        contrast_pairs=len(pairs["contrast"]),
        eval_conflicts=len(pairs["conflict_eval"]),
        same_input=len(pairs["same_input"]),
        same_user_text=len(pairs["same_user_text"]),
        eval_duplicates=len(held_out) - len({asked_key(row) for row in held_out}),
        near_in_eval=done.near_in_eval,
        near_skipped=done.skipped,
        short_rule=short_outputs_matter(train)[1],
        notes=notes,
        profile=profile,
    )
    assert rows_in == report.train + report.eval + sum(report.rejected.values()), "rows were lost"
    inputs = source_inputs(names) + _kept_inputs(config.keep_eval)
    dataset = _write(out, train, held_out, rejected, pairs, findings, report, inputs, config, force=force)
    return dataset, report


def refuse_nothing_left(kept: Sequence[Row], removed: Sequence[Rejected], names: Sequence[str]) -> None:
    """Raise UserError when every row was removed: nothing would be left to train on. removed: with their reasons."""
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in tally(removed).items())
        raise UserError(
            f"nothing is left to train on, every row was removed: {told}",
            where=", ".join(names),
            hint="remove less: a higher --max-length, fewer --drop options",
        )


def profile_of(rows: Iterable[Row], tokens: Counter, label_source: str | None) -> DatasetProfile:
    """The profile of rows whose labels come from `label_source`."""
    return DatasetProfile.from_rows(
        ticked(rows, "rows profiled"),
        count_tokens=tokens.count if tokens.exact else None,
        token_source=tokens.source,
        label_of=reader(label_source),
        label_source=label_source,
        language_of=language,
    )


def source_inputs(names: Sequence[str]) -> list[Input]:
    """The source files with their hashes; a builtin's under its own name."""
    return [replace(Input.of_file(file, "source"), path=bfcl.shown_path(file)) for file in sources(names)]


def admitted(stream: Iterable[Row | Fault], config: PrepareConfig, rejected: list[Rejected]) -> list[Row]:
    """The rows; a fault stops everything or is rejected, as configured."""
    rows: list[Row] = []
    for item in ticked(stream, "rows read"):
        if isinstance(item, Row):
            rows.append(item)
        elif config.on_error == "reject":
            rejected.append(Rejected.fault(item))
        else:
            raise UserError(
                item.error.message,
                where=item.error.where,
                hint=item.error.hint or "mend the line, or pass --on-error reject to set such lines aside",
            )
    return rows


def _distinct(
    rows: list[Row], config: PrepareConfig, rejected: list[Rejected]
) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """Rows with different ids, and the copies of each: (copy, row). One id with other content is an error.

    Of copies that one stays which `--keep` prefers, with the admissible outputs of all.
    """
    first: dict[str, list[Row]] = {}
    for row in rows:
        same = first.setdefault(row.id, [])
        if not same or content_id(same[0].messages, same[0].tools) == content_id(row.messages, row.tools):
            same.append(row)
        elif config.on_error == "reject":
            message = f"the id {row.id!r} is also on {same[0].file}:{same[0].line}, with other content"
            rejected.append(Rejected.of(row, Reason.DUPLICATE_ID, message=message))
        else:
            raise UserError(
                f"id {row.id!r} also stands on {same[0].file}:{same[0].line}, with other content",
                where=f"{row.file}:{row.line} /id",
                hint="ids must be unique; leave them out to get one from the content",
            )
    kept, copies = [], []
    for same in first.values():
        best, *others = preferred(same, config.dedup) if len(same) > 1 else same
        row = with_accept_of(best, others)
        kept.append(row)
        copies += [(copy, row) for copy in others]
    places = {id(row): at for at, row in enumerate(rows)} if copies else {}
    return kept, sorted(copies, key=lambda pair: places[id(pair[0])])


def _copied(copies: list[tuple[Row, Row]], removed: list[Rejected]) -> list[Rejected]:
    """Each copy under one id goes for the row it repeats; where a row rule or a leak took that row, for the same reason."""
    gone = {str(item.row["id"]): item for item in removed if item.row is not None}
    settled = []
    for copy, first in copies:
        rule = "same id, messages and tools"
        if (why := gone.get(first.id)) is None:
            settled.append(Rejected.of(copy, Reason.DUPLICATE_EXACT, kept=first.id, rule=rule, score=1.0))
            continue
        if why.reason in (Reason.DUPLICATE_NORMALIZED, Reason.DUPLICATE_NEAR):
            why = replace(why, reason=Reason.DUPLICATE_EXACT, rule=through(rule, str(why.rule)))
        settled.append(replace(why, file=copy.file, line=copy.line, row=copy.to_json()))
    return settled


@dataclass(frozen=True, kw_only=True)
class _CleanTrain:
    """Train after every removal. pairs: by kind, both rows of each are kept."""

    kept: list[Row]
    rejected: list[Rejected]
    pairs: dict[str, list[Pair]]
    notes: list[str]
    skipped: int
    near_in_eval: int | None


def _clean_train(
    train: list[Row],
    held_out: list[Row],
    copies: list[tuple[Row, Row]],
    config: PrepareConfig,
    sizer: Sizer,
    mapped: Mapped,
) -> _CleanTrain:
    """Train without leaks of eval, without rows the row rules remove, without duplicates, in that order; eval is looked at
    only, never changed."""
    kept, leaks = (train, []) if config.keep_leaks else without_leaks(train, held_out)
    kept, dropped = drop(kept, config.clean, sizer)
    result = deduplicate(kept, config.dedup, mapped)
    removed = [*leaks, *dropped.rejected, *result.rejected]
    settled = _copied(copies, removed)
    pairs = {
        "conflict": result.conflicts,
        "contrast": result.contrast_pairs,
        "borderline": result.borderline,
        "conflict_eval": contradictions(held_out),
        **equal_asked(result.kept, held_out),
    }
    return _CleanTrain(
        kept=result.kept,
        rejected=[*settled, *removed],
        pairs=pairs,
        notes=dropped.notes,
        skipped=result.skipped,
        near_in_eval=near_in_eval(result.kept, held_out, result.judged) if result.judged else None,
    )


def _rows_by_code(findings: list[list[Finding]]) -> dict[str, int]:
    """In how many rows each code was found; the findings of each row."""
    return dict(sorted(Tally(code for found in findings for code in {f.code for f in found}).items()))


def _kept_flags(rows: list[Row], keep_eval: Path | None) -> tuple[list[bool], list[str]]:
    """One flag a row: whether it is in the earlier evaluation set, by id or by normalised user text."""
    if keep_eval is None:
        return [], []
    old = list(read_rows(_eval_file(keep_eval)))
    ids = {row.id for row in old}
    texts = {normalized(user_text(row)) for row in old} - {""}
    flags = [row.id in ids or normalized(user_text(row)) in texts for row in rows]
    here = {row.id for row in rows}, {normalized(user_text(row)) for row in rows} - {""}
    missing = sum(row.id not in here[0] and normalized(user_text(row)) not in here[1] for row in old)
    notes = [f"{missing} of the {len(old)} rows of {keep_eval} are not in the sources any more."] if missing else []
    return flags, notes


def _split_notes(chosen: Split, groups: Sequence[str], config: SplitConfig) -> list[str]:
    """What to say of a hold-out that is not as it was asked for."""
    sizes = Tally(groups)
    notes = [
        f"The group {group[:60]!r} stays in train: it holds {sizes[group]:,} of the {len(groups):,} rows, over a third."
        for group in chosen.too_large
        if sizes[group] > 1
    ]
    if chosen.short:
        shown = ", ".join(f"{label!r} {got}" for label, got in list(chosen.short.items())[:5])
        notes.append(
            f"{len(chosen.short)} labels have fewer groups held out than --min-per-label {config.min_per_label}, "
            f"which would be over a third ({shown}{', ...' if len(chosen.short) > 5 else ''})."
        )
    if not chosen.n and config.eval_fraction > 0:
        notes.append("No row is held out, eval.jsonl is empty: add rows, or raise --eval-fraction or --min-eval.")
    return notes


def _eval_file(path: Path) -> Path:
    return path / "eval.jsonl" if path.is_dir() else path


def _kept_inputs(keep_eval: Path | None) -> list[Input]:
    return [Input.of_file(_eval_file(keep_eval), "kept_eval")] if keep_eval is not None else []


def _findings(rows: list[Row], mapped: Mapped) -> list[list[Finding]]:
    """The findings of each row."""
    claims = claims_json(rows)
    blocks = [(claims, rows[at : at + CHECKED]) for at in range(0, len(rows), CHECKED)]
    return list(ticked((found for block in mapped(_checked, blocks) for found in block), "rows checked"))


def _checked(block: tuple[bool, list[Row]]) -> list[list[Finding]]:
    claims, rows = block
    return [list(check_row(row, claims_json=claims)) for row in rows]


def _write(
    out: Path,
    train: list[Row],
    held_out: list[Row],
    rejected: list[Rejected],
    pairs: dict[str, list[Pair]],
    findings: list[list[Finding]],
    report: Report,
    inputs: list[Input],
    config: PrepareConfig,
    *,
    force: bool,
) -> Dataset:
    facts = {key: value for key, value in asdict(report).items() if key not in ("profile", "split")}
    facts["split"] = {
        "threshold": report.split.threshold,
        "pinned": report.split.pinned,
        "kept": report.split.kept,
        "label_source": report.label_source,
    }
    settings = json.loads(json.dumps(asdict(config), default=str))
    shown = [{"kind": kind, **pair.to_json()} for kind, found in pairs.items() for pair in found]
    if config.clean.secrets == "mask":
        rejected, shown = [hidden(item) for item in rejected], [hidden_pair(pair) for pair in shown]
    with new_folder(out, force=force) as folder:
        write_jsonl(folder / "train.jsonl", (row.to_json() for row in train))
        write_jsonl(folder / "eval.jsonl", (row.to_json() for row in held_out))
        write_jsonl(folder / "rejected.jsonl", (item.to_json() for item in rejected))
        write_jsonl(folder / "pairs.jsonl", shown)
        write_jsonl(folder / "findings.jsonl", (finding.to_json() for found in findings for finding in found))
        write_json(folder / "profile.json", report.profile.to_json())
        manifest.write(
            folder, "dataset", inputs=inputs, config=settings, seeds={"split": config.split.seed}, facts=facts
        )
    return Dataset.open(out)
