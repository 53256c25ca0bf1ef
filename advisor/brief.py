"""The short answer: the recommendation, three reasons, one line for each option refused, the assumptions that matter."""

import shutil
import sys
import textwrap

from tunegate.advisor import break_even, calibrate, estimates, explain
from tunegate.advisor.errors import spoken
from tunegate.advisor.models import find
from tunegate.advisor.recommend import Recommendation, self_hosted
from tunegate.advisor.refusals import prompt_shape, retrieves
from tunegate.advisor.rules import Rule
from tunegate.advisor.search import Option
from tunegate.core.console import out

REASONS = 3
COSTS = ("calls_per_day", "input_tokens", "output_tokens", "peak_factor")
METHOD_NAMES = {
    "prompt": "prompt a model as it is",
    "few_shot": "prompt a model and show it examples (few-shot)",
    "rag": "retrieve documents into the prompt (RAG)",
    "lora": "fine-tune with LoRA",
    "qlora": "fine-tune with QLoRA (4-bit base)",
    "full": "fine-tune all weights",
    "rag_lora": "fine-tune with LoRA and retrieve documents (RAG)",
    "hosted_api": "use a hosted API",
}


def write(answer: Recommendation) -> None:
    """Print the short answer, lines folded to the terminal; nothing is folded where output is not a terminal."""
    chosen = answer.chosen
    passages = ", with passages retrieved into its prompt (facts change)"
    more = passages if chosen.method == "hosted_api" and retrieves(chosen.method, answer.constraints) else ""
    line(f"recommendation: {chosen.method}: {METHOD_NAMES[chosen.method]}{more}")
    for label, text in facts(answer):
        line(text, label)
    line("why:")
    for number, text in enumerate(reasons(answer), 1):
        line(text, f"{number}.", 3)
    line("not chosen:")
    refused = [(str(entry["option"]).split(" (")[0], refusal(entry)) for entry in explain.rejected(answer)]
    width = max((len(name) for name, _ in refused), default=0)
    for name, text in refused:
        line(text, name, width)
    line("assumed:")
    for text in assumed(answer):
        line(text, "-", 2)


def line(text: str, label: str = "", width: int = 11) -> None:
    """Print `  label  text`; what does not fit the terminal goes on under the text."""
    start = f"  {label:<{width}} " if label else ""
    if sys.stdout.isatty():
        columns = max(40, shutil.get_terminal_size().columns)
        folded = textwrap.wrap(text, columns - len(start), break_on_hyphens=False) or [""]
        text = f"\n{' ' * len(start)}".join(folded)
    out().print(start + text, markup=False)


def facts(answer: Recommendation) -> list[tuple[str, str]]:
    """(label, text) of what the recommendation is, costs and takes."""
    chosen, training = answer.chosen, answer.chosen.training
    plan = chosen.serving
    found = [("serve", f"{chosen.vendor}/{chosen.model} (API)" if plan is None else served(chosen))]
    if training is not None:
        speed = "" if not training.gpu.is_cpu or calibrate.is_calibrated("train_tps", training.gpu.name) else " (rough)"
        wider = min(2.0, estimates.widen_of(find(chosen.spec), training.gpu, "train_tps")[0])
        memory = spoken(training.memory_gb, "GB", "train_mem", widen=wider).partition(", n")[0]
        cost = "no rent: the machine is yours" if training.usd == 0 else f"${training.usd:,.2f} of rent"
        found.append(
            (
                "train",
                f"{training.gpus} x {training.gpu.name}, {training.hours:.2g} h{speed} for {answer.constraints.examples:,} "
                f"examples, {memory}; {cost}",
            )
        )
    late = "a typical API's speed, assumed"
    if plan is not None:
        wider = estimates.widen_of(find(chosen.spec), plan.gpu, "tpot")[0]
        per_token = spoken(plan.tpot_ms, "ms", "tpot", widen=wider)
        late = f"{per_token.partition(', n')[0]} a token, computed"
    found.append(("latency", f"95 % of answers within {chosen.p95_ms / 1e3:.2g} s ({late})"))
    return [*found, ("cost", cost_sentence(answer))]


def served(chosen: Option) -> str:
    """`builtin:smollm2-135m in bf16 on 1 x cpu`."""
    plan = chosen.serving
    assert plan is not None
    machines = f"{plan.replicas} x {plan.gpu.name}"
    if plan.gpus > 1:
        machines = f"{plan.gpus} x {plan.gpu.name}" + (f", {plan.replicas} times" if plan.replicas > 1 else "")
    return f"{chosen.spec} in {plan.quantization} on {machines}"


def usd(amount: float) -> str:
    """Dollars, with cents where they are most of it: an API that takes 7 cents does not take nothing."""
    return "under $0.01" if 0 < amount < 0.005 else f"${amount:,.2f}" if 0 < amount < 10 else f"${amount:,.0f}"


