"""`ftadvise gpus`, `ftadvise prices`, `ftadvise rules`: what is known, with date and source."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.console import JsonOption, emit_json, table, warn

gpus_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
prices_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
rules_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@gpus_app.command(epilog="Example: ftadvise gpus --json")
def gpus(
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV of the same columns that replaces or adds rows.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """GPUs: memory, bandwidth, speed, and what an hour costs where and when."""
    from tunegate.advisor.gpus import known_gpus

    known = known_gpus(file).values()
    if json_:
        emit_json({"gpus": [{**vars(gpu), "verified": gpu.doubt is None} for gpu in known]})
        return
    rows = [
        [
            g.name,
            f"{g.memory_gb:g}",
            f"{g.bandwidth_gbps:g}",
            f"{g.tflops:g}",
            _dollars(g.price_low, g.price_high),
            g.prices or "unknown",
            g.source,
        ]
        for g in known
    ]
    table(None, ["GPU", "GB", "GB/s", "TFLOP/s bf16", "$/h", "prices: vendor, date", "figures from"], rows)


@prices_app.command(epilog="Example: ftadvise prices --input-tokens 1000 --output-tokens 200")
def prices(
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV: provider,model,input_usd_mtok,output_usd_mtok[,date,source].")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Look one up in the genai-prices package too.")] = None,
    input_tokens: Annotated[
        float, typer.Option(min=0, max=1e7, help="Prompt tokens of the call that is priced.")
    ] = 1000,
    output_tokens: Annotated[
        float, typer.Option(min=0, max=1e6, help="Answer tokens of the call that is priced.")
    ] = 200,
    max_age_days: Annotated[int, typer.Option(min=0, help="Flag prices older than this.")] = 120,
    json_: JsonOption = False,
) -> None:
    """API prices per 1e6 tokens, hosted open weights included, each with date and source."""
    from tunegate.advisor.prices import find_offer, offers, stale_note

    known = [find_offer(model, file, where="--model")] if model is not None else list(offers(file))
    if json_:
        emit_json(
            {
                "prices": [
                    {
                        **vars(o),
                        "usd_per_1k_calls": 1000 * o.per_call(input_tokens, output_tokens),
                        "stale": stale_note(o.date, max_age_days) or None,
                    }
                    for o in known
                ],
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
            }
        )
        return
    rows = [
        [
            o.name,
            f"{o.input_usd_mtok:g}",
            f"{o.output_usd_mtok:g}",
            f"{1000 * o.per_call(input_tokens, output_tokens):.3g}",
            o.date,
            o.source,
        ]
        for o in known
    ]
    table(
        None,
        ["offer", "$/1e6 in", "$/1e6 out", f"$/1k calls of {input_tokens:g}+{output_tokens:g}", "date", "source"],
        rows,
    )
    for note in sorted({f"{o.name}: {n}" for o in known if (n := stale_note(o.date, max_age_days))}):
        warn(note)


@rules_app.command(epilog="Example: ftadvise rules --json")
def rules(json_: JsonOption = False) -> None:
    """The rules that choose a method: evidence, grade, scope, conflicts."""
    from tunegate.advisor.rules import RULES

    if json_:
        fields = ("id", "says", "source", "grade", "scope", "note")
        emit_json(
            {
                "rules": [
                    {**{f: getattr(r, f) for f in fields}, "conflicts": list(r.conflicts), "votes": dict(r.votes)}
                    for r in RULES
                ]
            }
        )
        return
    rows = [[r.id, r.grade, r.says, r.source, r.scope, ", ".join(r.conflicts) or "none known", r.note] for r in RULES]
    table(None, ["rule", "grade", "says", "source", "scope", "conflicts", "note"], rows, left=7)


def _dollars(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{low:g} to {high:g}"
