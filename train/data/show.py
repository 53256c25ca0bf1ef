"""Reports of `ft data` on standard output, and their JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.console import emit_json, out, table
from tunegate.core.power import detectable_difference
from tunegate.core.profile import DatasetProfile, Lengths
from tunegate.core.rows import Row
from tunegate.train.data.check import CODES
from tunegate.train.data.clean import Cleaned
from tunegate.train.data.dedup import NORMALIZED, SAME, Deduplicated
from tunegate.train.data.leakage import NGRAM, Leakage
from tunegate.train.data.normalize import RULE_NAMES
from tunegate.train.data.prepare import PrepareConfig, Report
from tunegate.train.data.rejected import Reason, tally
from tunegate.train.data.steps import Checked
from tunegate.train.data.tokens import warn_if_estimated
from tunegate.train.data.twins import Pair

# Shares of items whose verdict differs between two systems: close releases of one model, and unlike models.
DISCORDANCES = (0.05, 0.2)
ALPHA = 0.05  # as `ft eval power` takes it
# Findings that are counted, not listed row by row.
MEASURED = ("short_output", "too_long", "untrainable", "template")
# Lines of each kind shown when not all are asked for.
SHOWN = 5


def lines(*texts: str) -> None:
    """Print lines on standard output as they are (no markup)."""
    for text in texts:
        out().print(text, markup=False)


def prepared(dataset: Dataset, report: Report, config: PrepareConfig, *, as_json: bool) -> None:
    """The one report of `ft data prepare` and `ft data split`."""
    warn_if_estimated(config.model, exact=report.profile.tokens_exact)
    if as_json:
        emit_json(_prepared_json(dataset, report))
        return
    removed = [[f"rejected: {reason}", f"{count:,}"] for reason, count in report.rejected.items()]
    counts = [["in", f"{report.rows_in:,}"], ["train", f"{report.train:,}"], ["eval", f"{report.eval:,}"]]
    table(None, ["rows", "n"], [*counts, *removed])
    lines(
        *_split_lines(report, config),
        *_finding_lines(report),
        *_length_lines(report, config.model),
        *report.notes,
        f"Dataset: {dataset.path} (digest {dataset.digest[:12]}).",
    )


def inspected(profile: DatasetProfile, html: Path | None, *, as_json: bool) -> None:
    """What `ft data inspect` prints."""
    if as_json:
        emit_json(profile.to_json())
        return
    names = (
        ("input characters", profile.input_characters),
        ("output characters", profile.output_characters),
        ("input tokens", profile.input_tokens),
        ("output tokens", profile.output_tokens),
    )
    rows = [[n, *(f"{v:,}" for v in (x.p50, x.p90, x.p95, x.p99, x.longest, x.total))] for n, x in names]
    table(f"{profile.rows:,} rows", ["length", "median", "90 %", "95 %", "99 %", "longest", "total"], rows)
    for name, counts in _distributions(profile):
        table(None, [name, "rows", "share"], [[k, f"{v:,}", f"{v / profile.rows:.1%}"] for k, v in counts])
    lines(
        f"tokens by {profile.token_source}",
        f"answers that are JSON: {profile.json_outputs:.1%}; rows with a schema: {profile.schema_rows:,}; "
        f"with tools: {profile.tool_rows:,}; system prompts: {profile.system_prompts:,}",
        f"different inputs: {profile.distinct_inputs:,}; different outputs: {profile.distinct_outputs:,}",
        *([f"page: {html}"] if html else []),
    )


def checked(result: Checked, *, show_all: bool, as_json: bool) -> None:
    """What `ft data check` prints."""
    if as_json:
        emit_json(
            {
                "rows": result.rows,
                "errors": result.errors,
                "findings": result.findings,
                "tokens_cut": result.tokens_cut,
                "token_source": result.token_source,
                "items": [finding.to_json() for finding in result.items],
            }
        )
        return
    shown: dict[str, int] = {}
    for finding in result.items:
        shown[finding.code] = shown.get(finding.code, 0) + 1
        if finding.code == "error":
            lines(f"error: {finding.message}")
        elif show_all or shown[finding.code] <= SHOWN:
            lines(f"{finding.to_json()['where']}: {finding.code}: {finding.message}")
    lines(f"{result.rows:,} rows, {result.errors:,} lines that are no rows")
    lines(*(f"{count:,} findings of {code}: {CODES.get(code, code)}" for code, count in result.findings.items()))
    if result.tokens_cut is not None:
        lines(f"{result.tokens_cut:,} tokens are beyond --max-length (tokens by {result.token_source})")


def cleaned(result: tuple[int, list[Row], Cleaned], folder: Path, *, as_json: bool) -> None:
    """What `ft data clean` prints."""
    rows_in, kept, found = result
    rejected = tally(found.rejected)
    if as_json:
        emit_json(
            {
                "rows_in": rows_in,
                "kept": len(kept),
                "rejected": rejected,
                "findings": found.findings,
                "notes": found.notes,
                "out": str(folder),
            }
        )
        return
    removed = [[f"rejected: {reason}", f"{count:,}"] for reason, count in rejected.items()]
    table(None, ["rows", "n"], [["in", f"{rows_in:,}"], ["kept", f"{len(kept):,}"], *removed])
    held = (
        f"{_rows(n)} {'holds' if n == 1 else 'hold'} {CODES.get(code, code)}." for code, n in found.findings.items()
    )
    lines(*held, *found.notes, f"Rows: {folder}.")


def deduplicated(result: Deduplicated, folder: Path | None, *, as_json: bool) -> None:
    """What `ft data dedup` prints."""
    counts = {
        "rows_in": len(result.kept) + len(result.rejected),
        "exact": result.count(Reason.DUPLICATE_EXACT),
        "normalized": result.count(Reason.DUPLICATE_NORMALIZED),
        "near": result.count(Reason.DUPLICATE_NEAR),
        "malformed": result.count(Reason.MALFORMED),
        "conflicts": len(result.conflicts),
        "contrast_pairs": len(result.contrast_pairs),
        "kept": len(result.kept),
    }
    if as_json:
        pairs = {
            "conflicts": result.conflicts,
            "contrast_pairs": result.contrast_pairs,
            "borderline": result.borderline,
        }
        shown = {name: [pair.to_json() for pair in found[:100]] for name, found in pairs.items()}
        rules = {"normalized": NORMALIZED, "near": _near_rule(result)}
        more = {"rules": rules, "curve": result.curve, "pairs": shown, "out": str(folder) if folder else None}
        emit_json({**counts, **more})
        return
    table(None, ["rows", "n"], [[name.replace("_", " "), f"{n:,}"] for name, n in counts.items()])
    lines(f"normalized: {NORMALIZED}; near: {_near_rule(result)}")
    if result.curve:
        curve = [[f"{p['threshold']:.2f}", f"{p['rows']:,}", f"{p['other_answer']:,}"] for p in result.curve]
        table("rows with a nearer one, by threshold", ["at least", "rows", "only with another answer"], curve)
    if result.judged is not None:
        low, high = (
            [p for p in result.borderline if (p.score >= result.judged.threshold) is above] for above in (False, True)
        )
        _show_pairs(f"just above the threshold {result.judged.threshold:g}", high, highest=False)
        _show_pairs("just below it", low)
    _show_pairs("conflicts: same input, another answer", result.conflicts)
    _show_pairs("contrast pairs: near input, another answer", result.contrast_pairs)
    lines(*([f"rows: {folder}"] if folder else ["nothing was written; --out DIR writes what is kept"]))


def leaked(result: Leakage, clean: Path | None, *, as_json: bool) -> None:
    """What `ft data leakage` prints."""
    if as_json:
        emit_json(
            {
                **result.counts,
                "n": result.n,
                "clean": len(result.clean),
                "ngram_blind": round(result.ngram_blind, 4),
                "rules": {
                    "exact": RULE_NAMES["raw"],
                    **{k: v for k, v in RULE_NAMES.items() if k in result.counts},
                    "near": result.near_rule,
                },
                "items": [hit.to_json() for hit in result.hits],
            }
        )
        return
    names = {**RULE_NAMES, "exact": RULE_NAMES["raw"]}
    names["ngram"] = f"{NGRAM} words in a row ({result.ngram_blind:.0%} of eval rows are too short to have them)"
    names["near"] = f"{result.near_rule}, beyond normalized"
    rows = [[name, names[name], f"{count:,}"] for name, count in result.counts.items()]
    table(f"{result.n:,} eval rows also in train", ["rule", "what it compares", "rows"], rows, left=2)
    for hit in result.hits[:SHOWN]:
        same = "same answer" if hit.same_answer else "ANOTHER answer"
        lines(f"{hit.eval_row.file}:{hit.eval_row.line} {hit.rule} train line {hit.train_row.line}, {same}")
    lines(f"{len(result.clean):,} of {result.n:,} eval rows are clean up to normalized")
    lines(*([f"clean rows: {clean}"] if clean else []))


def _prepared_json(dataset: Dataset, report: Report) -> dict[str, Any]:
    return {
        "rows_in": report.rows_in,
        "train": report.train,
        "eval": report.eval,
        "rejected": report.rejected,
        "findings": report.findings,
        "conflicts": report.conflicts,
        "contrast_pairs": report.contrast_pairs,
        "eval_conflicts": report.eval_conflicts,
        "eval_duplicates": report.eval_duplicates,
        "same_input": report.same_input,
        "same_user_text": report.same_user_text,
        "near_in_eval": report.near_in_eval,
        "short_rule_off": report.short_rule or None,
        "eval_fraction_used": report.split.threshold,
        "pinned_groups": len(report.split.pinned),
        "kept_eval": report.split.kept,
        "detectable_drop": {f"discordance_{d}": round(drop, 4) for d, drop in _drops(report).items()},
        "label_source": report.label_source,
        "tokens": {"source": report.profile.token_source, "output": asdict(report.profile.output_tokens)},
        "notes": report.notes,
        "out": str(dataset.path),
        "digest": dataset.digest,
    }


def _drops(report: Report) -> dict[float, float]:
    """By the share of answers on which two models differ: the least drop that the eval set shows, as `ft eval power` gives it."""
    return {d: detectable_difference(report.questions, d, alpha=ALPHA) for d in DISCORDANCES if report.eval}


def _split_lines(report: Report, config: PrepareConfig) -> list[str]:
    share = report.eval / max(1, report.rows_in)
    texts = [f"{_rows(report.eval)} held out for evaluation before any cleaning ({share:.1%} of the rows read)."]
    if report.split.threshold > config.split.eval_fraction:
        least = config.split.min_eval
        why = f"to reach {least} rows (--min-eval)" if report.eval >= least else f"(--min-eval {least} is over a third)"
        texts.append(f"That is more than --eval-fraction asks for {why}.")
    if report.split.pinned:
        n = len(report.split.pinned)
        texts.append(f"{n} more groups were held out so that each label ({report.label_source}) can be evaluated.")
    if report.split.kept:
        texts.append(f"{_rows(report.split.kept)} stay held out because an earlier evaluation set has them.")
    if report.eval:
        small, large = (f"{100 * drop:.1f}" for drop in _drops(report).values())
        asked = f", {report.questions:,} distinct questions," if report.eval_duplicates else ""
        texts.append(
            f"{_rows(report.eval)}{asked} can show a drop of {small} points between models that differ on "
            f"{DISCORDANCES[0]:.0%} of the answers, of {large} points at {DISCORDANCES[1]:.0%} (in 80 of 100 cases)."
        )
    return texts


def _finding_lines(report: Report) -> list[str]:
    texts = [_finding_line(code, count) for code, count in report.findings.items()]
    pairs = (
        (report.conflicts, "have the same input and another answer"),
        (report.contrast_pairs, "have a near input and another answer"),
        (report.eval_conflicts, "of eval have the same input and another answer: no model passes both"),
        (report.same_input, "of train and eval have the same input: a model may know these eval rows by heart"),
        (report.same_user_text, "of train and eval have the same user text under another prompt"),
    )
    texts += [f"{n:,} pairs of rows {what}; both are kept (listed in pairs.jsonl)." for n, what in pairs if n]
    if report.near_in_eval:
        texts.append(
            f"{_rows(report.near_in_eval)} of eval {'has' if report.near_in_eval == 1 else 'have'} a near twin in train, "
            f"which {'is' if report.near_in_eval == 1 else 'are'} kept: `ft data leakage --train DIR --eval DIR` lists them."
        )
    if report.near_skipped:
        texts.append(f"{report.near_skipped:,} comparisons of near rows were left out: too many rows look alike.")
    return texts


def _finding_line(code: str, count: int) -> str:
    counted = "" if code in MEASURED else " (listed in findings.jsonl)"
    return f"{_rows(count)} {'holds' if count == 1 else 'hold'} {CODES.get(code, code)}{counted}."


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _length_lines(report: Report, model: str | None) -> list[str]:
    def words(lengths: Lengths) -> str:
        return f"median {lengths.p50:,}, 95% under {lengths.p95:,}, longest {lengths.longest:,}"

    profile = report.profile
    why = "--model counts them" if model is None else f"no tokenizer of {model} here"
    by = "" if profile.tokens_exact else f", estimated from characters ({why})"
    texts = [
        f"Tokens of a train input: {words(profile.input_tokens)}{by}.",
        f"Tokens of a train answer: {words(profile.output_tokens)}{by}.",
    ]
    if report.short_rule:
        texts.append(f"Short answers are not reported: {report.short_rule}.")
    return texts


def _distributions(profile: DatasetProfile) -> list[tuple[str, list[tuple[str, int]]]]:
    found = [(f"label ({profile.label_source})", list(profile.labels.items())[:20])] if profile.labels else []
    languages = [("language", list(profile.languages.items())[:10])] if profile.languages else []
    return [
        *found,
        *languages,
        ("turns", list(profile.turns.items())[:10]),
        ("script", list(profile.scripts.items())[:10]),
    ]


def _near_rule(result: Deduplicated) -> str | None:
    return f"{result.judged.named}; {SAME}" if result.judged else None


def _show_pairs(title: str, pairs: list[Pair], *, highest: bool = True) -> None:
    if not pairs:
        return
    lines(f"{title} ({len(pairs)}):")
    for pair in sorted(pairs, key=lambda pair: -pair.score if highest else pair.score)[:SHOWN]:
        for name, row in (("", pair.a), ("  ~ ", pair.b)):
            text = " ".join(str(row.prompt[-1].get("content") or "").split())[:100] if row.prompt else ""
            lines(f"  {name}{row.file}:{row.line} {text!r} -> {row.expected[:60]!r}")
        lines(f"    {pair.score:.3f}")
