"""`ft push`: options, one call, printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GateDecision, GgufExport, Release, open_any
from tunegate.core.console import JsonOption, emit_json, out
from tunegate.core.errors import UsageError, UserError
from tunegate.core.manifest import SIGNATURE
from tunegate.train.paths import given_path

if TYPE_CHECKING:
    from tunegate.train.release.publish import Pushed

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: ft push release-awq/ s3://models/slots-v3 --report report/")
def push(
    release_folder: Annotated[
        Path,
        typer.Argument(metavar="RELEASE", help="Release folder, or a GGUF folder of ft export.", parser=given_path),
    ],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="owner/name on the hub, or s3://, gs://, file:// and a path.")
    ],
    report: Annotated[
        list[Path] | None, typer.Option("--report", help="EvalReport of this release, for the card; repeat it.")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option("--gate", help="GateDecision for the card; default: the first report's.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Sign what is pushed with this P-256 private key.")] = None,
    key_password_file: Annotated[
        Path | None, typer.Option("--key-password-file", help="Where the key has one.")
    ] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Of a hub repository that is made now.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another release that is there; send the same again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Pass a release on, with a model card; the manifest last, so that an unfinished copy is none. Run again, it goes on."""
    from tunegate.train.release.publish import destination
    from tunegate.train.release.publish import push as do_push
    from tunegate.train.release.sign import PrivateKey, secret

    if key_password_file and key is None:
        raise UsageError("--key-password-file is for --key")
    by = PrivateKey(path=key, password=secret(key_password_file)) if key else None
    reports = [EvalReport.open(path) for path in report or []]
    inside = [r.path / "gate" for r in reports if manifests.is_finished(r.path / "gate")]
    place = gate or next(iter(inside), None)
    decision = GateDecision.open(place) if place else None
    to = destination(dest)
    release = open_any(release_folder)
    if not isinstance(release, Release | GgufExport):
        raise UserError(
            f"is a {release.kind} folder, a release or GGUF folder is needed here", where=str(release_folder)
        )
    done = do_push(release, to, reports=reports, gate=decision, key=by, private=not public, force=force)
    if as_json:
        emit_json(
            {
                "url": done.url,
                "digest": done.digest,
                "release": release.digest,
                "uploaded": done.uploaded,
                "skipped": done.skipped,
            }
        )
        return
    out().print(_words(done), markup=False)


def _words(done: "Pushed") -> str:
    if not done.uploaded:
        return f"{done.url}: this release is there already, nothing was sent"
    if done.uploaded == [SIGNATURE]:
        return f"{done.url}: this release is there already, only its signature was sent"
    counts = f"{len(done.uploaded)} files sent, {len(done.skipped)} were there"
    return f"pushed: {done.url} ({counts}; digest {done.digest[:12]})"
