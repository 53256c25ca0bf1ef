"""`release.yaml`, the model card and the licence's files of a release, from facts and not from templates of the libraries."""

import shutil
from pathlib import Path
from typing import Any

from tunegate.core.files import write_text
from tunegate.train.release import licences, model_card


def write(folder: Path, facts: dict[str, Any], *, name: str) -> None:
    """Write `release.yaml` (what serving needs to know), `README.md` (the model card) and, where the base's licence asks for
    one and none is there, `NOTICE` into a release folder."""
    import yaml

    write_text(
        folder / "release.yaml", str(yaml.safe_dump({"schema_version": 1, "name": name, **facts}, sort_keys=False))
    )
    front = str(yaml.safe_dump(model_card.front(facts), sort_keys=False)).strip()
    group = f" (group size {facts['group_size']})" if "group_size" in facts else ""
    lines = [
        f"---\n{front}\n---\n# {name}\n",
        f"{facts['base_name']}, fine-tuned with {facts['method']} on a private dataset (digest `{facts['dataset_digest'][:16]}`).\n",
        *(f"{line}\n" for line in licences.card_lines(facts)),
        f"- quantization: {facts['quantization']}{group}",
        f"- chat template: `{facts['template_digest'][:16]}` (SHA-256, first 16 digits)",
        "- lineage and hashes: `manifest.json`; check with `ft verify`",
        "- serve: `ft serve` on this folder, or `vllm serve` on it\n",
        "The base model's licence applies to this model too. Intended use, limits and evaluation: see the report it was gated on.",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")
    notice = licences.notice(facts)
    if notice is not None and not any(folder.glob("NOTICE*")):
        write_text(folder / "NOTICE", notice)


def copy_licence(source: Path, folder: Path) -> None:
    """Copy licence, notice and policy files of a model folder to what is made from it."""
    for file in licences.copies(source):
        shutil.copy(file, folder / file.name)
