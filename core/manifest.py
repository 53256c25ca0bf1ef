"""`manifest.json`: what a folder is, what it was made from, and how to make it again. Written last."""

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tunegate.core.errors import UserError, first_line
from tunegate.core.files import canonical_json, read_json, relative_files, sha256_file, sha256_text, write_json
from tunegate.core.machine import hardware, versions

NAME = "manifest.json"
SIGNATURE = "model.sig"  # made after the manifest, over it; checked against the files by itself
SCHEMA_VERSION = 1
# Not --max-tokens, --tokenizer or --keyless, which are counts and names.
_SECRET_OPTION = re.compile(r"(?i)^--?[\w-]*(key(?!less)|token(?!s|iz)|secret|password)[\w-]*(=.*)?$")
_URL_PASSWORD = re.compile(r"(\w+://)[^/?#\s]+@")
_SECRET_VALUE = re.compile(r"\b(sk-|hf_|ghp_|AKIA|xox[bp]-)[\w-]{8,}")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One thing an artifact was made from; `inputs` nests its own, so that lineage survives without the folders."""

    role: str
    kind: str
    path: str
    digest: str
    created: str | None = None
    inputs: tuple["Input", ...] = ()

    @staticmethod
    def of_file(path: Path, role: str) -> "Input":
        """A plain file, identified by the SHA-256 of its bytes."""
        return Input(role=role, kind="file", path=str(path), digest=sha256_file(path))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`.

    outputs: {path, sha256, bytes} of every file in the folder but the manifest. digest: SHA-256 over kind and outputs,
    the identity of the folder's content. facts: what the stage wants known (counts, scores, checks).
    """

    kind: str
    created: str
    digest: str
    command: list[str]
    config: dict[str, Any]
    seeds: dict[str, int]
    inputs: tuple[Input, ...]
    outputs: list[dict[str, Any]]
    facts: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    git_commit: str | None
    schema_version: int = SCHEMA_VERSION

    def as_input(self, role: str, path: Path) -> Input:
        """This folder, seen as an input of the next stage."""
        return Input(
            role=role, kind=self.kind, path=str(path), digest=self.digest, created=self.created, inputs=self.inputs
        )


class _Output(msgspec.Struct):
    path: str
    sha256: str
    bytes: int


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def redact(arguments: list[str]) -> list[str]:
    """A command line without secrets: values of key, token, secret and password options, known key shapes, and who logs in with
    which password in a URL."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            shown.append("***")
            hide_next = False
            continue
        hide_next = bool(_SECRET_OPTION.match(argument)) and "=" not in argument and not argument.endswith("-file")
        if _SECRET_OPTION.match(argument) and "=" in argument:
            argument = argument.partition("=")[0] + "=***"
        shown.append(_SECRET_VALUE.sub("***", _URL_PASSWORD.sub(r"\1***@", argument)))
    return shown


def write(
    folder: Path,
    kind: str,
    *,
    inputs: list[Input],
    config: dict[str, Any],
    seeds: dict[str, int] | None = None,
    facts: dict[str, Any] | None = None,
) -> Manifest:
    """Hash every file in `folder` and write its manifest last; the folder is complete from then on."""
    outputs = _outputs(folder)
    program = Path(sys.argv[0]).name
    manifest = Manifest(
        kind=kind,
        created=now(),
        digest=digest_of(kind, outputs),
        command=redact([program, *sys.argv[1:]]),
        config=config,
        seeds=seeds or {},
        inputs=tuple(inputs),
        outputs=outputs,
        facts=facts or {},
        versions=versions(),
        hardware=hardware(),
        git_commit=_git_commit(),
    )
    document = asdict(manifest)
    write_json(folder / NAME, {**document, "self_sha256": sha256_text(canonical_json(document))})
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether a stage finished this folder: its manifest, which is written last, is there."""
    return (folder / NAME).is_file()


def digest_at(folder: Path) -> str | None:
    """The digest that the manifest there names; None where there is none, or somebody else's `manifest.json`."""
    try:
        return read(folder).digest if is_finished(folder) else None
    except UserError:
        return None


def kind_at(folder: Path) -> str | None:
    """The kind of artifact that lies there; None where there is none, or its manifest cannot be read."""
    try:
        return read(folder).kind
    except UserError:
        return None


