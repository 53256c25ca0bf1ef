"""`ft loadtest`: options, opening what is tested, printing."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.artifacts import Release, Run
from tunegate.core.console import JsonOption, emit_json, out, progress, say, table, warn
from tunegate.core.errors import ExitCode, UsageError
from tunegate.core.files import refuse_existing
from tunegate.core.machine import gpus
from tunegate.core.manifest import Input
from tunegate.serve.base_check import refuse_other_bytes
from tunegate.serve.cli import Start, open_target
from tunegate.serve.client import ChatClient, api_key
from tunegate.serve.endpoint_url import checked_url, is_url
from tunegate.serve.load_plan import LoadOptions, Prompt, Stage, numbers, plan_stages, read_data, read_prompts
from tunegate.serve.load_prompts import unnamed_prompts
from tunegate.serve.load_report import COLUMNS, About, knee_line, make_report, table_rows, write_load_report
from tunegate.serve.load_test import run_load
from tunegate.serve.machine_plan import choose_start
from tunegate.serve.preflight import check_numbers
from tunegate.serve.served_model import has_adapter
from tunegate.serve.vllm_flags import ServeOptions
from tunegate.serve.vllm_process import Endpoint, serving

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
EXIT = {"VALID": ExitCode.OK, "INVALID": ExitCode.INCONCLUSIVE, "FAILED": ExitCode.INFRASTRUCTURE}


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    epilog="Example: ft loadtest release-awq/ --data data/eval.jsonl --concurrency 1,4,16 --slo-ttft-ms 800 --out load/",
)
def loadtest(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="Endpoint URL (http://host:port/v1), or what ft serve takes.")],
    report: Annotated[Path, typer.Option("--out", help="Folder for the LoadReport.")] = Path("loadtest"),
    data: Annotated[
        Path | None,
        typer.Option(help="Prompts: rows (JSONL), the answer is left out; else the target's held-out rows."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts alone: text, one a line, or JSONL.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests at once, such as 1,4,16.")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop: arrivals a second (Poisson), such as 2,4,8.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests measured a stage.")] = None,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds a stage takes, instead.")] = None,
    warm_up: Annotated[int | None, typer.Option(min=0, help="First requests of a stage, kept apart.")] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: limit of time to first token.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: limit of time per output token.")] = None,
    slo_e2e_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: limit of the whole latency.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers of exactly --max-tokens (vLLM only).")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 300.0,
    max_error_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of failed requests that is borne.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the order of prompts and of arrivals.")] = 0,
    model: Annotated[str | None, typer.Option(help="Model name at the endpoint, where it serves several.")] = None,
    start: Annotated[
        Start, typer.Option(help="How to start what is not served yet; auto is what --detach takes.")
    ] = Start.AUTO,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key; else TUNEGATE_API_KEY.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure TARGET under load, with your own prompts: exit 0 measured, 3 the client was the bottleneck, 4 requests failed.

    A model, run or release is served for the test (vLLM flags after --) and stopped afterwards.
    """
    refuse_existing(report, force=force)
    limits = {"slo_ttft_ms": slo_ttft_ms, "slo_tpot_ms": slo_tpot_ms, "slo_e2e_ms": slo_e2e_ms}
    check_numbers(duration=duration, temperature=temperature, timeout=timeout, **limits)
    asked, about_prompts, source = _prompts(data, prompts, target)
    levels = numbers(concurrency or ("" if rate else "1,4,16"), "--concurrency", int)
    rates = numbers(rate or "", "--rate", float)
    stages = plan_stages(levels, rates, requests=requests, duration_s=duration, warm_up=warm_up)
    generation: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    generation |= {"ignore_eos": True} if ignore_eos else {}
    options = LoadOptions(
        stages=stages, generation=generation,
        slo={k.removeprefix("slo_"): v for k, v in limits.items() if v is not None},
        timeout_s=timeout, seed=seed,
    )  # fmt: skip
    serve = {"start": start.value, "sequences": _at_once(stages), "extra": tuple(context.args)}
    with _endpoint(target, model, api_key(api_key_file), serve) as (endpoint, inputs):
        about = About(
            target=target, endpoint=endpoint.base_url, model=endpoint.model, prompts=about_prompts,
            engine=endpoint.facts, inputs=[source, *inputs],
        )  # fmt: skip
        document = _run(endpoint, asked, options, about, report, max_error_rate=max_error_rate, force=force)
    _show(document, report, as_json=as_json)
    raise typer.Exit(ExitCode.INTERRUPTED if document["interrupted"] else EXIT[document["verdict"]])