def cost_sentence(answer: Recommendation) -> str:
    """What a month costs, what is in that figure and what is not, and where it is cheaper than an API, if anywhere."""
    chosen, c = answer.chosen, answer.constraints
    own = self_hosted(chosen, c, None)
    if own is None or chosen.serving is None:
        return f"{usd(chosen.monthly_usd)} a month at {c.calls_per_day:,.0f} calls a day{_against_own(answer)}"
    upkeep = own.upkeep_usd + own.once_usd / own.paid_off_months
    rent = f"rent ${chosen.monthly_usd:,.0f}"
    if chosen.monthly_usd == 0:
        rent = "no rent, your machine: its purchase and power are not counted"
    total = f"${chosen.monthly_usd + upkeep:,.0f} a month ({rent}; engineering ${upkeep:,.0f})"
    tokens, hit = prompt_shape(chosen.method, c)
    api = break_even.api_monthly_usd(answer.competitor, c.calls_per_day, tokens, c.output_tokens, hit)
    against = f"{answer.competitor.name} takes {usd(api)} for the same {c.calls_per_day:,.0f} calls a day"
    if c.privacy == "no-egress":
        against += ", but your data may not leave"
    if answer.break_even is None:
        limit = own.max_calls_per_s * 86_400 / own.peak_factor
        note = f"; no load makes yours cheaper (one replica carries {limit:,.0f} a day)"
    else:
        note = f"; yours is cheaper from about {float(f'{answer.break_even:.2g}'):,.0f} a day"
    return f"{total}; {against}{note}"


def _against_own(answer: Recommendation) -> str:
    """From where on a service of one's own would be cheaper than the API chosen."""
    if answer.own is None:
        return "; no machine at hand does it instead"
    if answer.break_even is None:
        return f"; your own ({answer.own.label}) is cheaper at no load"
    weaker = ""
    if answer.constraints.calls_per_day >= answer.break_even and answer.own.quality < answer.chosen.quality:
        weaker = f", but weaker (quality proxy {answer.own.quality:.2f} against {answer.chosen.quality:.2f})"
    known = float(f"{answer.break_even:.2g}")
    return f"; your own ({answer.own.label}) is cheaper from about {known:,.0f} a day{weaker}"


def reasons(answer: Recommendation) -> list[str]:
    """The rules that speak most for the chosen method, and last the strongest one that speaks against it."""
    chosen = answer.chosen.method
    speaking = [r for r in answer.fired if r.votes.get(chosen, 0.0) > 0]
    speaking.sort(key=lambda r: -r.votes[chosen])
    rivals = [r for r in answer.fired if _rival_lead(answer, r) > 0 and r not in speaking[: REASONS - 1]]
    against = sorted(rivals, key=lambda r: -_rival_lead(answer, r))
    found = [
        f"{r.says} ({explain.GRADES[r.grade]}; seen in: {r.scope})"
        for r in speaking[: REASONS - 1 if against else REASONS]
    ]
    if against:
        found.append(explain.counter_sentence(answer, against[0], short=True))
    return found or ["No rule speaks for more work: the simplest method that meets the constraints is taken."]


def _rival_lead(answer: Recommendation, rule: Rule) -> float:
    """By how much a rule prefers a method that the other rules do not refuse anyway."""
    best = max(rule.votes, key=lambda m: rule.votes[m], default=answer.chosen.method)
    if answer.score[best] <= 0:
        return 0.0
    return rule.votes.get(best, 0.0) - max(0.0, rule.votes.get(answer.chosen.method, 0.0))


def refusal(entry: explain.Json) -> str:
    """One refused option in one line."""
    behind = entry.get("points_behind")
    if behind == 0:
        return "level on points: ties go to the method listed first"
    if behind is None:
        changes = entry.get("changes", [entry["change"]])
        more = f", and {len(changes) - 1} more (--why)" if len(changes) > 1 else ""
        return f"refused ({entry['constraint']}): {changes[0]}{more}"
    if entry.get("flips"):
        return f"{behind:.1f} points behind; wins with {entry['change']}"
    return f"{behind:.1f} points behind; no single change tried turns that"


def assumed(answer: Recommendation) -> list[str]:
    """The assumptions something hangs on, the four that only scale costs in one line."""
    entries = {e["name"]: e for e in explain.assumptions(answer)}
    costs = ", ".join(f"{name} = {entries[name]['value']:g}" for name in COSTS if name in entries)
    found = [f"{costs}: they set load and cost"] if costs else []
    for name, entry in entries.items():
        if name in COSTS or entry["value"] in (None, []) or not entry.get("weighs", True):
            continue
        value = entry["value"]
        if name == "unchecked":
            what = " and ".join(part.partition(":")[0] for part in value)
            found.append(f"not verified, wholly or in part: {what} (--why and ftadvise gpus say which)")
        elif name == "gpu_price":
            found.append(f"a {answer.chosen.serving.gpu.name} hour at ${value:.2f}, the mean of known prices")  # type: ignore[union-attr]
        else:
            shown = ", ".join(value) if isinstance(value, list) else value
            found.append(f"{name} = {shown}: {entry['matters']}")
    return found
