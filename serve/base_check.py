"""Whether the base model that an adapter, or a prompt, is loaded with is still the one it was made on."""

from tunegate.core import manifest as manifests
from tunegate.core import same_model
from tunegate.core.artifacts import Artifact, Release, Run
from tunegate.core.console import warn
from tunegate.core.errors import TunegateError, UserError
from tunegate.core.files import home_path, sha256_text
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import ModelSource, file_at_hand, folder_digest, hub_file_at_hand, resolve
from tunegate.serve import served_model
from tunegate.serve.served_model import Target

HERE, CHANGED, UNKNOWN = "here", "changed", "not checked"


def state(artifact: Artifact) -> str | None:
    """`here`, `changed`, or `not checked` where the base is not on this machine; None for what is loaded without a base.
    A local base is hashed; of a hub id the revision in this machine's cache counts, and nothing is fetched."""
    if not isinstance(artifact, Release | Run) or not _needs_base(artifact):
        return None
    made_on = next((row for row in manifests.lineage(artifact.manifest.inputs) if row["role"] == "base_model"), None)
    source = _at_hand(str(artifact.manifest.facts["base"])) if made_on else None
    if source is None or made_on is None:
        return UNKNOWN
    if same_model.same_digest(source, source.as_input(), made_on["digest"]):
        return HERE
    return _of_the_hub(source, made_on["digest"]) if source.kind == "hub" else CHANGED


def refuse_changed(artifact: Artifact) -> None:
    """Raise UserError for an adapter or prompt whose base model has changed: what was judged is no longer what would be served."""
    if state(artifact) == CHANGED:
        raise UserError(
            f"the base model {artifact.manifest.facts['base']!r} has changed since it was trained on",
            where=str(artifact.path),
            hint="restore that base, whose digest is in the manifest's lineage, or train and judge again",
        )


def warn_changed(*served: Target) -> None:
    """Say of each adapter or prompt that is to be served whose base model has changed that it was not judged so."""
    for target in served:
        if not isinstance(target, ModelSource) and state(target) == CHANGED:
            base = target.manifest.facts["base"]
            warn(
                f"{target.path}: its base model {base!r} has changed since it was trained on: what was judged is not what is served"
            )


def _of_the_hub(source: ModelSource, digest: str) -> str:
    """Of a hub id whose `main` has moved on: whether the revision that was trained on, where it is still in the cache, has the
    same config, tokenizer and weights."""
    config = hub_file_at_hand(source.location, "config.json", source.revision)
    if config is None:
        return UNKNOWN
    name = source.location
    then = next((s for s in config.parent.parent.iterdir() if sha256_text(f"{name}@{s.name}") == digest), None)
    if then is None:
        return UNKNOWN
    return HERE if folder_digest(then) == folder_digest(config.parent) else CHANGED


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
