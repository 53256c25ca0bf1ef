"""`bake_off(Plan)`: every arm made, judged, compared; one folder with all of it."""

import shutil
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.errors import InfrastructureError
from tunegate.core.files import write_json, write_text
from tunegate.core.manifest import Input
from tunegate.evalkit.bakeoff.arms import finished_reports, run_arms
from tunegate.evalkit.bakeoff.judge import decide
from tunegate.evalkit.bakeoff.page import markdown, page
from tunegate.evalkit.bakeoff.plan import DATA, Plan, open_plan
from tunegate.evalkit.runner import RunOptions
from tunegate.train import thread_waits

KIND = "bakeoff"


def bake_off(plan: Plan, options: RunOptions, *, force: bool) -> dict[str, Any]:
    """Run what is missing, decide, write `bakeoff.json`, `bakeoff.html`, `summary.md` and, last, the manifest.

    Raises UserError for a folder that holds another bake-off; InfrastructureError when no arm came to a report.
    """
    thread_waits.keep_short()
    open_plan(plan, force=force)
    failed = run_arms(plan, options)
    reports = {name: report for name, report in finished_reports(plan).items() if name not in failed}
    if not reports:
        first = next(iter(failed.items()), ("", "nothing was asked"))
        raise InfrastructureError(
            f"no arm came to a report; the first failure: {first[0]}: {first[1]}", where=str(plan.out)
        )
    document = decide(plan, reports, failed)
    write_json(plan.out / "bakeoff.json", document)
    write_text(plan.out / "bakeoff.html", page(document))
    write_text(plan.out / "summary.md", markdown(document))
    for probe in (plan.out / DATA).glob("probe-*"):
        shutil.rmtree(probe)
    inputs = [Input.of_file(plan.task.path, "task"), Input.of_file(plan.task.file.data, "data")]
    inputs += [plan.dataset.as_input("dataset"), plan.source.as_input()]
    inputs += [report.as_input(f"report {name}") for name, report in reports.items()]
    facts = {
        "winner": document["winner"]["arm"],
        "arms": [row["arm"] for row in document["arms"]],
        "failed": sorted(failed),
    }
    manifests.write(
        plan.out, KIND, inputs=inputs, config={"arms": list(plan.arms), "settings": plan.settings}, facts=facts
    )
    return document
