"""What `ft train --dry-run` shows: the examples as the loss sees them, the template, the certificate, the forecast."""

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tunegate.core.console import emit_json, out, table, visible
from tunegate.train.config import Setting, TrainConfig
from tunegate.train.preflight import Forecast

if TYPE_CHECKING:
    from tunegate.train.examples import MaskCertificate
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
    console = out()
    plain = console.color_system is None or console.no_color
    for example, parts in shown:
        console.rule(Text(visible(f"row {example.id}: {'[[ ]] is learnt' if plain else 'dim is not learnt'}")))
        if plain:
            console.print("".join(f"[[{p.text}]]" if p.learnt else p.text for p in parts), markup=False)
        else:
            console.print(examples.preview(parts), markup=True)
    table("what the loss sees", ["", ""], [[name, value] for name, value in _counted(ready.certificate, template)])


def _counted(mask: "MaskCertificate", template: "TemplateCheck") -> list[tuple[str, str]]:
    """The lines of the table: counts that are 0 for most sets only where they are not."""
    rows = [("rows", mask.rows), ("tokens", mask.tokens), ("tokens that are learnt", mask.label_tokens)]
    rows += [("tokens of the longest row", mask.longest)]
    rows += [("rows of several examples, one an answer", mask.by_answer)] if mask.by_answer else []
    rows += [("rows left out, over --max-length", mask.too_long)] if mask.too_long else []
    return [
        *((name, f"{count:,}") for name, count in rows),
        *([("the first of them", " ".join(mask.examples))] if mask.examples else []),
        ("template", template.digest[:16]),
        ("stop tokens", " ".join(template.stops)),
        ("same tokens at the server", f"{template.rows} rows"),
    ]