def _at_once(stages: Sequence[Stage]) -> int:
    """Sequences that a server of ours has to take together."""
    return max([32, *(int(stage.level) for stage in stages if stage.kind == "closed")])


def _prompts(data: Path | None, prompts: Path | None, target: str) -> tuple[list[Prompt], dict[str, Any], Input]:
    if data and prompts:
        raise UsageError("one source of prompts is needed: --data ROWS.jsonl or --prompts FILE", where="--data")
    path = data or prompts
    if path is None:
        found, name, source = unnamed_prompts(target)
        return found, {"file": name, "count": len(found)}, source
    found = read_data(path) if data else read_prompts(path)
    return found, {"file": str(path), "count": len(found)}, Input.of_file(path, "prompts")


@contextmanager
def _endpoint(
    target: str, model: str | None, key: str | None, serve: dict[str, Any]
) -> Iterator[tuple[Endpoint, list[Input]]]:
    """The endpoint named, else a server started for the target and stopped at the end."""
    if is_url(target):
        if serve["extra"]:
            raise UsageError("an endpoint takes no vLLM flags", where="--")
        url = checked_url(target)
        yield Endpoint(base_url=url, model=asyncio.run(_model(url, model, key)), key=key), []
        return
    opened = open_target(target)
    refuse_other_bytes(opened)
    compiled, words = choose_start(serve["start"], service=True, on_gpu=bool(gpus()), adapters=has_adapter(opened))
    say(words)
    options = ServeOptions(eager=not compiled, max_num_seqs=serve["sequences"], extra=serve["extra"])
    with serving(opened, options=options, key=key) as endpoint:
        yield endpoint, [opened.as_input("target") if isinstance(opened, Release | Run) else opened.as_input()]


async def _model(url: str, wanted: str | None, key: str | None) -> str:
    async with ChatClient(url, wanted or "", key=key) as client:
        return await client.choose_model()


def _run(
    endpoint: Endpoint, prompts: list[Prompt], options: LoadOptions, about: About, folder: Path, *,
    max_error_rate: float, force: bool,
) -> dict[str, Any]:  # fmt: skip
    client = ChatClient(
        endpoint.base_url, endpoint.model, key=endpoint.key, timeout_s=options.timeout_s, connections=0, retries=0
    )
    total = None
    if all(s.requests is not None for s in options.stages):
        total = sum((s.requests or 0) + s.warm_up for s in options.stages)
    with progress("requests", total) as tick:
        runs = run_load(client, prompts, options, tick=tick, key=endpoint.key)
    document = make_report(runs, options, about, max_error_rate=max_error_rate)
    write_load_report(folder, document, runs, about, force=force)
    return document


def _show(document: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if document["interrupted"]:
        say("interrupted: what was measured until then is kept")
    for stage in document["stages"]:
        for text in stage["warnings"]:
            warn(f"{stage['name']}: {text}")
    for reason in document["reasons"]:
        warn(reason)
    if as_json:
        emit_json({**document, "report": str(folder)})
        return
    table(
        f"{document['model']} under load (intervals: {folder}/summary.md)",
        COLUMNS,
        table_rows(document, intervals=False),
    )
    if document["knee"]:
        out().print(knee_line(document), markup=False)
    out().print(f"report: {folder}", markup=False)
    out().print(f"load test: {document['verdict']}", markup=False)
