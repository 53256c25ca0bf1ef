"""`ft`: the table of commands. A command's code is imported only when it is called."""

import sys
from typing import ClassVar

from tunegate.core.commands import Entry, LazyGroup, lazy_app, run


class FtGroup(LazyGroup):
    """The sub-commands of `ft`, in the order of the work."""

    entries: ClassVar[dict[str, Entry]] = {
        "init": Entry(
            "tunegate.evalkit.project.cli:app", "Write a project folder that runs, from your rows or a sample."
        ),
        "data": Entry("tunegate.train.data.cli:app", "Make a dataset from your files: hold out, check, deduplicate."),
        "train": Entry(
            "tunegate.train.cli:app", "Fine-tune with LoRA, QLoRA or full tuning (TRL, PEFT, bitsandbytes)."
        ),
        "merge": Entry("tunegate.train.release.cli:merge_app", "Merge an adapter into its base model: a release."),
        "quantize": Entry("tunegate.train.release.cli:quantize_app", "Quantize a release to AWQ W4A16 for vLLM."),
        "export": Entry("tunegate.train.release.export_cli:app", "Write a release as GGUF for llama.cpp and Ollama."),
        "release": Entry(
            "tunegate.train.release.release_cli:app",
            "Names for releases: list, show, promote on a PASS, roll back, sign.",
        ),
        "push": Entry("tunegate.train.release.publish_cli:app", "Pass a release on: hub or object store, with a card."),
        "serve": Entry("tunegate.serve.cli:app", "Serve a release, run or model with vLLM (OpenAI-compatible)."),
        "loadtest": Entry("tunegate.serve.loadtest_cli:app", "Measure an endpoint under load, with your own prompts."),
        "eval": Entry("tunegate.evalkit.cli:eval_app", "Score a model and compare it with a baseline, pair by pair."),
        "ladder": Entry(
            "tunegate.evalkit.ladder_cli:app", "Which step a drop is due to: training, merge, quantization."
        ),
        "gate": Entry("tunegate.evalkit.cli:gate_app", "Decide from a report: PASS, FAIL or INCONCLUSIVE."),
        "report": Entry("tunegate.evalkit.cli:report_app", "Write a report's pages again from its results."),
        "bakeoff": Entry(
            "tunegate.evalkit.bakeoff.cli:app", "Measure every method on the same items and say which one pays."
        ),
        "verify": Entry(
            "tunegate.train.release.verify_cli:app",
            "Re-hash a folder, follow its lineage, check template, licence and signature.",
        ),
        "doctor": Entry(
            "tunegate.core.cli:doctor_app", "What is installed, what each stage will use, what is missing."
        ),
    }


app = lazy_app(
    FtGroup,
    about="Fine-tune, release, serve and judge a language model; the exit code says whether it may ship.",
    epilog="Example: ft data prepare my.jsonl --out data/ && ft train data/ --out run/",
)


def main() -> None:
    """Entry point of the `ft` console script."""
    sys.exit(run(app, prog="ft"))
