"""`release.yaml` and the model card, from facts and not from templates of the libraries."""

from pathlib import Path
from typing import Any

from tunegate.core.files import write_text


def write(folder: Path, facts: dict[str, Any], *, name: str) -> None:
    """Write `release.yaml` (what serving needs to know) and `README.md` (the model card) into a release folder."""
    import yaml

    write_text(
        folder / "release.yaml", str(yaml.safe_dump({"schema_version": 1, "name": name, **facts}, sort_keys=False))
    )
    front = {
        "base_model": facts["base_name"],
        "base_model_relation": "quantized" if facts["quantization"] != "none" else "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"license": facts["license"]} if facts.get("license") else {}),
        "tags": ["tunegate", facts["method"], *([facts["quantization"]] if facts["quantization"] != "none" else [])],
    }
    lines = [
        "---",
        str(yaml.safe_dump(front, sort_keys=False)).strip(),
        "---",
        f"# {name}",
        "",
        f"{facts['base_name']}, fine-tuned with {facts['method']} on a private dataset (digest `{facts['dataset_digest'][:16]}`).",
        "",
        f"- quantization: {facts['quantization']}"
        + (f" (group size {facts['group_size']})" if "group_size" in facts else ""),
        f"- chat template: `{facts['template_digest'][:16]}` (SHA-256, first 16 digits)",
        "- lineage and hashes: `manifest.json`; check with `ft verify`",
        "- serve: `ft serve` on this folder, or `vllm serve` on it",
        "",
        "The base model's licence applies to this model too. Intended use, limits and evaluation: see the report it was gated on.",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")
