"""Pushing to an object store or a folder through fsspec: file by file, the manifest last."""

import json
from functools import partial
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.console import progress, say
from tunegate.core.errors import InfrastructureError, UserError, first_line
from tunegate.core.files import relative_files, sha256_file
from tunegate.train.release.publish import (
    DAMAGED,
    Destination,
    Passable,
    Pushed,
    digest_of,
    files_of,
    is_inner,
    local_folder,
    wanting,
)
from tunegate.train.release.publish_signature import only_signed
from tunegate.train.release.sign import PrivateKey

# What an unfinished push has sent, by hash; removed at the end. Object stores name files by other sums than SHA-256.
STATE = ".tunegate-push.json"
# They have no folders to make, and asked for one some would make a bucket.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}


def send(release: Passable, to: Destination, *, key: PrivateKey | None, force: bool) -> Pushed:
    """Send every file that is not there yet, then the manifest. A finished release with other content is kept unless `force`.
    key: what `release` is signed with; where it is there already, only what it lacks and the signature are sent.

    Raises UserError for an unknown scheme or a taken place, InfrastructureError when the store does not answer.
    """
    try:
        files, root = _open(to)
        return _send(files, root.rstrip("/"), release, to, key=key, force=force)
    except (OSError, TimeoutError) as error:
        raise InfrastructureError(
            f"the store does not answer: {first_line(error)}",
            where=to.place,
            hint="run the same command again: it goes on where it stopped",
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(
            ("botocore", "aiobotocore", "google", "aiohttp", "azure", "gcsfs", "s3fs")
        ):
            raise InfrastructureError(
                f"the store refuses: {first_line(error)}", where=to.place, hint="check credentials and bucket"
            ) from None
        raise


def _open(to: Destination) -> tuple[Any, str]:
    import fsspec

    url, folder = to.place, local_folder(to)
    if folder is not None:  # as it is written: fsspec takes `::` for a chain of stores
        return fsspec.filesystem("file"), str(folder)
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise UserError(f"no such kind of store: {error}", where=url) from None
    except ImportError as error:
        scheme = url.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}.get(scheme, str(error))
        raise UserError(
            f"{scheme}:// needs a package that is not installed", where=url, hint=f"pip install {package}"
        ) from None
    return files, root


def _send(files: Any, root: str, release: Passable, to: Destination, *, key: PrivateKey | None, force: bool) -> Pushed:
    files.invalidate_cache()
    content, state = _content(files, root, manifests.NAME), _state(files, root)
    there = digest_of(content)
    if there == release.digest and not force:
        return _mend(files, root, release, to, key=key, begun=state is not None)
    if there == DAMAGED and state is not None:  # half of the manifest that an unfinished push ended with
        there = None
    if there is not None and not force:
        raise UserError(
            f"another release is there already ({there[:12]})",
            where=to.place,
            hint="choose another place, or pass --force to replace it",
        )
    if there is None and state is None and not force:
        _refuse_others(files, root, to)
    before = state or {}
    state = dict.fromkeys([*files_of(content), *before], "")  # what is ours there: the rest stays as it is
    if there is None:  # and is not sent again
        state |= before
    if OBJECT_STORES.isdisjoint(_protocols(files)):
        files.makedirs(root, exist_ok=True)
    _write(files, f"{root}/{STATE}", state)
    if content is not None:  # from now on what is there is no release, until the new manifest stands
        files.rm_file(f"{root}/{manifests.NAME}")
    names = [name for name in relative_files(release.path) if name != manifests.NAME]
    hashes = {name: sha256_file(release.path / name) for name in names}
    uploaded, skipped = [], []
    with progress("pushing", len(names) + 1) as tick:
        for name in sorted(names, key=lambda n: (release.path / n).stat().st_size):
            size = (release.path / name).stat().st_size
            if state.get(name) == hashes[name] and _size(files, f"{root}/{name}") == size:
                skipped.append(name)
            else:
                _put(files, release, root, name)
                state[name] = hashes[name]
                _write(files, f"{root}/{STATE}", state)
                uploaded.append(name)
            tick(1, name)
        _remove(files, root, sorted(state.keys() - {*names, manifests.NAME}))
        _put(files, release, root, manifests.NAME)
        tick(1, manifests.NAME)
    files.rm_file(f"{root}/{STATE}")
    if skipped:
        say(f"{len(skipped)} files were there already, {len(uploaded)} were sent")
    return Pushed(url=to.place, digest=release.digest, uploaded=[*uploaded, manifests.NAME], skipped=skipped)


def _mend(files: Any, root: str, release: Passable, to: Destination, *, key: PrivateKey | None, begun: bool) -> Pushed:
    """Send what the same release, which is there already, lacks. begun: there is the note of a push that was killed at its end."""
    sizes = {name: _size(files, f"{root}/{name}") for name in relative_files(release.path)}
    sent = wanting(release, sizes)
    for name in sent:
        _put(files, release, root, name)
    if begun:
        files.rm_file(f"{root}/{STATE}")
    put = partial(_put, files, release, root)
    return only_signed(release, key, read=partial(_content, files, root), send=put, url=to.place).after(sent)


def _put(files: Any, release: Passable, root: str, name: str) -> None:
    target, size = f"{root}/{name}", (release.path / name).stat().st_size
    if OBJECT_STORES.isdisjoint(_protocols(files)):
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
    if name == manifests.NAME and "file" in _protocols(files):  # whole or not there; an object store does so by itself
        half = f"{root}/.{name}.partial"
        files.put_file(str(release.path / name), half)
        files.mv(half, target)
    else:
        files.put_file(str(release.path / name), target)
    files.invalidate_cache()
    found = _size(files, target)
    if found != size:
        raise InfrastructureError(
            f"{name} has {found} bytes there, {size} here", where=target, hint="run the same command again"
        )


def _content(files: Any, root: str, name: str) -> bytes | None:
    """The bytes of a small file that is there; None where there is none."""
    try:
        return bytes(files.cat_file(f"{root}/{name}"))
    except FileNotFoundError:
        return None


def _protocols(files: Any) -> list[str]:
    return [files.protocol] if isinstance(files.protocol, str) else list(files.protocol)


def _refuse_others(files: Any, root: str, to: Destination) -> None:
    """Raise UserError for a place that holds something, and no release: it is somebody's."""
    try:
        found = [str(path).rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False)]
    except FileNotFoundError:
        return
    if found:
        raise UserError(
            f"the place is not empty and holds no release: {', '.join(sorted(found)[:3])}{', ...' if len(found) > 3 else ''}",
            where=to.place,
            hint="name a folder of its own, or pass --force to write beside what is there",
        )


def _state(files: Any, root: str) -> dict[str, str] | None:
    """What an unfinished push noted; None where there is none."""
    try:
        state = json.loads(files.cat_file(f"{root}/{STATE}"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in state.items() if is_inner(str(k))} if isinstance(state, dict) else {}


def _write(files: Any, path: str, state: dict[str, str]) -> None:
    files.pipe_file(path, json.dumps(state).encode())


def _size(files: Any, path: str) -> int | None:
    try:
        return int(files.info(path)["size"])
    except FileNotFoundError:
        return None


def _remove(files: Any, root: str, names: list[str]) -> None:
    """Files of an earlier release that the new one does not have, where they are still there."""
    for name in names:
        if _size(files, f"{root}/{name}") is not None:
            say(f"removing {name}, which this release does not have")
            files.rm_file(f"{root}/{name}")
