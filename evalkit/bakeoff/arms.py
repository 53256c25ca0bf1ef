"""Makes each arm's run and report; what is finished already is taken as it is, what fails is noted and left behind."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tunegate.core.artifacts import EvalReport, Run
from tunegate.core.console import say, warn
from tunegate.core.errors import InfrastructureError, TunegateError
from tunegate.core.files import read_json, write_json
from tunegate.core.manifest import is_finished
from tunegate.core.methods import RAG_LORA, WEIGHTLESS
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import read_jsonl
from tunegate.evalkit.bakeoff.plan import BASE, DATA, RETRIEVING, TUNED, Member, Plan, refuse_leaking_documents, subset
from tunegate.evalkit.evaluate import evaluate
from tunegate.evalkit.folders import write_report
from tunegate.evalkit.runner import RunOptions
from tunegate.evalkit.summary import answered
from tunegate.evalkit.system import Target, classify
from tunegate.evalkit.verdict import finish, unanswered
from tunegate.train.arguments import total_steps
from tunegate.train.config import TrainConfig, keys_of, resolve
from tunegate.train.work import METRICS

PROBE_STEPS = 3  # of a training run whose speed is not known yet
LEAST_STEPS = 5  # fewer say nothing about a method
START_S = 60.0  # a server's start, where none was timed yet
EVAL_S = 90.0


@dataclass(kw_only=True)
class Clock:
    """Time left of the budget, and what stages took so far (seconds). evaluation_s: of one member."""

    budget_s: float | None
    begun: float = field(default_factory=time.monotonic)
    evaluation_s: float = START_S + EVAL_S

    def left(self) -> float | None:
        """Seconds left; None without a budget."""
        return None if self.budget_s is None else self.budget_s - (time.monotonic() - self.begun)


def run_arms(plan: Plan, options: RunOptions) -> dict[str, str]:
    """Make and judge every member of every arm. Returns {member name: why it failed} of those that did.

    Arms without weights share one server; the tuned ones of a method share one that holds their adapters.
    """
    failed: dict[str, str] = {}
    clock = Clock(budget_s=plan.budget_s)
    for arm in plan.arms:
        first, *others = plan.members(arm)
        _attempt(failed, first, partial(_refuse_leaks, plan, arm))
        failed |= {m.name: failed[first.name] for m in others if first.name in failed}
    light = [Member(arm=arm) for arm in plan.arms if arm not in TUNED and arm not in failed]
    for member in light:
        _attempt(failed, member, partial(make_run, plan, member, None))
    _judge_group(plan, [m for m in light if m.name not in failed], options, failed, clock)
    tuned = [arm for arm in plan.arms if arm in TUNED and arm not in failed]  # the others share the budget
    for number, arm in enumerate(tuned):
        members = plan.members(arm)
        todo = [m for m in members if not is_finished(plan.run_folder(m))]
        steps = _affordable(plan, arm, todo, len(tuned) - number, clock, failed)
        for member in todo:
            if member.name not in failed:
                _attempt(failed, member, partial(make_run, plan, member, steps.get(member.name)))
        _judge_group(plan, [m for m in members if m.name not in failed], options, failed, clock)
    return failed


def _refuse_leaks(plan: Plan, arm: str) -> None:
    """Raise UserError where an arm would read documents that answer evaluation rows, or has read them: before it is made, and
    before it is judged. What is made of training rows was compared row by row, for all arms alike."""
    if arm != BASE and (config := config_of(plan, arm)).docs and "docs" in keys_of(config.method):
        refuse_leaking_documents(config.docs, plan.task)


def make_run(plan: Plan, member: Member, max_steps: int | None) -> None:
    """The member's run folder; a training that was cut short goes on from its last checkpoint."""
    folder = plan.run_folder(member)
    if member.arm == BASE or is_finished(folder):
        return
    say(f"making {member.name}")
    config = config_of(plan, member.arm, max_steps)
    dataset = subset(plan, member.share)
    started = time.monotonic()
    if member.arm in WEIGHTLESS:
        from tunegate.train.arms.build import build

        build(dataset, plan.source, config, folder, force=False)
    else:
        from tunegate.train import sft, work

        begun = work.working_folder(folder).is_dir()
        sft.train(dataset, plan.source, config, folder, resume=begun, force=False)
    _note(plan, member, {"made_s": round(time.monotonic() - started, 1)})


