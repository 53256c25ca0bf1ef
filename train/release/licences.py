"""What the base model's licence asks of whoever passes a fine-tuned copy on. Not legal advice.

Sources: Llama 3.x Community License (llama.com/llama3_1/license, section 1.b), Gemma Terms of Use
(ai.google.dev/gemma/terms, section 3.1), Qwen RESEARCH LICENSE (Qwen2.5-3B), Apache License 2.0 section 4, MIT.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LICENCE_FILES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "COPYING*", "GEMMA_TERMS*", "*PROHIBITED_USE*")
# A release's own files are fixed by its manifest: what is missing goes beside the base, from where each merge takes it.
ANEW = "put {0} beside the base model's weights, then ft merge the run again, and quantize or export that"
AGREEMENT = ANEW.format("the base model's LICENSE")
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class Duty:
    """One duty. met: whether this folder meets it. fix: what to do where it does not."""

    duty: str
    met: bool
    fix: str
    source: str


@dataclass(frozen=True)
class _Family:
    name: str
    licence: str  # pattern on the licence's name
    model: str  # pattern on the base model's name
    duties: Callable[[Path, dict[str, Any], str], list[Duty]]


def family(facts: dict[str, Any]) -> str:
    """The licence family of a release: by its licence where that is known, else by the base model's name."""
    return _family(facts).name


def duties(folder: Path, facts: dict[str, Any], *, name: str | None = None) -> list[Duty]:
    """The duties of passing this release on under `name` (the folder's, where not given), each met or not."""
    return _family(facts).duties(folder, facts, name or folder.resolve().name)


def card_lines(facts: dict[str, Any]) -> list[str]:
    """Sentences that the model card has to hold."""
    match _family(facts).name:
        case "llama":
            return ["Built with Llama."]
        case "gemma":
            return [
                f"{GEMMA_NOTICE}. This model is a modified version of Gemma. Its use is restricted by the Gemma Prohibited Use "
                "Policy (ai.google.dev/gemma/prohibited_use_policy), and whoever passes it on must pass these terms on."
            ]
        case "qwen-research":
            return [
                "For research and evaluation only (Qwen RESEARCH LICENSE); commercial use needs Alibaba Cloud's permission."
            ]
        case _:
            return []


def notice(facts: dict[str, Any]) -> str | None:
    """The content of a NOTICE file that the licence asks for; None where it asks for none."""
    match _family(facts).name:
        case "llama":
            version = re.search(r"(?i)llama-?\s?(3(?:\.\d)?)", f"{facts.get('license')} {facts.get('base_name')}")
            number = version[1] if version else "3"
            return (
                f"Llama {number} is licensed under the Llama {number} Community License, Copyright © Meta Platforms, Inc. "
                "All Rights Reserved.\n"
            )
        case "gemma":
            return GEMMA_NOTICE + "\n"
        case _:
            return None


def copies(folder: Path) -> list[Path]:
    """Licence, notice and policy files at the top of a model folder."""
    return sorted({p for pattern in LICENCE_FILES for p in folder.glob(pattern) if p.is_file()})


def _text(folder: Path, pattern: str) -> str:
    return "\n".join(
        p.read_text(encoding="utf-8", errors="replace") for p in sorted(folder.glob(pattern)) if p.is_file()
    )


def _has_licence(folder: Path) -> bool:
    return any(folder.glob("LICENSE*")) or any(folder.glob("LICENCE*")) or any(folder.glob("GEMMA_TERMS*"))


def _llama(folder: Path, facts: dict[str, Any], name: str) -> list[Duty]:
    source = "Llama 3 Community License, 1.b"
    return [
        Duty("pass on a copy of the agreement", _has_licence(folder), AGREEMENT, source),
        Duty("NOTICE with Meta's sentence", "Community License, Copyright" in _text(folder, "NOTICE*"), "ft push writes it", source),
        Duty("say 'Built with Llama'", "Built with Llama" in _text(folder, "README.md"), "ft push writes it on the card", source),
        Duty("a name that begins with 'Llama'", name.lower().startswith("llama"), f"call it Llama-{name}", source),
    ]  # fmt: skip


def _gemma(folder: Path, facts: dict[str, Any], name: str) -> list[Duty]:
    source, card = "Gemma Terms of Use, 3.1", _text(folder, "README.md")
    return [
        Duty("pass on a copy of the terms", _has_licence(folder), ANEW.format("the terms (ai.google.dev/gemma/terms) as LICENSE"), source),
        Duty("NOTICE with Google's sentence", GEMMA_NOTICE in _text(folder, "NOTICE*"), "ft push writes it", source),
        Duty("say that it was modified", "modified version" in card, "ft push writes it on the card", source),
        Duty("pass the use restrictions on", "Prohibited Use Policy" in card, "ft push writes it on the card", source),
    ]  # fmt: skip


def _research(folder: Path, facts: dict[str, Any], name: str) -> list[Duty]:
    source = "Qwen RESEARCH LICENSE, 2 and 3"
    return [
        Duty("pass on a copy of the agreement", _has_licence(folder), AGREEMENT, source),
        Duty("research use only, and said so", "research" in _text(folder, "README.md").lower(), "ft push writes it on the card", source),
    ]  # fmt: skip


def _permissive(folder: Path, facts: dict[str, Any], name: str) -> list[Duty]:
    named = bool(facts.get("license")) and str(facts["license"]) in _text(folder, "README.md")
    return [
        Duty("the licence goes with the model", _has_licence(folder) or named, AGREEMENT, "Apache-2.0 4(a), MIT"),
        Duty("say that it was changed", "fine-tuned" in _text(folder, "README.md"), "ft push writes it on the card", "Apache-2.0 4(b)"),
    ]  # fmt: skip


def _unknown(folder: Path, facts: dict[str, Any], name: str) -> list[Duty]:
    return [
        Duty(
            f"the licence of {facts.get('base_name') or facts.get('base')} must be known",
            _has_licence(folder),
            AGREEMENT,
            "no licence is no permission",
        )
    ]


_FAMILIES = (
    _Family("qwen-research", r"qwen-?research", r"Qwen2\.5-(?:\w+-)?3B\b", _research),
    _Family("permissive", r"^(apache-2\.0|mit|bsd-.*)$", r"(?!)", _permissive),
    _Family("llama", r"llama-?3", r"(?i)(meta-)?llama-?3", _llama),
    _Family("gemma", r"^gemma$", r"(?i)gemma(?!-?[4-9](?!\d*b\b))", _gemma),
)
_UNKNOWN = _Family("unknown", "", "", _unknown)


def _family(facts: dict[str, Any]) -> _Family:
    licence, base = str(facts.get("license") or ""), str(facts.get("base_name") or facts.get("base") or "")
    by_licence = [f for f in _FAMILIES if licence and re.search(f.licence, licence, re.IGNORECASE)]
    by_name = [f for f in _FAMILIES if not licence and re.search(f.model, base)]
    return (by_licence or by_name or [_UNKNOWN])[0]
