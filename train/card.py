"""The run's model card, from its facts: base model, licence and its duties, method, settings, losses."""

import re
import shutil
from pathlib import Path
from typing import Any

from tunegate.core.files import write_text
from tunegate.core.model_source import ModelSource
from tunegate.train.config import TrainConfig
from tunegate.train.release import licences


def write(folder: Path, facts: dict[str, Any], config: TrainConfig, source: ModelSource, *, name: str) -> None:
    """Write `README.md`, the NOTICE the base's licence asks for, and copies of the base's licence files."""
    import yaml

    adapter = config.method != "full"
    front: dict[str, Any] = {}
    if source.kind in ("builtin", "hub"):  # a local folder's name is nobody's on the hub
        front |= {"base_model": source.name, "base_model_relation": "adapter" if adapter else "finetune"}
    if facts["license"]:
        front["license"] = facts["license"]
    front |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    front["tags"] = ["tunegate", config.method, *(["lora"] if config.method == "qlora" else [])]
    mask = facts["mask"]
    kind = f"rank {config.rank}, alpha {config.alpha}" if adapter else "all weights"
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---\n# {name}\n",
        f"{source.name}, fine-tuned with {config.method} ({kind}) on a private dataset.\n",
        *(f"{line}\n" for line in licences.card_lines(facts)),
        f"- {facts['steps']} steps, learning rate {config.learning_rate:g}, {config.lr_scheduler_type}",
        f"- rows: {mask['rows']}, loss on {mask['label_tokens']:,} of {mask['tokens']:,} tokens (the answers); left out as too long: {mask['too_long']}",
        *([f"- validation loss per answer token: {facts['validation_loss']:.4f} ({facts['validation_rows']} rows)"] if facts["validation_loss"] is not None else []),
        *(["- some steps are missing in `metrics.jsonl` and `loss.svg`: they were lost before a resume"] if facts.get("metrics_lost_bytes") else []),
        "- settings: `config.yaml`; loss: `metrics.jsonl`, `loss.svg`; lineage and hashes: `manifest.json`, checked by `ft verify`",
        "\nThe base model's licence applies to this model too. A validation loss says nothing of its answers: judge them with `ft eval`.",
    ]  # fmt: skip
    write_text(folder / "README.md", "\n".join(lines) + "\n")
    if (text := licences.notice(facts)) is not None:
        write_text(folder / "NOTICE", text)
    for file in licences.copies(Path(source.location)) if source.path else []:
        shutil.copy(file, folder / file.name)


def base_license(source: ModelSource) -> str | None:
    """The base model's licence: as known, else as its own card's front matter says, by `license_name` where `license` is `other`;
    None where it names several, or none."""
    import yaml

    path = Path(source.location) / "README.md"
    if source.license or not path.is_file():
        return source.license
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    matter = re.match(r"\s*---[ \t]*\n(.*?)^---", text, re.DOTALL | re.MULTILINE)
    try:
        front = yaml.safe_load(matter[1]) if matter else None
    except (yaml.YAMLError, ValueError):
        return None
    front = front if isinstance(front, dict) else {}
    found = front.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, str) and found.strip().lower() == "other":
        found = front.get("license_name")
    return found.strip() or None if isinstance(found, str) else None
