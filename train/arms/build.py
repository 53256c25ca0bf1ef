"""Runs without weights: `build(Dataset, TrainConfig) -> Run` for the methods prompt, few_shot and rag."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Run
from tunegate.core.chat_template import probe_digest, render, template_digest
from tunegate.core.console import progress, say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import home_path, new_folder, write_jsonl, write_text
from tunegate.core.model_source import ModelSource
from tunegate.core.profile import answer_text
from tunegate.core.rows import Row, read_rows
from tunegate.serve.prompting.index import Index, Passage
from tunegate.serve.prompting.prompting import TURN_TOKENS, Prompting, Settings, counter, question
from tunegate.train import model_loading, probe
from tunegate.train.arms import choose, documents
from tunegate.train.arms.instructions import write_instructions
from tunegate.train.config import TrainConfig, to_yaml
from tunegate.train.inputs import others
from tunegate.train.work import METRICS

# Room that is left for the answer and the template when examples are measured and chosen.
ANSWER_TOKENS = 256
DEVELOPMENT_ROWS = 24
LOOKED_UP = 256  # rows whose passages are looked up together


def build(dataset: Dataset, source: ModelSource, config: TrainConfig, out: Path, *, force: bool) -> Run:
    """Make a run of instructions, examples or an index; nothing of the model changes.

    Only training rows are read. Raises UserError for a system file, documents or an embedding model that cannot be
    read, for examples of which none fits the model's context, for a dataset without training rows.
    """
    tokenizer = model_loading.load_tokenizer(source)
    rows = list(read_rows(dataset.train_path))
    if not rows:
        raise UserError("there are no training rows to take from", where=str(dataset.train_path))
    prompting, curve, facts = make(rows, source, config, tokenizer)
    inputs = [dataset.as_input("dataset"), source.as_input(), *others(config)]
    with new_folder(out, force=force) as folder:
        tokenizer.save_pretrained(folder)
        prompting.save(folder)
        write_text(folder / "config.yaml", to_yaml(config))
        write_jsonl(folder / METRICS, curve)
        probe.write(folder, tokenizer, rows)
        about = {
            "method": config.method,
            "base": source.spec,
            "base_name": source.name,
            "license": source.license,
            "template_digest": template_digest(tokenizer),
            "probe_digest": probe_digest(tokenizer),
            **facts,
        }
        manifests.write(folder, "run", inputs=inputs, config=asdict(config), seeds={"seed": config.seed}, facts=about)
    return Run.open(out)


def preview(dataset: Dataset, source: ModelSource, config: TrainConfig) -> dict[str, Any]:
    """What the first training row's request would become: `messages`, `used` ids, `dropped`; k as configured, else 3 (none
    where the chat template refuses them)."""
    tokenizer = model_loading.load_tokenizer(source)
    rows = list(read_rows(dataset.train_path))
    if not rows:
        raise UserError("there are no training rows to take from", where=str(dataset.train_path))
    prompting, _, facts = make(rows[1:] or rows, source, config, tokenizer, measure=False)
    applied = prompting.apply(rows[0].prompt, room=_room(config))
    return {"messages": applied.messages, "used": applied.used, "dropped": applied.dropped, **facts}


def make(
    rows: Sequence[Row], source: ModelSource, config: TrainConfig, tokenizer: Any, *, measure: bool = True
) -> tuple[Prompting, list[dict[str, Any]], dict[str, Any]]:
    """(prompting, lines of metrics.jsonl, facts for the manifest) for a method without weights. measure: choose the number of
    examples by the answers' loss, where it is not configured."""
    count = counter(tokenizer.backend_tokenizer)
    system, about = _system(rows, config)
    settings = Settings(
        method=config.method, system=system, system_role=_takes_system(tokenizer), k=0, selection="nearest"
    )
    facts: dict[str, Any] = {"instructions": about, "instruction_tokens": count([system]) if system else 0}
    if config.method == "prompt":
        _say_budget(facts["instruction_tokens"], config)
        return Prompting(settings, count, {}), [], facts
    if config.method == "rag":
        prompting, about_passages = _retrieving(rows, config, settings, count)
        return prompting, [], facts | about_passages
    return _few_shot(rows, source, config, tokenizer, settings, count, facts, measure)


