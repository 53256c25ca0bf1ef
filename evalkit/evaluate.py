"""One evaluation: a system and a task in, the content of an EvalReport out."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport
from tunegate.core.console import progress, warn
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, home_path, sha256_file, sha256_text
from tunegate.core.manifest import Input
from tunegate.core.rows import Row, read_jsonl
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.leakage import leakage_of
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.recorded import read_recorded
from tunegate.evalkit.report_shape import check_report, checked_result
from tunegate.evalkit.result_log import ResultLog
from tunegate.evalkit.runner import Asked, RunOptions, ask, prompt_digest
from tunegate.evalkit.scoring import REJECTED, SLOW, check_gold, own_failures, result_row, score, verdicts
from tunegate.evalkit.summary import REPEATED, clusters, figures, judged, latency, operations, outcome_counts, slices
from tunegate.evalkit.system import System, Target, served
from tunegate.evalkit.task import SCORER_VERSION, EvalTask, split_systems
from tunegate.evalkit.validators.judge import AT_ONCE

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, before it is written. inputs: for the manifest. log: the answers, removed once the folder stands."""

    reading: Reading
    inputs: list[Input]
    config: dict[str, Any]
    seeds: dict[str, int]
    log: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def log_path(out: Path) -> Path:
    """Where answers are kept until the folder `out` is finished: beside it."""
    return out.with_name(f".{out.name}.answers.jsonl")


def is_left_over(out: Path) -> bool:
    """Whether the answers beside `out` are those of the report that stands there, and not of a run begun since: what was
    asked then may be another model by now."""
    log, manifest = log_path(out), out / manifests.NAME
    return log.is_file() and manifest.is_file() and log.stat().st_mtime_ns <= manifest.stat().st_mtime_ns


def evaluate(
    system: System,
    task: EvalTask,
    *,
    out: Path,
    options: RunOptions,
    key: str | None = None,
    name: str | None = None,
    at: Target | None = None,
) -> Evaluation:
    """Ask (or read) and judge every item. out: the folder that the report will be written to. at: a server that holds
    this system already (a bake-off asks several at one); else one is started.

    Raises UserError for what is wrong with task, data or records; InfrastructureError when the endpoint is gone.
    """
    if system.kind == "report":
        raise UserError(
            "a report is judged already", where=system.spec, hint="compare with it: --against, or decide on it: ft gate"
        )
    check_gold(task)
    start = time.perf_counter()
    asked, facts, target = _answers(system, task, out, options, key, at)
    wall_s = time.perf_counter() - start
    rows = _judged(task, own_failures(asked.answers))
    report = _report(system, task, rows, asked, facts, name or out.name)
    report["timing"] = {
        "wall_s": round(wall_s, 3),
        "requests": asked.asked,
        "requests_per_s": round(asked.asked / asked.wall_s, 3) if asked.asked and asked.wall_s else None,
        "concurrency": options.concurrency if target else None,
    }
    _say_faults(report, rows, task.file.extract)
    return Evaluation(
        reading=Reading(name=str(report["name"]), report=report, rows=rows),
        inputs=[*task.inputs, system.as_input("system")],
        config={"task": canonical_task(task), "target": system.spec, "options": asdict(options)},
        seeds={} if task.file.generation.seed is None else {"generation": task.file.generation.seed},
        log=log_path(out) if target else None,
    )


