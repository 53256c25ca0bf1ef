"""What `ft train --dry-run` shows: the examples as the loss sees them, the template, the certificate, the forecast."""

import dataclasses
from typing import TYPE_CHECKING, Any

from tunegate.core.console import emit_json, out, table
from tunegate.train.config import Setting, TrainConfig
from tunegate.train.preflight import Forecast

if TYPE_CHECKING:
    from tunegate.train.sft import Prepared
    from tunegate.train.template_check import TemplateCheck

SHOWN = 3


def show(
    ready: "Prepared",
    template: "TemplateCheck",
    config: TrainConfig,
    settings: dict[str, Setting],
    forecast: Forecast | None,
    *,
    as_json: bool,
) -> None:
    """Print it, or one JSON object."""
    from tunegate.train import examples

    shown = [(e, examples.parts_of(e, ready.tokenizer)) for e in ready.kept[:SHOWN]]
    mask = dataclasses.asdict(ready.certificate)
    if as_json:
        document: dict[str, Any] = {
            "dry_run": True,
            "config": dataclasses.asdict(config),
            "origins": {key: setting.origin for key, setting in settings.items()},
            "mask": mask,
            "template": dataclasses.asdict(template),
            "forecast": dataclasses.asdict(forecast) if forecast else None,
            "examples": [{"id": e.id, "parts": [dataclasses.asdict(p) for p in parts]} for e, parts in shown],
        }
        emit_json(document)
        return
    for example, parts in shown:
        out().rule(f"row {example.id}: dim is not learnt")
        out().print(examples.preview(parts), markup=True)
    rows = [*mask.items(), ("template", template.digest[:16]), ("stop tokens", " ".join(template.stops))]
    rows.append(("same tokens at the server", f"{template.rows} rows"))
    table("what the loss sees", ["", ""], [[k, str(v)] for k, v in rows])