def config_of(plan: Plan, arm: str, max_steps: int | None = None) -> TrainConfig:
    """The settings of an arm: the bake-off's for all arms, then its own, then what the budget leaves."""
    settings = {**plan.settings, **plan.own_settings.get(arm, {}), "model": plan.source.spec}
    settings["method"] = "lora" if arm == RAG_LORA else arm
    if arm in RETRIEVING and plan.docs:
        settings["docs"] = plan.docs
    if max_steps is not None:
        settings["max_steps"] = max_steps
    return resolve([("bake-off", settings)])[0]


def _affordable(
    plan: Plan, arm: str, todo: Sequence[Member], arms_left: int, clock: Clock, failed: dict[str, str]
) -> dict[str, int]:
    """Steps for each training that the budget shortens. Arms share what is left evenly, members by their rows.

    A training that was begun keeps the steps it was given then: it goes on from its checkpoint.
    """
    given = {m.name: int(n["steps"]) for m in todo if (n := _notes(plan).get(f"steps {m.name}"))}
    todo = [m for m in todo if m.name not in given]
    left = clock.left()
    if left is None or not todo:
        return given
    judging = sum(not _is_judged(plan, m) for m in plan.members(arm) if m.name not in failed)
    seconds = max(0.0, left / arms_left - judging * clock.evaluation_s)
    rate = _seconds_per_step(plan, arm)
    whole = {m.name: _steps(plan, m) for m in todo}
    wanted = sum(whole.values()) * rate
    if wanted <= seconds:
        return given
    factor = seconds / wanted
    steps = {name: int(n * factor) for name, n in whole.items()}
    for name, n in steps.items():
        if n < LEAST_STEPS:
            failed[name] = f"left out: {seconds:.0f} s of the budget are left, {n} of {whole[name]} steps would fit"
            warn(f"{name}: {failed[name]}")
    shown = ", ".join(f"{name} {n} of {whole[name]}" for name, n in steps.items() if n >= LEAST_STEPS)
    if shown:
        warn(f"to stay within the budget, steps: {shown}")
    kept = {name: n for name, n in steps.items() if n >= LEAST_STEPS}
    for name, n in kept.items():
        _note_as(plan, f"steps {name}", {"steps": n})
    return given | kept


def _seconds_per_step(plan: Plan, arm: str) -> float:
    """Measured on a few steps, once."""
    notes = _notes(plan).get(f"probe {arm}")
    if notes is None:
        from tunegate.train import sft

        folder = plan.out / DATA / f"probe-{arm}"
        say(f"timing {PROBE_STEPS} steps of {arm}")
        sft.train(plan.dataset, plan.source, config_of(plan, arm, PROBE_STEPS), folder, resume=False, force=True)
        lines = [value for _, value in read_jsonl(folder / METRICS) if value.get("loss") is not None]
        per_step = _tokens_per_step(Run.open(folder)) / max(1.0, float(lines[-1]["tokens_per_s"]))
        notes = {"seconds_per_step": round(per_step, 3)}
        _note_as(plan, f"probe {arm}", notes)
    return float(notes["seconds_per_step"])


def _tokens_per_step(run: Run) -> float:
    mask, config = run.manifest.facts["mask"], run.manifest.config
    rows = int(config["per_device_train_batch_size"]) * int(config["gradient_accumulation_steps"])
    return rows * float(mask["tokens"]) / float(mask["rows"])


def _steps(plan: Plan, member: Member) -> int:
    config = config_of(plan, member.arm)
    rows = sum(1 for _ in read_jsonl(subset(plan, member.share).train_path))
    return total_steps(config, rows)