def retrieval(rows: Sequence[Row], config: TrainConfig, tokenizer: Any) -> tuple[Prompting, dict[str, Any]]:
    """(what puts passages of `config.docs` into requests, facts for the manifest) beside trained weights.

    Raises UserError for documents or an embedding model that cannot be read, and when no passage fits.
    """
    settings = Settings(method="rag", system_role=_takes_system(tokenizer))
    return _retrieving(rows, config, settings, counter(tokenizer.backend_tokenizer))


def with_passages(rows: Sequence[Row], prompting: Prompting, config: TrainConfig) -> list[Row]:
    """The rows as their requests will reach the model: the passages of each question before it; answers untouched."""
    found: list[Row] = []
    with progress("retrieving passages", len(rows)) as tick:
        for start in range(0, len(rows), LOOKED_UP):
            part = rows[start : start + LOOKED_UP]
            applied = prompting.apply_all([row.prompt for row in part], room=_room(config))
            for row, request in zip(part, applied, strict=True):
                found.append(structs.replace(row, messages=(*request.messages, row.messages[-1])))
            tick(len(part))
    return found


def _retrieving(
    rows: Sequence[Row], config: TrainConfig, settings: Settings, count: Any
) -> tuple[Prompting, dict[str, Any]]:
    passages = _passages(rows, config, count)
    index = Index.build(passages, embedder=config.embedder)
    k = config.k if config.k >= 0 else 4
    _refuse_too_long([count([p.text]) + TURN_TOKENS for p in passages], config, "passage")
    facts = {"passages": len(passages), "embedder": config.embedder, "k": k}
    return Prompting(replace(settings, k=k), count, {}, index), facts


def _few_shot(
    rows: Sequence[Row],
    source: ModelSource,
    config: TrainConfig,
    tokenizer: Any,
    settings: Settings,
    count: Any,
    facts: dict[str, Any],
    measure: bool,
) -> tuple[Prompting, list[dict[str, Any]], dict[str, Any]]:
    """Examples: all training rows with an index (nearest), or the k that cover them (fixed); k by the answer loss."""
    room, measure = _room(config), measure and config.k < 0
    stops = model_loading.stop_ids(source, tokenizer) if measure else []
    pool, development = list(rows), list[Row]()
    if measure:
        bare = Prompting(settings, count, {})
        pool, development = _set_aside(rows, lambda part: choose.measurable(bare, part, tokenizer, stops, room=room))
    index = Index.build(
        [Passage(id=row.id, text=answer_text(row)) for row in pool],
        embedder=config.embedder,
        keys=[question(row.prompt) for row in pool],
    )
    examples = {row.id: list(row.messages) for row in pool}
    _refuse_too_long(
        [count([str(m.get("content") or "") for m in row.messages]) + TURN_TOKENS * len(row.messages) for row in pool],
        config,
        "example",
    )
    k = config.k if config.k >= 0 else min(choose.DEFAULT_K, len(pool))
    most = max(choose.COUNTS) if development else k
    spread = choose.spread_out(index.vectors, [answer_text(row) for row in pool], most)

    def made(k: int, selection: str) -> Prompting:
        if selection == "fixed":
            chosen = {pool[i].id: list(pool[i].messages) for i in spread[:k]}
            return Prompting(replace(settings, k=k, selection="fixed"), count, chosen)
        return Prompting(replace(settings, k=k, selection="nearest"), count, examples, index)

    selections = ("nearest", "fixed") if config.selection == "auto" else (config.selection,)
    selection, curve = selections[0], []
    if development:
        model = model_loading.load_base(source, config, model_loading.pick_device(config)).eval()
        k, selection, tried = choose.choose(
            made,
            development,
            selections,
            lambda p: choose.answer_loss(p, development, model, tokenizer, stops, room=room),
        )
        curve = [_metric(number, t) for number, t in enumerate(tried, 1)]
    elif refused := choose.unserved(made(k, selection), rows[:DEVELOPMENT_ROWS], tokenizer, room=room):
        k = _none_of(config, refused)
    facts |= {"k": k, "selection": selection, "examples": len(pool) if selection == "nearest" else k}
    facts |= {"development_rows": len(development), "embedder": config.embedder}
    return made(k, selection), curve, facts


