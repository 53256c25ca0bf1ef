"""What is served: its files, its configuration, its template, and the adapters on top of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core import weight_files
from tunegate.core.artifacts import Release, Run
from tunegate.core.chat_template import default_template, is_dated
from tunegate.core.errors import UserError
from tunegate.core.files import read_json, sha256_text
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import ModelSource, hub_file_at_hand, resolve

Target = Release | Run | ModelSource
ADAPTER, WEIGHTS = "adapter_config.json", "model.safetensors"
TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
# Ranks that vLLM's LoRA kernels are built for (vllm/config/lora.py, MaxLoRARanks).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
UNSERVED = (("use_dora", "DoRA"), ("modules_to_save", "modules_to_save"), ("lora_bias", "LoRA bias"))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter to serve: the model name requests use, the folder, and the artifact it is."""

    name: str
    artifact: Release | Run

    @property
    def folder(self) -> Path:
        """Its absolute folder."""
        return self.artifact.path.resolve()


def has_adapter(target: Target) -> bool:
    """Whether the target's weights are an adapter on a base model."""
    return isinstance(target, Release | Run) and (target.path / ADAPTER).is_file()


def name_of(target: Target) -> str:
    """The model name that requests use. Raises UserError for a folder's that a command line takes for a flag."""
    if isinstance(target, ModelSource):
        name = target.spec.removeprefix("builtin:") if target.kind != "folder" else target.name
    else:
        name = target.path.resolve().name
    if name.startswith("-"):
        raise UserError(
            f"{name!r} cannot be a model's name", where=describe(target), hint="--name, or rename the folder"
        )
    return name


def base_of(target: Target) -> ModelSource | None:
    """The base model that must be loaded for a run without full weights or an adapter; None when it is all there."""
    if isinstance(target, ModelSource):
        return target
    if has_adapter(target) or (isinstance(target, Run) and target.method in WEIGHTLESS):
        return resolve(str(target.manifest.facts["base"]))
    return None


def folder_of(target: Target) -> Path | None:
    """The folder that vLLM loads weights from; None for a hub id, whose files are not here."""
    base = base_of(target)
    if base is None:
        assert not isinstance(target, ModelSource)
        return target.path.resolve()
    return base.path


def config_of(target: Target) -> dict[str, Any]:
    """The model's config.json; of a hub id the copy that finding it has left in the hub's cache, else empty."""
    path = _base_file(target, "config.json")
    found: dict[str, Any] = read_json(path) if path else {}
    return found


def _base_file(target: Target, name: str) -> Path | None:
    """A file of the model that is loaded; of a hub id the copy that finding it has left in the hub's cache."""
    folder = folder_of(target)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    base = base_of(target)
    assert base is not None, "what has a folder was answered"
    return hub_file_at_hand(base.location, name, base.revision)


def template_of(target: Target, *, tools: bool = False) -> tuple[Path, str] | None:
    """(file, text) of the chat template the server will use, for requests with `tools` or without; None when there is none."""
    found = None
    if isinstance(target, Release | Run):
        found = _template_in(target.path / TEMPLATE, target.path / SETTINGS, tools=tools)
    return found or _template_in(_base_file(target, TEMPLATE), _base_file(target, SETTINGS), tools=tools)


def _template_in(file: Path | None, settings: Path | None, *, tools: bool) -> tuple[Path, str] | None:
    if file and file.is_file():
        return file, file.read_text(encoding="utf-8")
    if settings is None or not settings.is_file():
        return None
    template = default_template(read_json(settings).get("chat_template"), tools=tools)
    return None if template is None else (settings, template)


def template_digest(target: Target) -> str | None:
    """SHA-256 of the chat template that will be used; None where it has none."""
    if isinstance(target, Release | Run):
        digest: str | None = target.manifest.facts.get("template_digest")
        return digest
    found = template_of(target)
    return sha256_text(found[1]) if found else None


def has_dated_template(target: Target) -> bool:
    """Whether the chat template writes today's date into prompts."""
    found = template_of(target)
    return found is not None and is_dated(found[1])


def rank_of(adapter: Adapter) -> int:
    """The smallest rank vLLM has kernels for that holds the adapter. Raises UserError for kinds it does not serve."""
    path = adapter.folder / ADAPTER
    config = read_json(path)
    for key, name in UNSERVED:
        if config.get(key):
            raise UserError(f"vLLM does not serve adapters with {name}", where=str(path), hint="merge it: ft merge")
    try:
        rank = max([int(config["r"]), *(int(r) for r in (config.get("rank_pattern") or {}).values())])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(
            "its rank is not a whole number", where=str(path), hint="train or fetch the adapter again"
        ) from None
    fitting = [r for r in LORA_RANKS if r >= rank]
    if not fitting:
        raise UserError(
            f"vLLM serves adapters up to rank {LORA_RANKS[-1]}, this one has {rank}",
            where=str(path),
            hint="merge it: ft merge",
        )
    return fitting[0]


