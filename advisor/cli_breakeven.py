"""`ftadvise breakeven`."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, out, say, table, warn
from tunegate.core.errors import UserError, one_of

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
AT_HAND = "cpu: the one machine at hand, which takes no rent; with --gpu-usd-h more of them are rented"


@app.command(
    epilog="Example: ftadvise breakeven --model Llama-3.1-8B --gpu L4 --quant awq --against openai/gpt-5-mini --plot breakeven.svg"
)
def breakeven(
    model: Annotated[str, typer.Option(help="The model of your own.")] = "Llama-3.1-8B",
    gpu: Annotated[str, typer.Option(help="What it runs on.")] = "L4",
    gpus: Annotated[int, typer.Option(min=1, max=64, help="GPUs per replica.")] = 1,
    quant: Annotated[str, typer.Option(help="bf16, fp8 or awq.")] = "awq",
    against: Annotated[str | None, typer.Option(help="provider/model; without it every offer shipped.")] = None,
    input_tokens: Annotated[float, typer.Option(min=1, max=1e7, help="Prompt tokens of a call.")] = 1000,
    output_tokens: Annotated[float, typer.Option(min=1, max=1e6, help="Answer tokens of a call.")] = 200,
    calls_per_day: Annotated[float, typer.Option(min=1, max=1e10, help="Your load: costs are shown for it.")] = 10_000,
    peak_factor: Annotated[float, typer.Option(min=1, max=1e3, help="Busiest hour over the mean.")] = 3.0,
    p95_ms: Annotated[float | None, typer.Option(min=1, max=1e8, help="Bound on a whole answer, p95, ms.")] = None,
    gpu_usd_h: Annotated[float | None, typer.Option(min=0, max=1e4, help="Your price of a GPU hour.")] = None,
    train_usd: Annotated[float, typer.Option(min=0, max=1e10, help="Training, once.")] = 0.0,
    setup_hours: Annotated[float, typer.Option(min=0, max=1e6, help="Engineering, once, hours.")] = 40.0,
    upkeep_hours: Annotated[float, typer.Option(min=0, max=1e6, help="Engineering, hours a month.")] = 8.0,
    engineer_usd_h: Annotated[float, typer.Option(min=0, max=1e5, help="An engineer's hour.")] = 100.0,
    months: Annotated[float, typer.Option(min=0.1, max=1200, help="Months that pay off what is spent once.")] = 12.0,
    busy_share: Annotated[float, typer.Option(min=0.001, max=1, help="Share of hours billed; 1: always on.")] = 1.0,
    prices: Annotated[Path | None, typer.Option(help="CSV of API prices.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the picture to this file: FILE.svg or FILE.png.")] = None,
    json_: JsonOption = False,
) -> None:
    """From how many calls a day self-hosting is cheaper than an API; the answer may be never."""
    from tunegate.advisor import break_even as costs
    from tunegate.advisor import plot as drawing
    from tunegate.advisor.models import find
    from tunegate.advisor.prices import find_offer, offers

    if plot is not None:
        drawing.refuse_other_formats(plot)
    tokens = (input_tokens, output_tokens)
    price, capacity, known = _machine(model, gpu, gpus, quant, tokens, calls_per_day, peak_factor, p95_ms, gpu_usd_h)
    own = costs.SelfHosted(
        usd_per_hour=price * gpus,
        max_calls_per_s=capacity,
        peak_factor=peak_factor,
        once_usd=train_usd + setup_hours * engineer_usd_h,
        upkeep_usd=upkeep_hours * engineer_usd_h,
        paid_off_months=months,
        busy_share=busy_share,
        max_replicas=1 if known.pop("at_hand") else None,
    )
    asked = None if against is None else find_offer(against, prices)
    every = list(offers(prices))
    chosen = every if asked is None else [asked]
    cheapest = min(chosen, key=lambda o: (bool(_beyond(o, tokens)), o.per_call(*tokens)))
    known["notes"] += [text for offer in chosen if (text := _beyond(offer, tokens))]
    if plot is not None:
        name = find(model).name
        rivals = costs.rivals_worth_drawing(every, name, asked, *tokens)
        _draw(plot, own, rivals, f"{name} {quant} on {gpu}:{gpus}", tokens, calls_per_day)
    carried = capacity * 86_400 / peak_factor
    facts = {"own_usd_per_hour": price * gpus, "capacity_calls_per_day_per_replica": carried, **known}
    facts["replicas"] = own.replicas(calls_per_day)
    rows = [_row(own, offer, calls_per_day, tokens) for offer in chosen]
    if json_:
        emit_json({"calls_per_day": calls_per_day, "offers": rows, **facts})
        return
    crossing = costs.break_even(own, cheapest, *tokens)
    _print(rows, facts, drawing.chart(costs.curve(own, cheapest, *tokens), crossing), cheapest.name)


def _draw(
    path: Path, own: Any, rivals: list[Any], what: str, tokens: tuple[float, float], calls_per_day: float
) -> None:
    from tunegate.advisor import break_even as costs
    from tunegate.advisor import plot as drawing

    curves = [
        drawing.ApiCurve(
            name=offer.name,
            points=costs.curve(own, offer, *tokens),
            crossing=costs.break_even(own, offer, *tokens),
            hosted=bool(offer.open_weights),
        )
        for offer in rivals
    ]
    dates = sorted({offer.date for offer in rivals})
    drawing.draw(
        path,
        title=f"Self-hosting against APIs: calls of {tokens[0]:,.0f} tokens in, {tokens[1]:,.0f} out",
        own=f"own: {what}, ${own.usd_per_hour:,.2f}/h a replica, busiest hour {own.peak_factor:g} x the mean",
        apis=curves,
        calls_per_day=calls_per_day,
        note=f"API prices of {', '.join(dates)}; own: rent, ${own.once_usd:,.0f} once over {own.paid_off_months:g} months, "
        f"${own.upkeep_usd:,.0f} a month of engineering",
    )


def _machine(
    model: str, gpu: str, gpus: int, quant: str, tokens: tuple[float, float], calls: float, peak: float,
    p95_ms: float | None, usd_h: float | None,
) -> tuple[float, float, dict[str, Any]]:  # fmt: skip
    """(USD an hour of one GPU, calls a second of one replica, where the price is from and what was not verified)."""
    from tunegate.advisor.calibrate import corrected
    from tunegate.advisor.estimates import doubts
    from tunegate.advisor.gpus import find_gpu
    from tunegate.advisor.models import find
    from tunegate.advisor.serving_plan import load_of, plan, setup_for
    from tunegate.advisor.serving_speed import QUANTIZATIONS, most_split, unsplit

    card = find_gpu(gpu)
    price = usd_h if usd_h is not None else card.price
    if price is None:
        raise UserError(f"no price is known for {card.name}", where="--gpu", hint="give --gpu-usd-h")
    one_of("--quant", quant, QUANTIZATIONS)
    if quant == "fp8" and card.fp8_tflops is None:
        raise UserError(f"{card.name} has no FP8 units", where="--quant", hint="use awq or bf16")
    base = find(model)
    if reason := unsplit(base.architecture, gpus):
        raise UserError(reason, where="--gpus", hint=f"at most {most_split(base.architecture, gpus)} of these")
    if reason := base.architecture.beyond(sum(tokens)):
        raise UserError(
            reason, where="--input-tokens, --output-tokens", hint="shorten the call, or choose another --model"
        )
    setup = setup_for(base.architecture, card, gpus, quant, tokens, 0.0)
    sized = plan(model, setup, load_of(calls, peak, p95_ms), owned=True)
    if sized.misfit_gb or sized.late_by_ms:
        hint, why = (
            "choose a larger GPU or more of them",
            f"{sized.misfit_gb:.1f} GB per GPU are missing for the {sized.misfit_of}",
        )
        if not sized.misfit_gb:
            best = math.ceil(((p95_ms or 0.0) + sized.late_by_ms) * (1 + 1e-6))
            hint, why = f"--p95-ms {best}, or {hint}", f"p95 is {best} ms at best"
        raise UserError(f"{model} {quant} on {card.name}:{gpus} cannot serve this: {why}", where="--gpu", hint=hint)
    at_hand, how = card.is_cpu and usd_h is None, corrected("tpot", card.name)
    notes = [*doubts(base, card), *([AT_HAND] if at_hand else []), *([f"speed {how}"] if how else [])]
    return price, sized.max_calls_per_s, {"gpu_price": card.prices or None, "notes": notes, "at_hand": at_hand}


def _beyond(offer: Any, tokens: tuple[float, float]) -> str:
    """Why an API does not take such calls, in words; empty where it does, as far as is known."""
    from tunegate.advisor.search import context_of

    context = context_of(offer)
    if context is None or sum(tokens) <= context:
        return ""
    return f"{offer.name} takes no such call: {sum(tokens):,.0f} tokens are more than its context of {context:,}"


def _row(own: Any, offer: Any, calls: float, tokens: tuple[float, float]) -> dict[str, Any]:
    from tunegate.advisor import break_even as costs
    from tunegate.advisor.prices import stale_note

    crossing = costs.break_even(own, offer, *tokens)
    return {
        "against": offer.name,
        "open_weights": offer.open_weights or None,
        "break_even_calls_per_day": "never" if crossing is None else round(crossing),
        "cheaper_before_calls_per_day": costs.cheaper_before(own, offer, *tokens),
        "own_monthly_usd": own.monthly_usd(calls),
        "api_monthly_usd": costs.api_monthly_usd(offer, calls, *tokens),
        "price_date": offer.date,
        "price_source": offer.source,
        "stale": stale_note(offer.date) or None,
    }


def _print(rows: list[dict[str, Any]], facts: dict[str, Any], chart: str, against: str) -> None:
    cells = [
        [
            r["against"],
            r["break_even_calls_per_day"]
            if isinstance(r["break_even_calls_per_day"], str)
            else f"{r['break_even_calls_per_day']:,}",
            "not carried" if r["own_monthly_usd"] is None else f"{r['own_monthly_usd']:,.0f}",
            f"{r['api_monthly_usd']:,.2f}",
            r["price_date"],
        ]
        for r in rows
    ]
    table(None, ["against", "break-even, calls a day", "own $/month", "API $/month", "price of"], cells)
    out().print(
        f"one replica carries {facts['capacity_calls_per_day_per_replica']:,.0f} calls a day; {facts['replicas']} needed now"
    )
    out().print(f"o own, x {against}\n{chart}", markup=False)
    for row in rows:
        if row["against"] == against and (stretch := row["cheaper_before_calls_per_day"]):
            say(
                f"note: own is cheaper than {against} from {stretch[0]:,.0f} to {stretch[1]:,.0f} a day too; one replica "
                "more takes that back up to the break-even"
            )
    for note in facts["notes"]:
        say(f"note: {note}")
    for note in sorted({f"{r['against']}: {r['stale']}" for r in rows if r["stale"]}):
        warn(note)