def _judged(task: EvalTask, answers: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """The rows of results.jsonl; in threads where another model judges, because that is mostly waiting."""

    def one(row: Row) -> dict[str, Any]:
        return result_row(task, row, score(task, row, answers[row.id]))

    if not any(v.kind == "judge" for v in task.validators):
        return [one(row) for row in task.rows]
    with ThreadPoolExecutor(AT_ONCE) as pool, progress("judging", len(task.rows)) as tick:
        rows = []
        for row in pool.map(one, task.rows):
            rows.append(row)
            tick(1)
    return rows


def _answers(
    system: System, task: EvalTask, out: Path, options: RunOptions, key: str | None, at: Target | None
) -> tuple[Asked, dict[str, Any], bool]:
    """The answers, what the server said of itself, and whether an endpoint was asked."""
    if system.kind == "recorded":
        found = read_recorded(
            home_path(system.spec),
            task.rows,
            known=task.ids,
            repeats=task.file.repeats,
            data=task.file.data,
            system=system.model,
        )
        return Asked(answers=found, asked=0, wall_s=0.0, model="", prompt_ids_digest=None), {}, False
    with ResultLog(log_path(out), fresh=is_left_over(out) and not options.retry_errors) as log:
        log_file = out.with_name(f".{out.name}.server.log")
        with nullcontext(at) if at else served(system, key=key, log=log_file, tools=task.sends_tools) as target:
            asked = ask(task, target, log, model_digest=system.digest, options=options, judge=_judge(task))
    return asked, target.facts, True


def _judge(task: EvalTask) -> Any:
    """Whether an answer is right, for the running estimate; None where judging is slow or needs several answers."""
    if task.file.repeats > 1 or any(v.kind in SLOW for v in task.validators):
        return None
    return lambda row, answer: verdicts(task, row, answer)[task.primary].passed


def canonical_task(task: EvalTask) -> dict[str, Any]:
    """The task file as it was understood, for the manifest."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(task.file), default=str))
    return document


def planned(system: System, task: EvalTask) -> Reading:
    """What the report will say whatever is answered: target, task, data, and what is sent; no rows, metrics by name only."""
    recorded = system.kind == "recorded"
    report = {
        "target": {"spec": system.spec, "kind": system.kind, "digest": system.digest, "model": system.model},
        "task": {
            "name": task.file.name,
            "digest": task.digest,
            "primary": task.primary,
            "validators": [{"name": v.name, "kind": v.kind, **v.facts()} for v in task.validators],
            "slices": list(task.file.slices),
            "group": task.file.group,
            "repeats": task.file.repeats,
        },
        "data": {
            "path": str(task.file.data),
            "sha256": task.data_sha256,
            "n": len(task.rows),
            "items_digest": items_digest(task.rows),
            "questions_digest": questions_digest(task.rows),
        },
        # what outputs recorded elsewhere were made with is not known, so it is not claimed
        "generation": None if recorded else task.file.generation.request(),
        "scorer_version": SCORER_VERSION,
        "prompt_digest": None if recorded else prompts_digest((r.id, prompt_digest(task, r)) for r in task.rows),
        "metrics": dict.fromkeys(metric_names_of(task)),
    }
    return Reading(name=system.spec, report=report, rows=())


def identity_of(report: dict[str, Any]) -> dict[str, Any]:
    """What decides a report beside the system it is of, by name: equal for two that were asked and judged alike. report: one
    that was written, or one that is `planned`."""
    task, data = report["task"], report["data"]
    return {
        "task": task.get("digest"),
        "scorer": report.get("scorer_version"),
        "slices": [task.get("slices"), task.get("group")],
        "repeats": task.get("repeats"),
        "data": [data.get(key) for key in ("sha256", "n", "items_digest", "questions_digest")],
        "prompts": report.get("prompt_digest"),
        "generation": report.get("generation"),
    }


def _report(
    system: System, task: EvalTask, rows: list[dict[str, Any]], asked: Asked, facts: dict[str, Any], name: str
) -> dict[str, Any]:
    names = _scored(task)
    known = planned(system, task).report
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": manifests.now(),
        **known,
        "target": {**known["target"], "model": asked.model or system.model},
        "prompt_ids_digest": asked.prompt_ids_digest,
        "template_digest": facts.get("template_digest"),
        "server": {key: value for key, value in facts.items() if key != "template_digest"},
        "n": len(rows),
        "outcomes": outcome_counts(rows),
        "metrics": figures(rows, names),
        "slices": slices(rows, task.file.slices, names),
        "latency": latency(rows),
        "tokens": _tokens(rows),
        "size_bytes": system.size_bytes,
        "leakage": leakage_of(system, task),
        "comparison": None,
        "decision": None,
        "lineage": manifests.lineage((*task.inputs, system.as_input("system"))),
    }
    return {**report, "operations": operations(rows, report)}


def _scored(task: EvalTask) -> list[str]:
    return [v.name for v in task.validators] + (["weighted"] if any(v.weight for v in task.validators) else [])


def metric_names_of(task: EvalTask) -> list[str]:
    """The metrics that a report of this task will have."""
    return [*_scored(task), *(REPEATED if task.file.repeats > 1 else ())]


def _tokens(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """Tokens of all answers that came, repeats included: null where one of them does not say. answers: how many came; counted:
    how many say both."""
    kept = [
        (prompt, completion)
        for row in judged(rows)
        if row["cause"] != REJECTED
        for outcome, prompt, completion in zip(
            row.get("outcomes") or [row["outcome"]],
            row.get("each_prompt_tokens") or [row["prompt_tokens"]],
            row.get("each_completion_tokens") or [row["completion_tokens"]],
            strict=True,
        )
        if outcome != "infra_error"
    ]
    prompts, completions = [p for p, _ in kept], [c for _, c in kept]
    both = sum(p is not None and c is not None for p, c in kept)
    return {"prompt": _total(prompts), "completion": _total(completions), "answers": len(kept), "counted": both}


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def items_digest(rows: tuple[Row, ...]) -> str:
    """What the items are: their ids and what is expected of each, a schema of its own too. Pairs are made by id, so the order of
    lines plays no part."""
    return _by_id([r.id, r.expected, r.accept, r.messages[-1].get("tool_calls"), r.schema] for r in rows)


def questions_digest(rows: tuple[Row, ...]) -> str:
    """What is asked, leading system turns apart: those may differ between two prompts for the same question."""
    return _by_id([r.id, split_systems(list(r.prompt))[1]] for r in rows)


def prompts_digest(prompts: Iterable[tuple[str, str]]) -> str:
    """All that is sent, from each item's id and prompt digest."""
    return _by_id(list(pair) for pair in prompts)


def _by_id(items: Iterable[list[Any]]) -> str:
    return sha256_text(canonical_json(sorted(items, key=itemgetter(0))))


def _say_faults(report: dict[str, Any], rows: list[dict[str, Any]], extract: tuple[str, ...]) -> None:
    """Nothing silent: items that got no answer, that were cut off, that are empty, that hold thoughts."""
    counts = report["outcomes"]
    if counts["infra_error"]:
        or_verdict = " or no verdict" if any(row.get("unjudged") for row in rows) else ""
        said = Counter(row["error"].splitlines()[0][:300] for row in rows if row["error"]).most_common(1)
        warn(
            f"{counts['infra_error']} of {report['n']} items got no answer{or_verdict} (infrastructure errors); they are in no score"
            + "".join(f"; {times} times: {text}" for text, times in said)
        )
    single = [row for row in rows if row["group"] is None]
    different = len(set(clusters(single)))
    if different < len(single):
        warn(
            f"{len(single)} items are {different} different questions: copies are no evidence of their own, and count together"
        )
    rejected = sum(row["cause"] == REJECTED for row in rows)
    if rejected:
        warn(f"the endpoint takes the requests of {rejected} of {report['n']} items not at all: they count as failed")
    if counts["truncated"]:
        warn(f"{counts['truncated']} of {report['n']} answers were cut off at max_tokens")
    arrived = [row for row in judged(rows) if row["cause"] != REJECTED]
    empty = sum(not row["output"].strip() and not row["tool_calls"] for row in arrived)
    if empty:
        warn(f"{empty} of {report['n']} answers are empty")
    thinking = sum(row["output"].lstrip().startswith("<think>") for row in judged(rows))
    if thinking and "thinking" not in extract:
        warn(
            f"{thinking} of {report['n']} answers begin with <think>, which is judged as a part of them: extract: [thinking] in the "
            "task takes it out; chat_template_kwargs: {enable_thinking: false} under generation, extra_body asks for none"
        )
    lost = sum("infra_error" in row.get("outcomes", ()) for row in judged(rows))
    if lost:
        warn(f"{lost} items lost some of their repeats to infrastructure errors; the others are judged")
    for name in (validator["name"] for validator in report["task"]["validators"]):
        if none := sum(name not in row["scores"] for row in judged(rows)):
            warn(f"{none} of {report['n']} answers got no verdict of {name}; they are in no score of it")


def open_unchanged(report: EvalReport, *, name: str) -> Reading:
    """The same, of a report that a decision is to rest on. Raises UserError where its answers or figures were changed since."""
    reading = open_reading(report, name=name)
    written = {str(item["path"]): item["sha256"] for item in report.manifest.outputs}
    for path in (report.results_path, report.path / "report.json"):
        if sha256_file(path) != written.get(path.name):
            raise UserError(
                "content changed since the report was written: nothing is decided by it",
                where=str(path),
                hint="judge it again",
            )
    return reading


def open_reading(report: EvalReport, *, name: str) -> Reading:
    """The content of a finished report. Raises UserError when a newer version wrote it, or it is damaged."""
    document: Any = report.report()
    where = str(report.path / "report.json")
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise UserError("not a report of ours", where=where)
    if version > SCHEMA_VERSION:
        raise UserError(
            f"written by a newer version (report schema {version}, this one reads {SCHEMA_VERSION})",
            where=where,
            hint="upgrade tunegate",
        )
    check_report(document, where)
    rows = [checked_result(row, f"{report.results_path}:{number}") for number, row in read_jsonl(report.results_path)]
    return Reading(name=name, report=document, rows=rows, digest=report.digest, path=str(report.path.absolute()))