def _judge_group(
    plan: Plan, members: Sequence[Member], options: RunOptions, failed: dict[str, str], clock: Clock
) -> None:
    """Reports of members that share weights, asked at one server; full weights get their own."""
    todo = [m for m in members if not _is_judged(plan, m)]
    groups = [[m] for m in todo if m.arm == "full"] + [[m for m in todo if m.arm != "full"]]
    for group in filter(None, groups):
        started = time.monotonic()
        try:
            _judge(plan, group, options, failed)
        except TunegateError as error:
            for member in group:
                if not _is_judged(plan, member):
                    failed.setdefault(member.name, f"{error.message}")
                    warn(f"{member.name} failed: {error.message}")
        clock.evaluation_s = (time.monotonic() - started) / len(group)


def _judge(plan: Plan, group: Sequence[Member], options: RunOptions, failed: dict[str, str]) -> None:
    from tunegate.serve.served_model import Adapter
    from tunegate.serve.vllm_flags import ServeOptions
    from tunegate.serve.vllm_process import serving

    runs = {m.name: Run.open(plan.run_folder(m)) for m in group if m.arm != BASE}
    prompted = tuple((m.name, runs[m.name].path) for m in group if m.arm in WEIGHTLESS)
    adapters = tuple(Adapter(name=m.name, artifact=runs[m.name]) for m in group if m.arm in ("lora", "qlora", RAG_LORA))
    target: Run | ModelSource = runs[group[0].name] if group[0].arm == "full" else plan.source
    reports = plan.out / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    serve = ServeOptions(prompted=prompted, adapters=adapters)
    with ExitStack() as stack:
        endpoint = stack.enter_context(serving(target, options=serve, log=reports / f".{group[0].name}.server.log"))
        for member in group:
            name = endpoint.model if member.arm in (BASE, "full") else member.name
            at = Target(base_url=endpoint.base_url, model=name, key=endpoint.key, facts=endpoint.facts)
            _attempt(failed, member, partial(_report, plan, member, at, options))


def _report(plan: Plan, member: Member, at: Target, options: RunOptions) -> None:
    say(f"asking {member.name}")
    spec = plan.source.spec if member.arm == BASE else str(plan.run_folder(member))
    folder = plan.report_folder(member)
    evaluation = evaluate(classify(spec), plan.task, out=folder, options=options, name=member.name, at=at)
    write_report(folder, evaluation, force=True)
    finish(evaluation)
    if why := unanswered(evaluation):
        raise InfrastructureError(why)


def _is_judged(plan: Plan, member: Member) -> bool:
    """Whether a report says something about the arm; one that got no answer at all is asked for again."""
    folder = plan.report_folder(member)
    return is_finished(folder) and answered(EvalReport.open(folder).report())


def _attempt(failed: dict[str, str], member: Member, work: Callable[[], None]) -> None:
    """One arm's failure is noted and the others go on; only Ctrl-C and our own bugs end the bake-off."""
    try:
        work()
    except TunegateError as error:
        where = f"{error.where}: " if error.where else ""
        failed[member.name] = f"{where}{error.message}"
        warn(f"{member.name} failed: {failed[member.name]}; the other arms go on")


def finished_reports(plan: Plan) -> dict[str, EvalReport]:
    """Reports by member name."""
    members = [m for arm in plan.arms for m in plan.members(arm)]
    return {m.name: EvalReport.open(plan.report_folder(m)) for m in members if _is_judged(plan, m)}


def notes_of(plan: Plan, member: Member) -> dict[str, Any]:
    """What was noted while the member was made (`made_s`)."""
    found: dict[str, Any] = _notes(plan).get(member.name, {})
    return found


def _notes(plan: Plan) -> dict[str, Any]:
    path = plan.out / "notes.json"
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _note(plan: Plan, member: Member, values: dict[str, Any]) -> None:
    _note_as(plan, member.name, values)


def _note_as(plan: Plan, name: str, values: dict[str, Any]) -> None:
    write_json(plan.out / "notes.json", {**_notes(plan), name: values})
