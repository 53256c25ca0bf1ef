"""`ftadvise`: the table of commands. A command's code is imported only when it is called."""

import sys
from typing import ClassVar

from tunegate.advisor.quick_command import Quick
from tunegate.core.commands import Entry, LazyGroup, lazy_app, run


class AdviseGroup(Quick, LazyGroup):
    """The sub-commands of `ftadvise`."""

    entries: ClassVar[dict[str, Entry]] = {
        "recommend": Entry(
            "tunegate.advisor.cli_recommend:app", "Should we fine-tune, with what, on what, at what price?"
        ),
        "estimate": Entry(
            "tunegate.advisor.cli_estimate:app", "Memory, speed and cost of one configuration (train, serve)."
        ),
        "breakeven": Entry("tunegate.advisor.cli_breakeven:app", "Self-hosting against an API over calls a day."),
        "gpus": Entry("tunegate.advisor.cli_tables:gpus_app", "GPUs known, with prices, dates and sources."),
        "prices": Entry("tunegate.advisor.cli_tables:prices_app", "API prices known, with dates and sources."),
        "rules": Entry("tunegate.advisor.cli_tables:rules_app", "The rules with their evidence, scope and conflicts."),
        "backtest": Entry(
            "tunegate.advisor.cli_backtest:backtest_app", "Predictions against measurements, error by class."
        ),
        "calibrate": Entry(
            "tunegate.advisor.cli_backtest:calibrate_app", "Learn this machine's speed from a log of its own."
        ),
    }


app = lazy_app(
    AdviseGroup,
    about="Should we fine-tune, with what, on what, at what price, and would it pay?",
    epilog="Example: ftadvise recommend my.jsonl --needs format,cost --calls-per-day 20000",
)


def main() -> None:
    """Entry point of the `ftadvise` console script."""
    sys.exit(run(app, prog="ftadvise"))
