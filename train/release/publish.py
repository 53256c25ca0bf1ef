"""`ft push`: a release with its card to a hub repository or an object store; the manifest last, an interrupted push goes on.

What is pushed is a release of its own: the same weights and tokenizer, the card written anew with the evaluation in it, and
a manifest whose lineage begins with the release it was made from. Prompts of the training data stay here.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GateDecision, GgufExport, Release
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, home_path, read_json, sha256_text
from tunegate.core.manifest import Input
from tunegate.core.model_source import cache_folder, has_hub_form
from tunegate.serve.template_check import FILE as PROBE_FILE
from tunegate.train.release import licences, model_card
from tunegate.train.release.promote import described
from tunegate.train.release.sign import PrivateKey, sign

DAMAGED = "damaged"
REWRITTEN = ("README.md", PROBE_FILE)  # the card is made anew; the probe's prompts are rows of the training data


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where to. kind: hub (place is owner/name) or store (place is an fsspec URL). name: what the model is called there."""

    kind: str
    place: str
    name: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What happened. uploaded: files sent now, skipped: files that were there; url: where to look."""

    url: str
    digest: str
    uploaded: list[str]
    skipped: list[str]

    def after(self, sent: list[str]) -> "Pushed":
        """The same, once the files `sent`, which were not whole there, were sent first."""
        skipped = [name for name in self.skipped if name not in sent]
        return replace(self, uploaded=[*sent, *self.uploaded], skipped=skipped)


Passable = Release | GgufExport


def digest_of(content: bytes | None) -> str | None:
    """The digest in a manifest at a destination; None where there is none, `DAMAGED` where it cannot be read."""
    if content is None:
        return None
    try:
        return str(json.loads(content).get("digest"))
    except (ValueError, AttributeError):
        return DAMAGED


def files_of(content: bytes | None) -> list[str]:
    """The files that a manifest at a destination names, and its signature: what may be removed there. Nothing of a damaged one, nor
    what lies outside of its folder; it may be anybody's."""
    try:
        names = [str(item["path"]) for item in json.loads(content or b"{}")["outputs"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in (*names, manifests.SIGNATURE) if is_inner(name)]


def is_inner(name: str) -> bool:
    """Whether a name leads into the folder it is taken from."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")


def destination(text: str) -> Destination:
    """`owner/name`, `hf://owner/name[@revision]`, or `s3://`, `gs://`, `file://`, ... for fsspec. Raises UserError."""
    scheme, separator, rest = text.partition("://")
    if not separator and has_hub_form(text):
        scheme, rest = "hf", text
    if scheme == "hf":
        place, _, revision = rest.partition("@")
        if place.count("/") != 1 or not all(place.split("/")):
            raise UserError(f"not a repository: {rest!r}", where="DEST", hint="owner/name")
        return Destination(kind="hub", place=place, name=place.partition("/")[2], revision=revision or None)
    if not separator:
        folder = home_path(text).resolve()
        return Destination(kind="store", place=f"file://{folder}", name=folder.name)
    if not rest.strip("/"):
        raise UserError(f"no place in {text!r}", where="DEST", hint="s3://bucket/models/name")
    return Destination(kind="store", place=text.rstrip("/"), name=text.rstrip("/").rpartition("/")[2])


def local_folder(to: Destination) -> Path | None:
    """The folder of this machine that a destination means; None for another store."""
    scheme, _, path = to.place.partition("://")
    return home_path(path).resolve() if to.kind == "store" and scheme in ("file", "local") else None


def wanting(release: Passable, sizes: Mapping[str, int | None]) -> list[str]:
    """Files of `release` that do not stand at its destination whole. sizes: in bytes, by name, of those that are there."""
    return [str(item["path"]) for item in release.manifest.outputs if sizes.get(str(item["path"])) != item["bytes"]]


def push(
    release: Passable,
    to: Destination,
    *,
    reports: list[EvalReport],
    gate: GateDecision | None,
    key: PrivateKey | None,
    private: bool,
    force: bool,
) -> Pushed:
    """Make the copy that is passed on and send it, signed with the private key `key` where one is given; where the same is
    there already, only the files and the signature that it lacks. force: another release there is replaced, the same sent again.

    Raises UserError when the release or a report is not as it was written, a report is of another release, the destination lies
    on one of them, or a duty of the base's licence is not met; InfrastructureError when the destination does not answer (run it
    again, it goes on).
    """
    _refuse_own(to, [release.path, *(r.path for r in reports), *([gate.path] if gate else [])])
    _check(release, reports, gate)
    decision = read_json(gate.path / "decision.json") if gate else None
    place = cache_folder() / "push" / sha256_text(canonical_json([release.digest, to.place]))[:16]
    shutil.rmtree(place, ignore_errors=True)
    staged = stage(release, place, reports=reports, decision=decision, name=to.name, key=key)
    if to.kind == "hub":
        from tunegate.train.release import publish_hub

        done = publish_hub.send(staged, to, key=key, private=private, force=force)
    else:
        from tunegate.train.release import publish_store

        done = publish_store.send(staged, to, key=key, force=force)
    shutil.rmtree(place, ignore_errors=True)
    return done


def stage(
    release: Passable,
    folder: Path,
    *,
    reports: list[EvalReport],
    decision: dict[str, Any] | None,
    name: str,
    key: PrivateKey | None,
) -> Passable:
    """The copy to pass on in `folder`, its big files by hard link. Raises UserError when a duty of the licence is not met."""
    folder.mkdir(parents=True)
    facts = release.manifest.facts
    for item in release.manifest.outputs:
        target = folder / str(item["path"])
        if item["path"] in REWRITTEN:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(release.path / str(item["path"]), target)
        except OSError:  # another file system
            shutil.copyfile(release.path / str(item["path"]), target)
    card = model_card.text(release, described(release), reports, decision, name=name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    notice = licences.notice(facts)
    if notice and not any(folder.glob("NOTICE*")):
        (folder / "NOTICE").write_text(notice, encoding="utf-8")
    unmet = [duty for duty in licences.duties(folder, facts, name=name) if not duty.met]
    if unmet:
        shutil.rmtree(folder)
        what = f"passing it on asks for what is not met: {unmet[0].duty} ({unmet[0].source})"
        raise UserError(what, where=str(release.path), hint=unmet[0].fix)
    evidence = [Input(role="report", kind=r.kind, path=str(r.path), digest=r.digest) for r in reports]
    manifests.write(
        folder, release.kind, inputs=[release.as_input("release"), *evidence], config=release.manifest.config,
        seeds=release.manifest.seeds, facts={**facts, "published_as": name},
    )  # fmt: skip
    staged = type(release).open(folder)
    if key is not None:
        sign(staged, key.path, password=key.password)
    return staged


def _refuse_own(to: Destination, read: list[Path]) -> None:
    """Raise UserError for a destination that is, holds or lies in a folder that is read: the push would write over it."""
    place = local_folder(to)
    for path in (path.resolve() for path in read):
        if place is not None and (place.is_relative_to(path) or path.is_relative_to(place)):
            raise UserError(
                f"what is pushed would be written over {path}, which is read",
                where=str(place),
                hint="choose another DEST",
            )


def _check(release: Passable, reports: list[EvalReport], gate: GateDecision | None) -> None:
    manifests.refuse_changed(release.path, "the release" if isinstance(release, Release) else "the export")
    for report in reports:
        manifests.refuse_changed(report.path, "the report")
    if gate is not None:
        manifests.refuse_changed(gate.path, "the gate's decision")
    for report in reports:
        judged = report.report()["target"]
        if judged["digest"] != release.digest:
            raise UserError(
                f"the report is of {judged['spec']}, not of these bytes ({release.digest[:12]})", where=str(report.path)
            )
    if gate is not None and gate.manifest.facts.get("target") != release.digest:
        raise UserError(f"the decision is not about these bytes ({release.digest[:12]})", where=str(gate.path))
