"""Reports of `ft data` on standard output, and their JSON."""

from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.console import out, table
from tunegate.core.profile import DatasetProfile, Lengths
from tunegate.train.data.check import CODES
from tunegate.train.data.prepare import PrepareConfig, Report
from tunegate.train.data.split import detectable_drop

# Shares of items whose verdict differs between two systems: close releases of one model, and unlike models.
DISCORDANCES = (0.05, 0.2)


def prepared_json(dataset: Dataset, report: Report) -> dict[str, Any]:
    """The object of `ft data prepare --json`."""
    return {
        "rows_in": report.rows_in,
        "train": report.train,
        "eval": report.eval,
        "rejected": report.rejected,
        "findings": report.findings,
        "conflicts": report.conflicts,
        "contrast_pairs": report.contrast_pairs,
        "eval_fraction_used": report.split.threshold,
        "pinned_groups": len(report.split.pinned),
        "kept_eval": report.split.kept,
        "detectable_drop": {f"discordance_{d}": round(detectable_drop(report.eval, d), 4) for d in DISCORDANCES}
        if report.eval
        else {},
        "label_source": report.label_source,
        "notes": report.notes,
        "out": str(dataset.path),
        "digest": dataset.digest,
    }


def prepared(dataset: Dataset, report: Report, config: PrepareConfig) -> None:
    """Print the one report of `ft data prepare`."""
    removed = [[f"rejected: {reason}", f"{count:,}"] for reason, count in report.rejected.items()]
    table(
        None,
        ["rows", "n"],
        [["in", f"{report.rows_in:,}"], ["train", f"{report.train:,}"], ["eval", f"{report.eval:,}"], *removed],
    )
    console = out()
    for line in [*_split_lines(report, config), *_finding_lines(report), *report.notes]:
        console.print(line, markup=False)
    console.print(_length_line(report.profile), markup=False)
    console.print(f"dataset: {dataset.path}  (digest {dataset.digest[:12]})", markup=False)


def _split_lines(report: Report, config: PrepareConfig) -> list[str]:
    share = report.eval / max(1, report.train + report.eval)
    lines = [f"held out before any cleaning: {report.eval} rows ({share:.1%}), by group, seed {config.split.seed}"]
    if report.split.threshold > config.split.eval_fraction:
        lines[0] += (
            f"; --min-eval raised the fraction from {config.split.eval_fraction:g} to {report.split.threshold:.3f}"
        )
    if report.split.pinned:
        lines.append(
            f"{len(report.split.pinned)} groups pinned to eval so that each label ({report.label_source}) is in it"
        )
    if report.split.kept:
        lines.append(f"{report.split.kept} rows stay in eval as before")
    if report.eval:
        small, large = (detectable_drop(report.eval, d) for d in DISCORDANCES)
        lines.append(
            f"such an eval set can show a drop of {100 * small:.1f} points when {DISCORDANCES[0]:.0%} of the answers change, "
            f"{100 * large:.1f} when {DISCORDANCES[1]:.0%} do (80 % power)"
        )
    return lines


def _finding_lines(report: Report) -> list[str]:
    lines = [f"{count} x {CODES.get(code, code)}" for code, count in report.findings.items()]
    if report.conflicts:
        lines.append(f"{report.conflicts} conflicts (same input, another answer) kept: pairs.jsonl")
    if report.contrast_pairs:
        lines.append(f"{report.contrast_pairs} contrast pairs (near input, another answer) kept: pairs.jsonl")
    if report.near_skipped:
        lines.append(f"{report.near_skipped} comparisons left out of over-full buckets")
    return lines


def _length_line(profile: DatasetProfile) -> str:
    def words(lengths: Lengths) -> str:
        return f"median {lengths.p50}, 95 % under {lengths.p95}, longest {lengths.longest}"

    return (
        f"tokens ({profile.token_source}): input {words(profile.input_tokens)}; output {words(profile.output_tokens)}"
    )
