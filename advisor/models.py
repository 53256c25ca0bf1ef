"""Models by name: the shipped table of architectures, a local folder, or a shape interpolated from a size."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

from tunegate.advisor.facts import Record, doubt, key, table
from tunegate.core.architecture import Architecture, from_folder
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import home_path

# No plain decoders: mixtures of experts by their usual names, and families with latent attention.
_MIXTURE = re.compile(r"\d+x\d|\ba\d+(\.\d+)?b\b|moe\b|kimi|dbrx|deepseek-(v[23]|r1)(?!.*distill)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model of the table. spec: how `ft train --model` takes it. offered: considered when no model is named. meant: what
    a name that is no hub id of the table was taken for, in a sentence; empty where nothing was guessed."""

    name: str
    spec: str
    architecture: Architecture
    license: str
    offered: bool
    source: str
    meant: str = ""

    @property
    def doubt(self) -> str | None:
        """What to say beside estimates where the shape was not checked against a public file."""
        return doubt(f"shape of {self.name}", self.source)


@cache
def known_models() -> dict[str, KnownModel]:
    """Every model of the table, by its name."""
    return {row["name"]: _model(row) for row in table("models")}


def find(name: str, *, params_b: float | None = None) -> KnownModel:
    """The model that `name` means: a folder with config.json, a hub id, a builtin, or a loose name of the table.

    params_b: size in 1e9 parameters, used when the name alone says only the family (`Llama 2`).
    Raises UserError with the nearest names.
    """
    if not name.strip():
        raise UserError("no model is named", where="model", hint="a hub id, a folder, or a name of the table")
    folder = home_path(name)
    if folder.is_dir():
        return KnownModel(
            name=folder.name,
            spec=name,
            architecture=from_folder(folder),
            license="",
            offered=False,
            source=str(folder / "config.json"),
        )
    found = _index().get(key(name))
    if found is None and params_b is not None:
        size = f"{params_b:g}b"
        found = _index().get(key(f"{name}-{size}")) or _index().get(key(f"{name} {round(params_b)}B"))
    if found is None:
        raise UserError(f"unknown model {name!r}", where="model", hint=nearest(name, list(known_models())))
    spec = name if "/" in name or ":" in name else found.spec
    return dataclasses.replace(found, spec=spec, meant=_meant(name, found))


def _meant(name: str, found: KnownModel) -> str:
    """A shape is shared by many models; which one will be trained and served is said where the name leaves it open."""
    owner = name.rpartition("/")[0]
    if ":" in name or (owner and (owner == found.spec.partition("/")[0] or ":" in found.spec)):
        return ""
    if owner:
        return f"{name} is not in the table: the shape of {found.spec} stands for it"
    if found.spec == found.name:
        return f"no public weights of {name} are known, only its shape: ft train takes a hub id or a folder"
    return f"{name} is no hub id: {found.spec} is meant"


def find_or_typical(name: str, params_b: float | None) -> KnownModel:
    """As `find`; a decoder of known size but unknown shape gets one scaled from the nearest known model.

    Such a shape has `architecture.exact == False` and every estimate from it says that it extrapolates.
    Raises UserError when the size is unknown as well.
    """
    try:
        return find(name, params_b=params_b)
    except UserError:
        size = params_b or _size_in(name)
        if size is None or size <= 0 or _MIXTURE.search(name):  # of a mixture the size alone says little
            raise
        return KnownModel(
            name=name, spec=name, architecture=typical(size), license="", offered=False, source="scaled from its size"
        )


def typical(params_b: float) -> Architecture:
    """A Llama-type shape of about this size (1e9 parameters): the nearest known one with more or fewer layers."""
    known = [m.architecture for m in known_models().values() if m.architecture.gated and m.architecture.experts == 1]
    near = min(
        known,
        key=lambda a: (
            abs(a.params / 1e9 / params_b - 1.0)
            if a.params / 1e9 > params_b
            else abs(params_b / (a.params / 1e9) - 1.0)
        ),
    )
    per_layer = near.linear_params / near.layers
    layers = max(1, round((params_b * 1e9 - near.embedding_params) / per_layer))
    return dataclasses.replace(near, layers=layers, exact=False, sliding_window=None, context=None)


def _size_in(name: str) -> float | None:
    found = re.search(r"(\d+(?:\.\d+)?)\s*[bB](?![a-z])", name)
    return float(found.group(1)) if found else None


@cache
def _index() -> dict[str, KnownModel]:
    """Models by what identifies a name: their own names and hub ids, then the aliases.

    An alias is another spelling, or `NAME=HUB_ID[@CONTEXT]`: another model of the same shape.
    """
    index = {}
    for row in table("models"):
        known = known_models()[row["name"]]
        index[key(row["name"])] = known
        index.setdefault(key(known.spec), known)
        for alias in filter(None, row["aliases"].split(";")):
            name, _, identity = alias.partition("=")
            other = _sibling(known, name, identity) if identity else known
            index[key(name)] = other
            index.setdefault(key(other.spec), other)
    return index


def _sibling(known: KnownModel, name: str, identity: str) -> KnownModel:
    spec, _, context = identity.partition("@")
    shape = dataclasses.replace(known.architecture, context=int(context)) if context else known.architecture
    return dataclasses.replace(known, name=name, spec=spec, architecture=shape, license="", offered=False)


def _model(row: Record) -> KnownModel:
    window = row["sliding_window"]
    architecture = Architecture(
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        ffn=int(row["ffn"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"]),
        vocab=int(row["vocab"]),
        experts=int(row["experts"]),
        experts_per_token=int(row["experts_per_token"]),
        gated=row["gated"] == "1",
        tied=row["tied"] == "1",
        sliding_window=int(window) if window else None,
        full_attention_layers=int(row["full_attention_layers"]),
        qkv_bias=row["qkv_bias"] == "1",
        qk_norm=row["qk_norm"] == "1",
        norms_per_layer=int(row["norms_per_layer"]),
        fused=tuple(filter(None, row["fused"].split(";"))),
        context=int(row["context"]) if row["context"] else None,
    )
    return KnownModel(
        name=row["name"],
        spec=row["hub_id"] or row["name"],
        architecture=architecture,
        license=row["license"],
        offered=row["offered"] == "1",
        source=row["source"],
    )