def read(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises UserError when there is none (the folder is not an artifact, or was never finished), when it is damaged, or
    when a newer Tunegate wrote it.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(
            "is a file, a folder is needed here" if folder.is_file() else "no such folder", where=str(folder)
        )
    if not path.is_file():
        raise UserError(
            "no manifest.json: not a Tunegate folder, or one that was never finished",
            where=str(folder),
            hint="run the stage that makes it again",
        )
    document = read_json(path, strict=True)
    if not isinstance(document, dict) or "schema_version" not in document or "kind" not in document:
        raise UserError("not a Tunegate manifest", where=str(path))
    version = document["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise UserError(
            f"damaged manifest: schema_version must be a whole number from 1 on, found {version!r}",
            where=str(path),
            hint="run the stage that makes it again",
        )
    if version > SCHEMA_VERSION:
        raise UserError(
            f"written by a newer version (manifest schema {version}, this one reads {SCHEMA_VERSION})",
            where=str(path),
            hint="upgrade tunegate",
        )
    document.pop("self_sha256", None)
    try:
        for output in msgspec.convert(document.get("outputs"), list[_Output]):
            if Path(output.path).is_absolute() or ".." in Path(output.path).parts:
                raise msgspec.ValidationError(f"{output.path!r} leads out of the folder")
        return msgspec.convert(document, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(
            f"damaged manifest: {first_line(error)}", where=str(path), hint="run the stage that makes it again"
        ) from None


def verify(folder: Path) -> list[dict[str, str]]:
    """Re-hash a folder against its manifest: a list of {path, problem}, empty when every byte is as it was.

    Raises UserError when the folder itself has no manifest that can be read; one inside it that cannot is a problem.
    """
    manifest = read(folder)
    document = read_json(folder / NAME, strict=True)
    claimed = document.pop("self_sha256", None)
    problems = [{"path": NAME, "problem": "is a symlink"}] if (folder / NAME).is_symlink() else []
    if claimed != sha256_text(canonical_json(document)):
        problems.append({"path": NAME, "problem": "the manifest itself was changed"})
    listed = {str(item["path"]): item for item in manifest.outputs}
    present = set(own_files(folder))
    for name in sorted(present | set(listed)):
        if (folder / name).is_symlink():
            problems.append({"path": name, "problem": "is a symlink"})
        elif name not in listed:
            problems.append({"path": name, "problem": "not in the manifest"})
        elif name not in present:
            problems.append({"path": name, "problem": "missing"})
        elif not (folder / name).is_file():
            problems.append({"path": name, "problem": "not a plain file"})
        elif sha256_file(folder / name) != listed[name]["sha256"]:
            size, expected = (folder / name).stat().st_size, listed[name]["bytes"]
            note = "" if size == expected else f" ({size} bytes, expected {expected})"
            problems.append({"path": name, "problem": f"content changed{note}"})
    if not problems and manifest.digest != digest_of(manifest.kind, manifest.outputs):
        problems.append({"path": NAME, "problem": "digest does not match the files listed"})
    for inner in inner_artifacts(folder):
        try:
            found = verify(folder / inner)
        except UserError as error:
            found = [{"path": NAME, "problem": error.message}]
        problems += [{**problem, "path": f"{inner}/{problem['path']}"} for problem in found]
    return problems


def refuse_changed(folder: Path, what: str) -> None:
    """Raise UserError for a folder that is not as it was written: what is made of it would name bytes that it is not made of.
    what: how the message calls it."""
    problems = verify(folder)
    if problems:
        raise UserError(
            f"{what} is not as it was written: {problems[0]['path']}: {problems[0]['problem']}",
            where=str(folder),
            hint=f"ft verify {folder}",
        )


def own_files(folder: Path) -> list[str]:
    """The files that a folder's manifest lists: all but the manifest, its signature, and sub-folders with a manifest.

    Such a sub-folder (the gate's decision inside a report) is an artifact by itself, made later and verified by itself.
    """
    inner = tuple(f"{name}/" for name in inner_artifacts(folder))
    return [name for name in relative_files(folder) if name not in (NAME, SIGNATURE) and not name.startswith(inner)]


def inner_artifacts(folder: Path) -> list[str]:
    """Sub-folders, relative, that have a manifest of their own; the outermost of each."""
    found: list[str] = []
    for name in relative_files(folder):
        inside = name.startswith(tuple(f"{other}/" for other in found))
        if name.endswith(f"/{NAME}") and not inside:
            found.append(name.removesuffix(f"/{NAME}"))
    return found


def lineage(inputs: tuple[Input, ...], depth: int = 1) -> list[dict[str, Any]]:
    """The ancestors, nearest first: {depth, role, kind, digest, created, path}."""
    rows: list[dict[str, Any]] = []
    for item in inputs:
        rows.append(
            {
                "depth": depth,
                "role": item.role,
                "kind": item.kind,
                "digest": item.digest,
                "created": item.created,
                "path": item.path,
            }
        )
        rows += lineage(item.inputs, depth + 1)
    return rows


def digest_of(kind: str, outputs: list[dict[str, Any]]) -> str:
    """SHA-256 over the kind and each file's path and hash: equal content, equal digest, wherever and whenever made."""
    files = sorted((str(item["path"]), str(item["sha256"])) for item in outputs)
    return sha256_text(canonical_json({"kind": kind, "files": files}))


def _outputs(folder: Path) -> list[dict[str, Any]]:
    return [
        {"path": n, "sha256": sha256_file(folder / n), "bytes": (folder / n).stat().st_size} for n in own_files(folder)
    ]


def _git_commit() -> str | None:
    """Commit of the user's working directory, with `-dirty` when it has changes; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
