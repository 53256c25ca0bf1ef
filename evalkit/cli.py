"""`ft eval`, `ft gate`, `ft report`: options in, one function called, tables out."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunegate.core import console
from tunegate.core.commands import DefaultCommandGroup
from tunegate.core.console import JsonOption
from tunegate.core.errors import UsageError, one_of
from tunegate.core.power import POWER

eval_app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    add_completion=False,
    epilog="Example: ft eval run/ --task task.yaml --out report/ --against baseline",
)
gate_app = typer.Typer(add_completion=False)


class ReportGroup(DefaultCommandGroup):
    """`ft report REPORT` means `ft report show REPORT`; a folder of that name is `./serve`."""

    default = "show"


report_app = typer.Typer(
    cls=ReportGroup, no_args_is_help=True, add_completion=False, epilog="Example: ft report report/ --html page.html"
)

TaskOption = Annotated[Path, typer.Option("--task", help="The task file (task.yaml).")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what stands in the output folder.")]
RetryOption = Annotated[
    bool,
    typer.Option("--retry-errors", help="Of a finished report ask only what infrastructure lost again; replaces it."),
]
AllowOption = Annotated[
    str,
    typer.Option(
        "--allow-different", help="Compare although these differ (data,prompts,template,generation,scorer); recorded."
    ),
]
PolicyOption = Annotated[Path | None, typer.Option("--policy", help="The gate's conditions (gate.yaml).")]
LoadOption = Annotated[
    Path | None, typer.Option("--load", help="A LoadReport of the candidate, for conditions such as load_ttft_p95_ms.")
]
AgainstOption = Annotated[
    str | None, typer.Option("--against", help="Baseline: a saved name, a report folder, or any TARGET.")
]
AgainstModelOption = Annotated[
    str | None, typer.Option("--against-model", help="Which of the baseline endpoint's models to ask.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N items.")]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", min=1, max=4096, help="Most requests at once.")]
KeyFileOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="File with the endpoint's key; else TUNEGATE_API_KEY.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Which of the endpoint's models to ask.")]
PythonOption = Annotated[bool, typer.Option("--allow-python", help="Let the task run python validators.")]


@eval_app.callback()
def eval_root() -> None:
    """Score a model and compare it with a baseline, pair by pair."""


@eval_app.command(
    "run", epilog="Example: ft eval outputs.jsonl --task task.yaml --out report/ --against baseline --policy gate.yaml"
)
def eval_run(
    target: Annotated[
        str, typer.Argument(help="Hub id, builtin:..., Run, Release, endpoint URL, or recorded outputs (.jsonl).")
    ],
    task: TaskOption,
    out: Annotated[Path, typer.Option("--out", help="The report's folder.")],
    against: AgainstOption = None,
    against_model: AgainstModelOption = None,
    policy: PolicyOption = None,
    load: LoadOption = None,
    save_as: Annotated[
        str | None,
        typer.Option(
            "--save-as", help="Save the report under this name, as a baseline; not one that a gate did not pass."
        ),
    ] = None,
    allow_different: AllowOption = "",
    limit: LimitOption = None,
    concurrency: ConcurrencyOption = 32,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="Of one request.")] = 300.0,
    retries: Annotated[int, typer.Option("--retries", min=0, max=20, help="After a passing fault.")] = 4,
    model: ModelOption = None,
    api_key_file: KeyFileOption = None,
    allow_python: PythonOption = False,
    force: ForceOption = False,
    retry_errors: RetryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score TARGET on a task; with --against, decide: PASS (exit 0), FAIL (1) or INCONCLUSIVE (3); without a gate 4 where nothing was answered."""
    from tunegate.evalkit.commands import run_eval
    from tunegate.evalkit.runner import RunOptions

    if allow_different and against is None:
        raise UsageError("--allow-different says what may differ from a baseline", hint="name one with --against")
    _needs_baseline(against, against_model)
    if policy is not None and against is None:
        console.say("no --against: only the conditions of --policy that need no baseline can be decided")
    outcome = run_eval(
        target,
        task,
        out,
        against=against,
        against_model=against_model,
        policy_path=policy,
        load_path=load,
        save_as=save_as,
        allowed=_names(allow_different),
        limit=limit,
        options=RunOptions(concurrency=concurrency, retries=retries, timeout_s=timeout_s, retry_errors=retry_errors),
        model=model,
        key_file=api_key_file,
        allow_python=allow_python,
        force=force,
    )
    outcome.annotate()
    if as_json:
        console.emit_json(outcome.payload())
    else:
        outcome.show()
    raise typer.Exit(outcome.exit_code)


