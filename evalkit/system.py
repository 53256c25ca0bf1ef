"""What is judged: a hub model, a builtin, a Run, a Release, an endpoint, recorded outputs, or a report made before."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunegate.core import manifest as manifests
from tunegate.core import model_source, registry
from tunegate.core.artifacts import EvalReport, Release, Run, open_any
from tunegate.core.errors import UserError
from tunegate.core.files import folder_bytes, home_path, no_file, sha256_file, sha256_text
from tunegate.core.manifest import Input
from tunegate.core.model_source import ModelSource
from tunegate.evalkit.interchange.lm_eval import lm_eval_samples
from tunegate.serve.endpoint_url import is_url, normal_url

Kind = Literal["endpoint", "model", "run", "release", "recorded", "report"]


@dataclass(frozen=True, kw_only=True)
class System:
    """One thing to judge. spec: as the user named it. digest: of its content. model: the name asked for at the endpoint.

    source: the folder, model or report behind it. size_bytes: on disk, where that is known.
    """

    spec: str
    kind: Kind
    digest: str
    model: str | None = None
    source: Release | Run | ModelSource | EvalReport | None = None
    size_bytes: int | None = None

    def as_input(self, role: str) -> Input:
        """This system, seen as an input of a report."""
        if isinstance(self.source, Release | Run | EvalReport):
            return self.source.as_input(role)
        return Input(role=role, kind=self.kind, path=self.spec, digest=self.digest)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. facts: what the server that we started knows (template digest, engine version, flags)."""

    base_url: str
    model: str
    key: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def classify(spec: str, *, model: str | None = None, baseline: bool = False) -> System:
    """Find out what `spec` is; a saved name goes before a hub id. Raises UserError when it is nothing.

    An alias such as `champion` names the promoted release; as a baseline, the report it was promoted with, where there
    is one.
    """
    if not spec.strip():
        raise UserError(
            f"an empty name is no {'baseline' if baseline else 'target'}",
            where="--against" if baseline else "TARGET",
            hint="an unset variable in a script gives one",
        )
    if is_url(spec):
        url = normal_url(spec)
        return System(spec=url, kind="endpoint", digest=sha256_text(f"{url} {model or ''}"), model=model)
    path = home_path(spec)
    if manifests.is_finished(path):
        return _folder(spec, path)
    if path.is_file() and path.suffix != ".gguf":
        if path.suffix not in (".jsonl", ".ndjson", ".json", ".eval"):
            raise UserError(
                "recorded outputs are a .jsonl file, or a result file of lm-eval, promptfoo or Inspect (.json, .eval)",
                where=spec,
                hint='one {"id": ..., "output": "..."} per line',
            )
        return System(spec=spec, kind="recorded", digest=sha256_file(path), model=model)
    if path.is_dir() and (samples := lm_eval_samples(path)) is not None:
        return System(spec=str(samples), kind="recorded", digest=sha256_file(samples), model=model)
    if path.suffix in (".jsonl", ".eval") and not registry.has_report(spec):
        raise no_file(path, "file")
    bare = "/" not in spec and ":" not in spec and not path.exists()
    if bare and not (baseline and registry.has_report(spec)):
        promoted = _promoted(spec, baseline=baseline)
        if promoted is not None:
            return promoted
    if registry.has_report(spec):
        return _report(spec, registry.find_report(spec))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            "neither a Tunegate folder nor a model folder",
            where=spec,
            hint="it has no manifest.json and no config.json",
        )
    if bare:
        registry.find_report(spec)  # raises, with the names there are
    source = model_source.resolve(spec)
    size = None if source.path is None else folder_bytes(source.path)
    return System(
        spec=spec, kind="model", digest=source.as_input().digest, model=source.name, source=source, size_bytes=size
    )


def _folder(spec: str, path: Path) -> System:
    artifact = open_any(path)
    if isinstance(artifact, EvalReport):
        return _report(spec, artifact)
    if isinstance(artifact, Release | Run):
        kind: Kind = "release" if isinstance(artifact, Release) else "run"
        manifests.refuse_changed(path, f"the {kind}")  # the verdict will be on the manifest's digest
        return System(
            spec=spec,
            kind=kind,
            digest=artifact.digest,
            model=path.name,
            source=artifact,
            size_bytes=folder_bytes(path),
        )
    raise UserError(
        f"a {artifact.kind} folder cannot be judged",
        where=spec,
        hint="give a Run, a Release, a model, an endpoint or recorded outputs",
    )


def _promoted(alias: str, *, baseline: bool) -> System | None:
    """The release that `alias` means now, as a baseline the report it was promoted on where the registry has that at hand;
    None where nothing was promoted under that name."""
    from tunegate.train.release.promote_registry import current, open_registry

    kept = open_registry(None)
    if not kept.histories().get(alias):
        return None
    entry = current(kept, alias)
    if baseline and (report := kept.report(alias, entry)) is not None:
        return _report(alias, report)
    if not Path(entry.path).is_dir():
        raise UserError(
            f"the release behind {alias!r} is not on this machine", where=entry.path, hint=f"ft release show {alias}"
        )
    if manifests.digest_at(Path(entry.path)) != entry.digest:
        raise UserError(f"the release behind {alias!r} was changed", where=entry.path, hint=f"ft verify {entry.path}")
    return replace(_folder(alias, Path(entry.path)), model=alias)


def _report(spec: str, report: EvalReport) -> System:
    return System(spec=spec, kind="report", digest=report.digest, source=report)


@contextmanager
def served(system: System, *, key: str | None, log: Path, tools: bool = False) -> Iterator[Target]:
    """The endpoint to ask: the one named, else a server started for this system and stopped at the end. tools: requests
    will bring tools. Raises UserError for a model that takes none."""
    if system.kind == "endpoint":
        yield Target(base_url=system.spec, model=system.model or "", key=key)
        return
    from tunegate.serve.tool_calls import check_takes_tools
    from tunegate.serve.vllm_process import serving

    assert isinstance(system.source, Release | Run | ModelSource)
    if tools:
        check_takes_tools(system.source)
    with serving(system.source, log=log) as endpoint:
        yield Target(base_url=endpoint.base_url, model=endpoint.model, key=endpoint.key, facts=endpoint.facts)
