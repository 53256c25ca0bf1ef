"""lm-evaluation-harness: `samples_TASK_TIME.jsonl`, one line an item and filter, beside `results_TIME.json`."""

from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.core.rows import read_jsonl
from tunegate.evalkit.interchange.foreign import Format, Record, asked_in, mapping
from tunegate.evalkit.outcomes import Answer

QUESTIONS = ("question", "query", "input", "prompt", "text", "problem")
IDS = ("id", "key", "question_id", "task_id", "idx")


def read(path: Path) -> list[Record]:
    """The generated answers, as they were before the filters. Raises UserError for a task that scores likelihoods."""
    records: list[Record] = []
    seen: set[str] = set()
    file = samples_file(path)
    for number, sample in read_jsonl(file):
        where = f"{file}:{number}"
        if not isinstance(sample, dict) or "doc_id" not in sample or not isinstance(sample.get("resps"), list):
            raise UserError('not an lm-eval sample: "doc_id" and "resps" are needed', where=where)
        if str(sample["doc_id"]) in seen:  # the same answers again, through another filter
            continue
        seen.add(str(sample["doc_id"]))
        records += _records(sample, f"line {number}", where)
    return records


def _records(sample: dict[str, Any], place: str, where: str) -> list[Record]:
    """One record an answer of the sample."""
    doc, target = mapping(sample.get("doc")), sample.get("target")
    ids = [str(doc[key]) for key in IDS if isinstance(doc.get(key), str | int)]
    questions = [doc[key] for key in QUESTIONS if isinstance(doc.get(key), str)]
    return [
        Record(
            place=place,
            ids=(*ids, str(sample["doc_id"])),
            questions=tuple(questions),
            prompts=_prompt(sample),
            answer=Answer(text=text),
            expected=target if isinstance(target, str) else None,
        )
        for text in _texts(sample["resps"], where)
    ]


def samples_file(path: Path) -> Path:
    """The one samples file: `path` itself, or that beside a results file, or in a folder. Raises UserError."""
    if path.suffix in (".jsonl", ".ndjson"):
        return path
    time = ""
    if not path.is_dir():
        document = read_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
            raise UserError("not a result file of lm-eval, promptfoo or Inspect", where=str(path))
        time = path.stem.removeprefix("results_")
    files = sorted((path if path.is_dir() else path.parent).glob(f"**/samples_*{time}.jsonl"))
    if len(files) != 1:
        found = "no samples_*.jsonl" if not files else f"{len(files)} samples files"
        hint = "run lm-eval with --log_samples" if not files else f"name one: {', '.join(f.name for f in files[:4])}"
        raise UserError(f"{found} beside these lm-eval results", where=str(path), hint=hint)
    return files[0]


def lm_eval_samples(folder: Path) -> Path | None:
    """The samples file of a folder of lm-eval results; None where it is no such folder."""
    return samples_file(folder) if any(folder.glob("**/samples_*.jsonl")) else None


def _prompt(sample: dict[str, Any]) -> tuple[str, ...]:
    """The rendered prompt, where the sample holds one; of a chat the last user turn."""
    arguments = sample.get("arguments")
    first = arguments.get("gen_args_0", {}).get("arg_0") if isinstance(arguments, dict) else None
    if isinstance(arguments, list) and arguments and isinstance(arguments[0], list) and arguments[0]:
        first = arguments[0][0]
    return asked_in(first)


def _texts(responses: list[Any], where: str) -> list[str]:
    """The answers to one request, one for each repeat."""
    answers = responses[0] if len(responses) == 1 and isinstance(responses[0], list) else responses
    if not answers or not all(isinstance(text, str) for text in answers):
        raise UserError("this lm-eval task scores likelihoods: there is no answer to judge", where=where)
    return list(answers)


FORMAT = Format(name="lm-eval", read=read, lacks="latency, tokens, cost, finish reason")