def adapters_of(target: Target, more: tuple[Adapter, ...], name: str | None = None) -> tuple[Adapter, ...]:
    """Every adapter to serve: the target's own, called `name` (None: as its folder), then `more`.

    Raises UserError for two of one name, one made on another base model, or one trained with another chat template
    (a server renders with one).
    """
    own: tuple[Adapter, ...] = ()
    if has_adapter(target):
        assert not isinstance(target, ModelSource)
        own = (Adapter(name=name or name_of(target), artifact=target),)
    found = (*own, *more)
    digest = template_digest(target)
    names = {name or name_of(target)} if not own else set()
    for adapter in found:
        where = str(adapter.folder)
        if adapter.name in names:
            raise UserError(f"two models are called {adapter.name!r}", where=where, hint="--adapter OTHER_NAME=RUN")
        names.add(adapter.name)
        if not has_adapter(adapter.artifact):
            raise UserError(f"has no {ADAPTER}: not an adapter", where=where)
        if adapter in more:
            _same_base(target, adapter)
        if digest is not None and template_digest(adapter.artifact) != digest:
            raise UserError(
                f"the adapter {adapter.name!r} was trained with another chat template than {describe(target)} has",
                where=where,
                hint="serve it by itself, or merge it: ft merge",
            )
    return found


def _same_base(target: Target, adapter: Adapter) -> None:
    base, needed = base_of(target), base_of(adapter.artifact)
    assert needed is not None
    if base is not None and (base.location, base.revision) == (needed.location, needed.revision):
        return
    if base is not None and base.path and needed.path and base.as_input().digest == needed.as_input().digest:
        return
    raise UserError(
        f"the adapter {adapter.name!r} was made on {needed.spec}, not on what {describe(target)} holds",
        where=str(adapter.folder),
        hint=f"ft serve {needed.spec} --adapter {adapter.name}={adapter.artifact.path}",
    )


def model_flags(target: Target, adapters: tuple[Adapter, ...], name: str | None = None) -> tuple[list[str], str]:
    """(flags that say what to load, the model's name in requests: `name`, else that of its folder)."""
    name, base = name or name_of(target), base_of(target)
    location = base.location if base is not None else str(folder_of(target))
    served = f"{name}-base" if has_adapter(target) else name
    flags = ["--model", location, "--served-model-name", served]
    if base is not None and base.revision:
        flags += ["--revision", base.revision]
    if has_adapter(target):
        assert not isinstance(target, ModelSource)
        flags += ["--tokenizer", str(target.path.resolve())]
        template = target.path / TEMPLATE
        if template.is_file():
            flags += ["--chat-template", str(template.resolve())]
    if adapters:
        rank = max(rank_of(a) for a in adapters)
        flags += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        flags += ["--lora-modules", *(_lora_module(a) for a in adapters)]
    return flags, name


def _lora_module(adapter: Adapter) -> str:
    """NAME=FOLDER as vLLM takes it; as JSON where the name or the folder has a sign of that form."""
    if adapter.name.startswith("-") or "=" in adapter.name or "," in f"{adapter.name}{adapter.folder}":
        return json.dumps({"name": adapter.name, "path": str(adapter.folder)})
    return f"{adapter.name}={adapter.folder}"


def describe(target: Target) -> str:
    """What is served, in words."""
    if isinstance(target, ModelSource):
        return target.name
    if isinstance(target, Run):
        return f"run {target.path.name} ({target.method} on {target.base})"
    return f"release {target.path.name} ({target.quantization if target.quantization != 'none' else 'bf16'})"


def weights_bytes(target: Target) -> int:
    """Bytes of the weight files that will be loaded; 0 for a hub id. Raises UserError for a damaged index.

    They are the index's, else model.safetensors; only a folder with neither loads whatever is there. A folder may hold the
    same weights twice (Mistral's consolidated.safetensors lies beside the shards).
    """
    folder = folder_of(target)
    if folder is None:
        return 0
    named = weight_files.indexed(folder) or [WEIGHTS]
    found = [p for p in (folder / name for name in named) if p.is_file()]
    if not found and not (folder / weight_files.INDEX).is_file():
        found = list(folder.glob("*.safetensors"))
    return sum(p.stat().st_size for p in found)
