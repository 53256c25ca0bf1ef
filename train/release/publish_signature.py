"""A release that stands at its destination already: the signature that it lacks, made over the manifest there, is sent alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.errors import UserError
from tunegate.core.files import relative_files
from tunegate.core.manifest import SIGNATURE, Input, Manifest
from tunegate.train.release.publish import Passable, Pushed
from tunegate.train.release.sign import PrivateKey, is_signed_with, sign


def only_signed(
    release: Passable,
    key: PrivateKey | None,
    *,
    read: Callable[[str], bytes | None],
    send: Callable[[str], None],
    url: str,
) -> Pushed:
    """Send `model.sig` by the private key `key` where the release at `url`, the same as `release`, our copy, has none by it.

    read: name of a file -> its bytes there, None where there is none. send: puts one file of our copy there.
    Raises UserError where the manifest there is not one that this key can vouch for.
    """
    if key is not None and _is_wanting(release, key, read, url):
        send(SIGNATURE)
        others = [name for name in relative_files(release.path) if name != SIGNATURE]
        return Pushed(url=url, digest=release.digest, uploaded=[SIGNATURE], skipped=others)
    return Pushed(url=url, digest=release.digest, uploaded=[], skipped=relative_files(release.path))


def _is_wanting(release: Passable, key: PrivateKey, read: Callable[[str], bytes | None], url: str) -> bool:
    """Whether there is no signature by `key` there; our copy's is then one for what is there.

    A signature covers the manifest, and that there names the time and the command of an earlier push: our copy takes it over,
    where it says the same of the release.
    """
    ours, signature = release.manifest, read(SIGNATURE)
    (release.path / manifests.NAME).write_bytes(read(manifests.NAME) or b"")
    (release.path / SIGNATURE).unlink(missing_ok=True)
    if not _says_the_same(release.path, ours):
        raise UserError(
            "not signed: the manifest there says something else of these bytes than this release's",
            where=url,
            hint=f"remove {manifests.NAME} there and push again with --force",
        )
    if signature is not None:
        (release.path / SIGNATURE).write_bytes(signature)
        if is_signed_with(release.path, key):
            return False
    sign(release, key.path, password=key.password)
    return True


def _says_the_same(folder: Path, ours: Manifest) -> bool:
    try:
        return not manifests.verify(folder) and _claims(manifests.read(folder)) == _claims(ours)
    except UserError:
        return False


def _claims(manifest: Manifest) -> Any:
    """What a manifest says of a release, but for when, where and by which command it was written."""
    lineage = [_origin(item) for item in manifest.inputs]
    return (manifest.digest, manifest.config, manifest.seeds, manifest.facts, lineage)


def _origin(item: Input) -> Any:
    return (item.role, item.kind, item.digest, [_origin(earlier) for earlier in item.inputs])
