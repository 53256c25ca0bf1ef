"""Whether what is to be served is still what was judged: its own bytes, and the base model of an adapter or a prompt."""

from dataclasses import replace
from pathlib import Path

from tunegate.core import manifest as manifests
from tunegate.core import same_model
from tunegate.core.artifacts import Artifact, Release, Run
from tunegate.core.console import warn
from tunegate.core.errors import TunegateError, UserError
from tunegate.core.files import home_path, sha256_file, sha256_text
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import DIGESTED, ModelSource, file_at_hand, hub_file_at_hand, resolve
from tunegate.core.weight_files import indexed
from tunegate.serve import served_model
from tunegate.serve.served_model import Target

HERE, CHANGED, UNKNOWN = "here", "changed", "not checked"
WEIGHTS = ".safetensors"


def state(artifact: Artifact) -> str | None:
    """`here`, `changed`, or `not checked` where the base is not on this machine; None for what is loaded without a base.
    A local base is hashed; of a hub id the revision in this machine's cache counts, and nothing is fetched."""
    if not isinstance(artifact, Release | Run) or not _needs_base(artifact):
        return None
    made_on = next((row for row in manifests.lineage(artifact.manifest.inputs) if row["role"] == "base_model"), None)
    source = _at_hand(str(artifact.manifest.facts["base"])) if made_on else None
    return _compared(source, made_on["digest"]) if source and made_on else UNKNOWN


def as_trained_on(source: ModelSource, digest: str) -> ModelSource | None:
    """The model that had `digest` when it was trained on: `source` where that is still it; of a hub id whose `main` has moved on
    to files that are not all here, the revision of then, where this machine's cache knows it. None where it has changed, or
    nothing tells."""
    found = _compared(source, digest)
    if found != UNKNOWN:
        return source if found == HERE else None
    then = _snapshot(source, digest)
    return replace(source, revision=then.name) if then else None


def refuse_changed(artifact: Artifact) -> None:
    """Raise UserError for an adapter or prompt whose base model has changed: what was judged is no longer what would be served."""
    if state(artifact) == CHANGED:
        raise UserError(
            f"the base model {artifact.manifest.facts['base']!r} has changed since it was trained on",
            where=str(artifact.path),
            hint="restore that base, whose digest is in the manifest's lineage, or train and judge again",
        )


def refuse_other_bytes(*served: Target) -> None:
    """Raise UserError for a run or release that is not, byte for byte, as it was written: a verdict is on its manifest's digest.
    Every file is hashed, a second for 300 MB to 1 GB; a plain model folder, which has no manifest, is not."""
    for target in served:
        if not isinstance(target, ModelSource):
            manifests.refuse_changed(target.path, f"the {target.kind}")


def warn_changed(*served: Target) -> None:
    """Say of each adapter or prompt that is to be served whose base model has changed that it was not judged so."""
    for target in served:
        if not isinstance(target, ModelSource) and state(target) == CHANGED:
            base = target.manifest.facts["base"]
            warn(
                f"{target.path}: its base model {base!r} has changed since it was trained on: what was judged is not what is served"
            )


def _compared(source: ModelSource, digest: str) -> str:
    if same_model.same_digest(source, source.as_input(), digest):
        return HERE
    return _of_the_hub(source, digest) if source.kind == "hub" else CHANGED


def _of_the_hub(source: ModelSource, digest: str) -> str:
    """Of a hub id whose `main` has moved on: whether the revision that was trained on, where it is still in the cache, has the
    same config, tokenizer and weights. Files that only one of the two has were not fetched for the other: nothing is known of them."""
    config = hub_file_at_hand(source.location, "config.json", source.revision)
    then = _snapshot(source, digest)
    if config is None or then is None:
        return UNKNOWN
    now = config.parent
    before, after = (
        {file.name for file in folder.iterdir() if file.suffix in DIGESTED and file.is_file()} for folder in (then, now)
    )
    both = before & after
    if not all((then / name).samefile(now / name) or _same_bytes(then / name, now / name) for name in both):
        return CHANGED
    weights = {name for name in before | after if name.endswith(WEIGHTS)} | {*indexed(then), *indexed(now)}
    return HERE if weights and weights <= both else UNKNOWN


def _snapshot(source: ModelSource, digest: str) -> Path | None:
    """The folder in the hub's cache of the revision of `source`, a hub id, that has this digest."""
    config = hub_file_at_hand(source.location, "config.json", source.revision)
    folders = config.parent.parent.iterdir() if config else ()
    return next((f for f in folders if sha256_text(f"{source.location}@{f.name}") == digest), None)


def _same_bytes(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and sha256_file(first) == sha256_file(second)


def _needs_base(artifact: Release | Run) -> bool:
    weightless = artifact.kind == Run.kind and artifact.manifest.facts.get("method") in WEIGHTLESS
    return weightless or served_model.has_adapter(artifact)


def _at_hand(spec: str) -> ModelSource | None:
    gguf = home_path(spec)
    there = gguf.is_file() if gguf.suffix == ".gguf" else file_at_hand(spec, "config.json") is not None
    try:
        return resolve(spec, offline=True) if there else None
    except (TunegateError, OSError):
        return None