@eval_app.command("init", epilog="Example: ft eval init eval.jsonl --out task.yaml")
def eval_init(
    data: Annotated[Path, typer.Argument(help="Rows (JSONL), or a Dataset folder: its held-out rows.")],
    out: Annotated[Path, typer.Option("--out", help="The task file to write.")] = Path("task.yaml"),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a task file by looking at the expected outputs."""
    from tunegate.evalkit.init import init_task

    found = init_task(data, out, force=force)
    if as_json:
        console.emit_json(found)
        return
    console.table(
        None,
        ["task", ""],
        [["wrote", str(out)], ["outputs", str(found["outputs"])], ["primary", str(found["primary"])]],
    )
    console.out().print(found["text"], markup=False)


@eval_app.command("schema", epilog="Example: ft eval schema task --out task-file.schema.json")
def eval_schema(
    which: Annotated[Literal["task", "gate"], typer.Argument(help="Of task.yaml or of gate.yaml.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; standard output if not given.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """The JSON Schema of task.yaml or gate.yaml, for an editor or another checker."""
    from tunegate.core.files import refuse_existing_file, write_json
    from tunegate.evalkit.task_schema import refuse_schema_of_answers, schemas

    schema = schemas()[which]
    if out is not None:
        refuse_schema_of_answers(out)
        refuse_existing_file(out, force=force)
        write_json(out, schema)
    if as_json or out is None:
        console.emit_json(schema if out is None else {"schema": which, "out": str(out)})
    else:
        console.say(f"begin {which}.yaml with: # yaml-language-server: $schema={out}")


@eval_app.command("power", epilog="Example: ft eval power --n 500 --discordance 0.1 --margin 0.02")
def eval_power(
    n: Annotated[int | None, typer.Option("--n", min=1, help="Items in the evaluation set.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Take n and the discordance from this report's comparison.")
    ] = None,
    discordance: Annotated[
        float | None,
        typer.Option(
            "--discordance",
            min=0.0001,
            max=1.0,
            help="Share of items on which two models differ; else the report's comparison says it, else 0.1.",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0001, max=0.9999, help="Margin of non-inferiority.")
    ] = 0.02,
    alpha: Annotated[float, typer.Option("--alpha", min=0.0001, max=0.4999)] = 0.05,
    power: Annotated[float, typer.Option("--power", min=0.5, max=0.9999)] = POWER,
    as_json: JsonOption = False,
) -> None:
    """What a set of n items can show, and how many a margin needs."""
    from tunegate.evalkit.commands import power_of

    found = power_of(n, report, discordance=discordance, margin=margin, alpha=alpha, power=power)
    if as_json:
        console.emit_json(found)
        return
    rows = [
        [f"items needed for a margin of {found['margin']:g}", str(found["need_n"] or "more than one can make")],
        *(
            [[f"smallest margin that {found['n']} items show", f"{found['detectable_margin']:.4f}"]]
            if found["n"]
            else []
        ),
        *([[f"chance that {found['n']} items pass equal models", f"{found['power_at_n']:.3f}"]] if found["n"] else []),
    ]
    groups = f", design effect {found['design_effect']:.2g}" if found["design_effect"] > 1.0 else ""
    console.table(
        f"discordance {found['discordance']:g} ({found['discordance_from']}){groups}, alpha {alpha:g} one-sided, power {power:g}",
        ["question", "answer"],
        rows,
    )


@eval_app.command("noise", epilog="Example: ft eval noise http://127.0.0.1:8000/v1 --task task.yaml")
def eval_noise(
    target: Annotated[str, typer.Argument(help="What is run twice: any TARGET that answers.")],
    task: TaskOption,
    limit: LimitOption = None,
    concurrency: ConcurrencyOption = 32,
    model: ModelOption = None,
    api_key_file: KeyFileOption = None,
    allow_python: PythonOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the same system twice: the share of items whose outcome changes by itself, and which."""
    from tunegate.evalkit.noise import measure_noise
    from tunegate.evalkit.runner import RunOptions

    found = measure_noise(
        target,
        task,
        limit=limit,
        options=RunOptions(concurrency=concurrency),
        model=model,
        key_file=api_key_file,
        allow_python=allow_python,
    )
    if as_json:
        console.emit_json(found)
        return
    rate = found["flip_rate"]
    rows = [
        [
            "outcome changed",
            f"{found['flips']} of {found['n']}",
            f"{rate['value']:.4f} [{rate['low']:.4f}, {rate['high']:.4f}]",
        ],
        ["text changed", f"{found['changed_texts']} of {found['n']}", ""],
    ]
    if any(found["infra_errors"]):
        once, again = found["infra_errors"]
        rows.append(["no answer (infrastructure), in neither", f"{once}, then {again}", ""])
    console.table("the same system, twice", ["", "items", "rate"], rows)
    for identity in found["flaky"][:20]:
        console.out().print(f"flaky: {identity}", markup=False)


@gate_app.command(epilog="Example: ft gate report/ --against baseline --policy gate.yaml")
def gate(
    report: Annotated[Path, typer.Argument(help="An EvalReport folder.")],
    against: AgainstOption = None,
    against_model: AgainstModelOption = None,
    policy: PolicyOption = None,
    load: LoadOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The decision's folder; REPORT/gate if not given.")] = None,
    allow_different: AllowOption = "",
    allow_python: PythonOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide from a report: PASS (exit 0), FAIL (1) or INCONCLUSIVE (3)."""
    from tunegate.evalkit.commands import run_gate

    _needs_baseline(against, against_model)
    outcome = run_gate(
        report,
        against=against,
        against_model=against_model,
        policy_path=policy,
        out=out,
        allowed=_names(allow_different),
        force=force,
        load_path=load,
        allow_python=allow_python,
    )
    outcome.annotate()
    if as_json:
        console.emit_json(outcome.gate_payload())
    else:
        outcome.show()
    raise typer.Exit(outcome.exit_code)


@report_app.callback()
def report_root() -> None:
    """Show a report again; serve a folder of them with their trend."""


@report_app.command("serve", epilog="Example: ft report serve reports/ --port 8321")
def report_serve(
    folder: Annotated[Path, typer.Argument(help="A folder that holds EvalReport folders, at any depth.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8321,
    as_json: JsonOption = False,
) -> None:
    """Serve the reports of a folder and each metric's trend on 127.0.0.1; with --json print the trend and leave."""
    if as_json:
        from tunegate.evalkit.report_trend import collect, trend

        console.emit_json(trend(collect(folder)))
        return
    from tunegate.evalkit.report_server import serve

    serve(folder, port)


@report_app.command("show", epilog="Example: ft report report/ --to inspect --out log.eval")
def report(
    report: Annotated[Path, typer.Argument(help="An EvalReport folder.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write the page anew to this file.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write junit.xml anew to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the summary anew to this file.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Write it in another evaluator's form: inspect.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file for --to (.json or .eval).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a report again, or write its page, JUnit file, summary or an Inspect log anew with this version."""
    from tunegate.evalkit.commands import show_report

    if to not in (None, "inspect"):
        raise UsageError(f"--to knows no {to!r}", hint="--to inspect --out log.eval")
    if (to is None) != (out is None):
        raise UsageError("--to and --out go together", hint="--to inspect --out log.eval")
    outcome = show_report(report, html=html, junit=junit, markdown=markdown, inspect=out)
    if as_json:
        console.emit_json(outcome.payload())
    else:
        outcome.show()


def _needs_baseline(against: str | None, against_model: str | None) -> None:
    if against_model is not None and against is None:
        raise UsageError("--against-model names a model of a baseline", hint="name one with --against")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    if any(not name for name in names):
        raise UsageError("--allow-different is a list such as prompts,generation")
    if names:
        from tunegate.evalkit.compare import LOCKED

        for name in names:
            one_of("--allow-different", name, LOCKED)
    return names
