"""Pushing to a Hugging Face hub repository (or what answers at HF_ENDPOINT): everything in one commit, the manifest in the next.

What an interrupted push has sent stays in the hub's large-file store and is not sent again; without a manifest the
repository is no release.
"""

import glob
import os
from fnmatch import fnmatch
from functools import partial
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import relative_files
from tunegate.core.model_source import hub_is_off
from tunegate.train.release.licences import LICENCE_FILES
from tunegate.train.release.publish import Destination, Passable, Pushed, digest_of, files_of, wanting
from tunegate.train.release.publish_signature import only_signed
from tunegate.train.release.sign import PrivateKey

# What a repository may hold when its first release comes: the hub's own files, a card to be, the licence.
NO_MODEL = (".gitattributes", ".gitignore", "README.md", *LICENCE_FILES)


def send(release: Passable, to: Destination, *, key: PrivateKey | None, private: bool, force: bool) -> Pushed:
    """Make the repository where it is missing, and commit. key: what `release` is signed with; where it is there already, only
    what it lacks and the signature are sent.

    Raises UserError for a wrong token, a name that is refused, or another release or model that is there; InfrastructureError
    when the hub does not answer.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if hub_is_off():
        raise UserError("HF_HUB_OFFLINE is set", where=to.place, hint="unset it to push to a hub")
    try:
        return _send(HfApi(), release, to, key=key, private=private, force=force)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the hub refuses the token for {to.place} (HTTP {status})",
                hint="hf auth login, or HF_TOKEN with write access",
            ) from None
        raise InfrastructureError(
            f"the hub answers HTTP {status} for {to.place}", where=_endpoint(), hint=_AGAIN
        ) from None
    except HFValidationError as error:
        raise UserError(f"not a repository name: {str(error).splitlines()[0]}", where=to.place) from None
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            "httpx"
        ):  # httpx or httpx2, by version
            raise
        raise InfrastructureError(
            f"the hub does not answer: {type(error).__name__}", where=_endpoint(), hint=_AGAIN
        ) from None


_AGAIN = "run the same command again: what was sent is not sent again"


def _send(
    api: Any, release: Passable, to: Destination, *, key: PrivateKey | None, private: bool, force: bool
) -> Pushed:
    url = f"{_endpoint()}/{to.place}"
    api.create_repo(to.place, private=private, exist_ok=True)
    content = _content(api, to, manifests.NAME)
    there = digest_of(content)
    if there == release.digest and not force:
        return _mend(api, release, to, key, url)
    if there is not None and not force:
        raise UserError(
            f"another release is there already ({there[:12]})",
            where=url,
            hint="choose another name, or pass --force to replace it",
        )
    if there is None and not force:
        _refuse_others(api, release, to, url)
    names = [name for name in relative_files(release.path) if name != manifests.NAME]
    if there is not None:
        api.delete_file(manifests.NAME, to.place, revision=to.revision, commit_message="Replacing the release")
    say(f"pushing {len(names)} files to {url}")
    api.upload_folder(
        repo_id=to.place, folder_path=release.path, revision=to.revision, ignore_patterns=[manifests.NAME],
        delete_patterns=[glob.escape(name) for name in files_of(content)] or None, commit_message=_title(release),
    )  # fmt: skip
    _upload(
        api, release, to, manifests.NAME, message=f"Manifest of release {release.digest[:12]}: it is whole from here on"
    )
    return Pushed(url=url, digest=release.digest, uploaded=[*names, manifests.NAME], skipped=[])


def _title(release: Passable) -> str:
    """What the commit of a release's files is called, by which one without its manifest is known again."""
    return f"Release {release.digest[:12]}"


def _sizes(api: Any, to: Destination) -> dict[str, int | None]:
    """Files of the repository, in bytes; empty where there is no such revision."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        found = list(api.list_repo_tree(to.place, recursive=True, revision=to.revision))
    except RevisionNotFoundError:
        return {}
    return {item.path: item.size for item in found if hasattr(item, "size")}


def _refuse_others(api: Any, release: Passable, to: Destination, url: str) -> None:
    """Raise UserError for a repository that holds something, and no release: it is somebody's, unless a push of this release was
    killed before its manifest."""
    found = [name for name in _sizes(api, to) if not any(fnmatch(name, pattern) for pattern in NO_MODEL)]
    if found and all(c.title != _title(release) for c in api.list_repo_commits(to.place, revision=to.revision)[:1]):
        raise UserError(
            f"the repository holds files and no release: {', '.join(sorted(found)[:3])}{', ...' if len(found) > 3 else ''}",
            where=url,
            hint="choose another name, or pass --force to write beside and over what is there",
        )


def _mend(api: Any, release: Passable, to: Destination, key: PrivateKey | None, url: str) -> Pushed:
    """Send what the same release, which is there already, lacks."""
    sent = wanting(release, _sizes(api, to))
    if sent:
        say(f"{len(sent)} files of this release are not whole at {url}: they are sent")
        api.upload_folder(
            repo_id=to.place, folder_path=release.path, revision=to.revision, commit_message=_title(release),
            allow_patterns=[glob.escape(name) for name in sent],
        )  # fmt: skip
    send_file = partial(_upload, api, release, to, message=f"Signature of release {release.digest[:12]}")
    return only_signed(release, key, read=partial(_content, api, to), send=send_file, url=url).after(sent)


def _upload(api: Any, release: Passable, to: Destination, name: str, *, message: str) -> None:
    api.upload_file(
        path_or_fileobj=release.path / name, path_in_repo=name, repo_id=to.place, revision=to.revision,
        commit_message=message,
    )  # fmt: skip


def _content(api: Any, to: Destination, name: str) -> bytes | None:
    """The bytes of a small file that is there; None where there is none."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import get_session, hf_raise_for_status

    address = f"{_endpoint()}/{to.place}/resolve/{to.revision or 'main'}/{name}"
    response = get_session().get(address, headers=api._build_hf_headers(), follow_redirects=True)
    try:
        hf_raise_for_status(response)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return bytes(response.content)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
