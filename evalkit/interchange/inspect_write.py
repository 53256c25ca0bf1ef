"""A report as an Inspect log, version 2: `.json`, or `.eval` (a zip), which `inspect view` opens."""

import io
import json
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, sha256_text, write_bytes
from tunegate.evalkit.interchange.inspect_log import OURS
from tunegate.evalkit.scoring import EACH, REFUSED

REPEATS = {**EACH, "latency_ms": "latencies_ms", "ttft_ms": "ttfts_ms"}
STATES = {"length": "max_tokens", "stop": "stop", "content_filter": "content_filter", "tool_calls": "tool_calls"}


def write(path: Path, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the log; the form is the suffix's. Raises UserError for another suffix."""
    if path.suffix not in (".json", ".eval"):
        raise UserError("an Inspect log is a .json or .eval file", where=str(path))
    header, samples = _header(report, rows), [s for row in rows for s in _samples(row, report)]
    if path.suffix == ".json":
        write_bytes(path, json.dumps({**header, "samples": samples}, ensure_ascii=False, indent=1).encode())
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        start = {"version": 2, "eval": header["eval"], "plan": header["plan"]}
        archive.writestr("_journal/start.json", json.dumps(start))
        for sample in samples:
            name = f"samples/{sample['id']}_epoch_{sample['epoch']}.json"
            archive.writestr(name, json.dumps(sample, ensure_ascii=False))
        archive.writestr("summaries.json", json.dumps([_summary(s) for s in samples], ensure_ascii=False))
        archive.writestr("header.json", json.dumps(header, ensure_ascii=False))
    write_bytes(path, packed.getvalue())


def _header(report: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    task, digest, epochs = report["task"], sha256_text(canonical_json(report["data"]))[:22], _repeats(report)
    model = f"{OURS}{report['target']['model'] or report['target']['spec']}"
    ids = [row["id"] for row in rows]
    when = report["created"]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": sha256_text(canonical_json([digest, report["target"], when]))[:22],
            "run_id": sha256_text(canonical_json([report["target"], when]))[:22],
            "created": when,
            "task": task["name"],
            "task_id": digest,
            "task_version": report.get("scorer_version"),
            "dataset": {
                "name": task["name"],
                "location": report["data"].get("path"),
                "samples": len(ids),
                "sample_ids": ids,
            },
            "model": model,
            "config": {"epochs": epochs},
            "packages": {"tunegate": version("tunegate")},
            "metadata": {"comparison": (report["comparison"] or {}).get("metrics"), "decision": report["decision"]},
        },
        "plan": {
            "name": "plan",
            "steps": [{"solver": "generate", "params": {}}],
            "config": report.get("generation") or {},
        },
        "results": {
            "total_samples": len(ids) * epochs,
            "completed_samples": len(ids) * epochs - epochs * report["outcomes"]["infra_error"],
            "scores": [_score(name, figure) for name, figure in report["metrics"].items()],
        },
        "stats": {"started_at": when, "completed_at": when},
    }


def _repeats(report: dict[str, Any]) -> int:
    return int(report["task"].get("repeats") or 1)


def _score(name: str, figure: dict[str, Any]) -> dict[str, Any]:
    known = {"mean": figure["value"], "ci_low": figure["low"], "ci_high": figure["high"]}
    metrics = {key: {"name": key, "value": value} for key, value in known.items() if value is not None}
    return {"name": name, "scorer": name, "metrics": metrics}


def _samples(row: dict[str, Any], report: dict[str, Any]) -> list[dict[str, Any]]:
    """One sample an answer; scores stand at the item (their mean over repeats)."""
    if not row.get("outcomes"):
        return [_sample(row, report, 1)]
    return [_sample(_repeat(row, at), report, at + 1) for at in range(len(row["outcomes"]))]


def _repeat(row: dict[str, Any], at: int) -> dict[str, Any]:
    """The row of one repeat. Why a request was rejected is known of one only, the first with the item's outcome; so is the
    rest, in reports written before each repeat's own were kept."""
    named, outcomes = row["outcomes"].index(row["outcome"]), row["outcomes"]
    found = {**row, "output": row["outputs"][at], "outcome": outcomes[at]}
    if at != named:
        found.pop("rejected", None)
    for one, many in REPEATS.items():
        found[one] = row[many][at] if row.get(many) else row.get(one) if at == named else None
    return found


def _sample(row: dict[str, Any], report: dict[str, Any], epoch: int) -> dict[str, Any]:
    output, outcome = row["output"], row["outcome"]
    asked = [_turn(message) for message in row["messages"]]
    answer: dict[str, Any] = {"role": "assistant", "content": output, "source": "generate"}
    calls = [_call(call, index) for index, call in enumerate(row.get("tool_calls") or [])]
    if calls:
        answer["tool_calls"] = calls
    stop = STATES.get(row.get("finish_reason") or "", "unknown")
    prompt, completion = row.get("prompt_tokens") or 0, row.get("completion_tokens") or 0
    usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
    sample: dict[str, Any] = {
        "id": row["id"],
        "epoch": epoch,
        "input": asked or "",
        "target": row["expected"],
        "messages": [*asked, answer],
        "output": {
            "model": report["target"].get("model") or report["target"]["spec"],
            "choices": [{"message": answer, "stop_reason": stop}],
            **({"usage": usage} if row.get("prompt_tokens") is not None else {}),
            **({"time": row["latency_ms"] / 1000.0} if row.get("latency_ms") is not None else {}),
        },
        "scores": {name: _sample_score(row, name, value, output) for name, value in row["scores"].items()},
        "metadata": {
            **row["tags"],
            "outcome": outcome,
            "cause": row["cause"],
            "group": row.get("group"),
            "refusal": _refusal(row),
            "rejected": row.get("rejected"),
        },
        "store": {},
        "events": [],
        "attachments": {},
    }
    if outcome == "infra_error":
        sample |= {
            "scores": {},
            "error": {"message": row.get("error") or row["reason"], "traceback": "", "traceback_ansi": ""},
        }
        sample["output"] = {"model": sample["output"]["model"], "choices": []}
    return sample


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """A turn of the prompt as a message of Inspect's."""
    turn = {"role": "system" if message["role"] == "developer" else message["role"], "content": _text(message)}
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [_call(call, index) for index, call in enumerate(calls)]
    if turn["role"] == "tool":
        turn |= {"tool_call_id": message.get("tool_call_id"), "function": message.get("name")}
    return turn


def _refusal(row: dict[str, Any]) -> str | None:
    """What the model refused with; None where it did not."""
    if row["outcome"] != "refused":
        return None
    return row["reason"].removeprefix(REFUSED) if row["reason"].startswith(REFUSED) else "refused"


def _sample_score(row: dict[str, Any], name: str, value: float, output: str) -> dict[str, Any]:
    reason = row.get("reasons", {}).get(name) or (row["reason"] if value < 1.0 else "")
    return {"value": value, "answer": output, "explanation": reason}


def _call(call: dict[str, Any], index: int) -> dict[str, Any]:
    function = call.get("function") or call
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"raw": arguments}
    name = str(function.get("name") or "")
    wrapped = arguments if isinstance(arguments, dict) else {"value": arguments}
    return {"id": str(call.get("id") or f"call{index}"), "function": name, "arguments": wrapped, "type": "function"}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""


def _summary(sample: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "epoch", "input", "target", "metadata", "scores")
    return {**{key: sample[key] for key in keys}, "completed": True}
