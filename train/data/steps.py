"""The single steps of `ft data`, over sources: what each command calls."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from tunegate.core import manifest
from tunegate.core.artifacts import Dataset
from tunegate.core.console import ticked
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import (
    new_folder,
    refuse_existing,
    refuse_existing_file,
    refuse_input,
    refuse_input_file,
    write_jsonl,
    write_text,
)
from tunegate.core.model_source import BUILTIN_PREFIX
from tunegate.core.profile import DatasetProfile
from tunegate.core.rows import KEYS, Row
from tunegate.train.data.check import Finding, check_row, claims_json
from tunegate.train.data.clean import Cleaned, hidden, untrainable
from tunegate.train.data.clean import clean as clean_rows
from tunegate.train.data.dedup import Deduplicated, deduplicate, refuse_mass_removal
from tunegate.train.data.engine import Mapped, rows_of
from tunegate.train.data.export import OPENAI_KEYS, READ_AS, export
from tunegate.train.data.judge import Judge
from tunegate.train.data.labels import labels
from tunegate.train.data.leakage import Leakage
from tunegate.train.data.leakage import leakage as compare
from tunegate.train.data.lines import Fault
from tunegate.train.data.prepare import PrepareConfig, admitted, profile_of, refuse_nothing_left, source_inputs
from tunegate.train.data.read import Reading, read, read_records, sources, strictly
from tunegate.train.data.rejected import Rejected
from tunegate.train.data.tokens import Counter as TokenCounter
from tunegate.train.data.tokens import Size, Sizer, counter, sizes, warn_if_estimated
from tunegate.train.paths import given_name

# Rows looked at to tell what a set is like, before it streams by.
SAMPLE = 1000


@dataclass(frozen=True, kw_only=True)
class Checked:
    """rows read; errors: lines that are no rows; findings: counts by code; items: errors and findings in order, at most
    `KEPT_ITEMS` of each kind; tokens_cut: tokens beyond max_length (None: not asked)."""

    rows: int
    errors: int
    findings: dict[str, int]
    items: list[Finding]
    tokens_cut: int | None
    token_source: str


KEPT_ITEMS = 1000


def profile(names: Sequence[str], reading: Reading, *, label: str | None, model: str | None) -> DatasetProfile:
    """Profile sources as they stream by; labels are decided on the first rows."""
    rows = strictly(read(names, reading))
    sample = list(islice(rows, SAMPLE))
    source, _ = labels(sample, label)
    tokens = counter(model)
    warn_if_estimated(model, exact=tokens.exact)
    return profile_of(chain(sample, rows), tokens, source)


def check(names: Sequence[str], reading: Reading, *, model: str | None, max_length: int | None) -> Checked:
    """Check sources as they stream by, in memory that does not grow with them (ids apart: 8 bytes and a line each)."""
    stream = read(names, reading)
    sample = list(islice(stream, SAMPLE))
    claims = claims_json(row for row in sample if isinstance(row, Row))
    tokens = counter(model)
    warn_if_estimated(model, exact=tokens.exact)
    counts: Counter[str] = Counter()
    items: list[Finding] = []
    rows = errors = cut = 0
    hinted: set[str | None] = set()
    seen: dict[int, tuple[str, int]] = {}
    counted = tokens if max_length is not None or tokens.template else None
    for item, size in _sized(ticked(chain(sample, stream), "rows checked"), counted):
        if isinstance(item, Fault):
            errors += 1
            error, hint = item.error, item.error.hint
            if hint in hinted:  # what to do is said once
                error = UserError(error.message, where=error.where)
            hinted.add(hint)
            found = [Finding(code="error", file=item.file, line=item.line, pointer="", message=error.line())]
        else:
            rows += 1
            found = list(check_row(item, claims_json=claims))
            if earlier := seen.get(hash(item.id)):  # perhaps of the same line: an array may stand on one
                place = "{}:{}".format(*earlier)
                found.append(_finding(item, "duplicate_id", "/id", f"id {item.id!r} also stands on {place}"))
            seen.setdefault(hash(item.id), (item.file, item.line))
            if size is not None:
                found += _template_findings(item, size)
            if size is not None and max_length is not None:
                cut += max(0, size.total - max_length)
                found += _length_findings(item, size, max_length, tokens.whole_source)
        for finding in found:
            counts[finding.code] += 1
            if counts[finding.code] <= KEPT_ITEMS:
                items.append(finding)
    return Checked(
        rows=rows,
        errors=errors,
        findings={code: n for code, n in sorted(counts.items()) if code != "error"},
        items=items,
        tokens_cut=cut if max_length is not None else None,
        token_source=tokens.source if max_length is None else tokens.whole_source,
    )


def _sized(stream: Iterable[Row | Fault], tokens: TokenCounter | None) -> Iterator[tuple[Row | Fault, Size | None]]:
    """Each item with its size where it is a row and tokens are counted, in blocks of `SAMPLE`."""
    items = iter(stream)
    while block := list(islice(items, SAMPLE)):
        found = iter(sizes((i for i in block if isinstance(i, Row)), tokens) if tokens else ())
        for item in block:
            yield item, next(found, None) if isinstance(item, Row) else None


def _template_findings(row: Row, size: Size) -> Iterator[Finding]:
    if size.refused:
        yield _finding(row, "template", "/messages", "refused; its marks are counted as an estimate")
    if size.calls_left_out:
        yield _finding(row, "template", "/messages", "its tool calls are left out, `ft train` refuses it")


def _length_findings(row: Row, size: Size, max_length: int, source: str) -> Iterator[Finding]:
    if size.total > max_length:
        yield _finding(row, "too_long", "", f"{size.total} tokens, {size.total - max_length} over ({source})")
    if untrainable(size, max_length):
        yield _finding(row, "untrainable", "", f"{size.prompt} tokens stand before the answer")


def clean(names: Sequence[str], out: Path, config: PrepareConfig, *, force: bool) -> tuple[int, list[Row], Cleaned]:
    """Clean row by row into a folder: (rows in, rows kept, what was removed and found)."""
    refuse_existing(out, force=force)
    refuse_input(out, *names, *sources(names))
    rejected: list[Rejected] = []
    rows = admitted(read(names, config.reading), config, rejected)
    tokens = counter(config.model)
    warn_if_estimated(config.model, exact=tokens.exact)
    kept, result = clean_rows(rows, [], config.clean, Sizer(counter=tokens))
    result = replace(result, rejected=[*rejected, *result.rejected])
    refuse_mass_removal(rows, result.rejected, yes=config.yes)
    refuse_nothing_left(kept, result.rejected, names)
    removed = [hidden(item) for item in result.rejected] if config.clean.secrets == "mask" else result.rejected
    _write_rows(out, names, kept, removed, [], force=force)
    return len(rows) + len(rejected), kept, result


def dedup(
    names: Sequence[str], out: Path | None, config: PrepareConfig, *, force: bool, mapped: Mapped = map
) -> Deduplicated:
    """Deduplicate sources, into a folder when there is `out`; the work runs on the engine `mapped`."""
    if out is not None:
        refuse_existing(out, force=force)
        refuse_input(out, *names, *sources(names))
    rejected: list[Rejected] = []
    rows = admitted(rows_of(names, config.reading, mapped), config, rejected)
    result = deduplicate(rows, config.dedup, mapped)
    result = replace(result, rejected=[*rejected, *result.rejected])
    if out is not None:
        refuse_mass_removal(rows, result.rejected, yes=config.yes)
        pairs = [
            {"kind": kind, **pair.to_json()}
            for kind, found in (("conflict", result.conflicts), ("contrast", result.contrast_pairs))
            for pair in found
        ]
        _write_rows(out, names, result.kept, result.rejected, pairs, force=force)
    return result


def leakage(train: str, held_out: str, *, clean: Path | None, near: Judge) -> Leakage:
    """Compare two sources (a Dataset folder stands for its train or eval rows); write the clean eval rows when asked."""
    if clean is not None:
        refuse_existing_file(clean)
        refuse_input_file(clean, train, held_out, called="--clean")
    sides = [_side(train, "train"), _side(held_out, "eval")]
    result = compare(*(list(strictly(ticked(read([name], Reading()), "rows read"))) for name in sides), near=near)
    if clean is not None:
        clean.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(clean, (row.to_json() for row in result.clean))
    return result


def convert(
    names: Sequence[str], out: Path, target: str, reading: Reading, drop: tuple[str, ...], *, force: bool
) -> int:
    """Write sources in another format; returns the number of rows. Nothing is written when one is refused."""
    refuse_existing_file(out, force=force)
    refuse_input_file(out, *names, *sources(names))
    if needed := [key for key in drop if key in ("messages", "conversations", "instruction", "output")]:
        raise UserError(f"a row is nothing without {needed[0]!r}", where=f"--drop {needed[0]}")
    found: set[str] = set()
    lines = list(ticked(_converted(names, target, reading, drop, found), "rows converted"))
    if unknown := [key for key in drop if key not in found and key not in KEYS]:
        raise UserError(f"no row has {unknown[0]!r}", where="--drop", hint=nearest(unknown[0], sorted(found)))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(line + "\n" for line in lines))
    return len(lines)


def _converted(
    names: Sequence[str], target: str, reading: Reading, drop: tuple[str, ...], found: set[str]
) -> Iterator[str]:
    """The lines to write; `found` gets the keys that records and rows have. A record that has the target's format already stays as it is: a row would join alpaca's instruction and input, forget
    how sharegpt's tool calls were spaced, and leave out openai's `"tools": null`."""
    sources(names)
    for name in names:
        if name.startswith(BUILTIN_PREFIX):
            for row in strictly(read([name], reading)):
                found.update(row.to_json())
                yield from export([row], target, drop)
            continue
        for file in sources([name]):
            for item, record, form in read_records(file, reading):
                if isinstance(item, Fault):
                    raise item.error
                found.update(record, item.to_json())
                same = form == READ_AS.get(target) and target in ("alpaca", "sharegpt") and not reading.tag_keys
                if form == READ_AS.get(target) and target == "openai" and not reading.tag_keys:
                    list(export([item], target, drop))
                    same = True
                    record = {key: value for key, value in record.items() if key in OPENAI_KEYS}
                if same:
                    kept = {key: value for key, value in record.items() if key not in drop}
                    yield json.dumps(kept, ensure_ascii=False, allow_nan=False)
                else:
                    yield from export([item], target, drop)


def _side(name: str, side: str) -> str:
    given_name(f"--{side}", name)
    if manifest.is_finished(Path(name)) and manifest.read(Path(name)).kind != "rows":
        dataset = Dataset.open(Path(name))
        return str(dataset.train_path if side == "train" else dataset.eval_path)
    return name


def _finding(row: Row, code: str, pointer: str, message: str) -> Finding:
    return Finding(code=code, file=row.file, line=row.line, pointer=pointer, message=message)


def _write_rows(
    out: Path,
    names: Sequence[str],
    kept: Iterable[Row],
    rejected: Iterable[Rejected],
    pairs: list[dict[str, object]],
    *,
    force: bool,
) -> None:
    with new_folder(out, force=force) as folder:
        write_jsonl(folder / "rows.jsonl", (row.to_json() for row in kept))
        write_jsonl(folder / "rejected.jsonl", (item.to_json() for item in rejected))
        if pairs:
            write_jsonl(folder / "pairs.jsonl", pairs)
        manifest.write(folder, "rows", inputs=source_inputs(names), config={})