def _none_of(config: TrainConfig, refused: str) -> int:
    """0, with a word: no example where the chat template refuses them. Raises UserError where a number was asked for."""
    if config.k >= 0:
        hint = "this template takes no such examples: --k 0, or --method prompt or rag"
        raise UserError(f"with {config.k} examples, {refused}", where="k", hint=hint)
    warn(choose.NONE_SHOWN)
    return 0


def _set_aside(rows: Sequence[Row], usable: Callable[[Sequence[Row]], list[Row]]) -> tuple[list[Row], list[Row]]:
    """(examples, development rows); all rows and none, with a word, where none can be set aside or none is `usable`."""
    pool, development = choose.development_part(rows, DEVELOPMENT_ROWS)
    development = usable(development)
    if development:
        return pool, development
    say(
        f"none of {len(rows)} training rows can be set aside to choose the number of examples on (too few rows, too large "
        f"groups, or the chat template refuses them): {min(choose.DEFAULT_K, len(rows))} are shown (--k sets another number)"
    )
    return list(rows), []


def _metric(step: int, tried: choose.Tried) -> dict[str, Any]:
    """One line of metrics.jsonl: a setting tried takes the place of a step."""
    return {
        "step": step, "k": tried.k, "selection": tried.selection, "loss": None, "eval_loss": round(tried.loss, 5) if math.isfinite(tried.loss) else None,
        "examples_used": round(tried.examples_used, 2), "tokens_per_s": round(tried.tokens_per_s, 1), "peak_memory_gb": None,
    }  # fmt: skip


def _system(rows: Sequence[Row], config: TrainConfig) -> tuple[str, str]:
    """(instructions, where they are from): the user's file, else written from the form of the expected answers."""
    if config.system_file:
        path = home_path(config.system_file)
        if not path.is_file():
            raise UserError("no such file", where=str(path), hint="--system-file takes a text file")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text at byte {error.start}", where=str(path)) from None
        if not text:
            raise UserError("the file is empty", where=str(path))
        return text, path.name
    text, form = write_instructions(rows)
    say(f"instructions written for {form} answers:\n{text}")
    return text, f"written: {form} answers"


def _passages(rows: Sequence[Row], config: TrainConfig, count: Any) -> list[Passage]:
    if not config.docs:
        say(f"no --docs: the {len(rows)} training rows are what is retrieved from")
        return documents.solved_examples(rows)
    found = documents.read_documents(home_path(config.docs))
    return documents.split_documents(found, tokens=config.passage_tokens, count=lambda text: count([text]))


def _room(config: TrainConfig) -> int:
    return config.max_length - ANSWER_TOKENS


def _refuse_too_long(costs: Sequence[int], config: TrainConfig, name: str) -> None:
    """Nothing silent: what can never be shown is counted; when that is all of it, there is no run to make."""
    fitting = sum(cost <= _room(config) for cost in costs)
    if not fitting:
        raise UserError(
            f"no {name} fits: the shortest takes {min(costs)} tokens, {_room(config)} are free of {config.max_length}",
            where="max_length",
            hint=f"raise --max-length to what the model holds, or use shorter {name}s",
        )
    if fitting < len(costs):
        say(
            f"{len(costs) - fitting} of {len(costs)} {name}s are too long for {_room(config)} tokens and are never shown"
        )


def _say_budget(tokens: int, config: TrainConfig) -> None:
    if tokens > _room(config):
        raise UserError(
            f"the instructions take {tokens} tokens, {_room(config)} are free of {config.max_length}",
            where="system_file",
            hint="shorten them, or raise --max-length",
        )
    say(f"instructions: {tokens} tokens of every request")


def _takes_system(tokenizer: Any) -> bool:
    """Whether the chat template shows a system turn (some refuse it, some leave it out)."""
    try:
        text = render(tokenizer, [{"role": "system", "content": "SYS-PROBE"}, {"role": "user", "content": "x"}])
    except UserError:
        return False
    return "SYS-PROBE" in text
