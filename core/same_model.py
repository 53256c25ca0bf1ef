"""Whether two names mean one model: spellings of a path, a hub id and its files in the hub's cache, equal bytes."""

import re

from tunegate.core.files import home_path
from tunegate.core.manifest import Input
from tunegate.core.model_source import (
    ModelSource,
    file_at_hand,
    folder_digest,
    has_hub_form,
    hub_file_at_hand,
    of_folder,
)

# .../models--OWNER--NAME/snapshots/REVISION: a model in the hub's cache, of this machine or another one.
_CACHED = re.compile(r".*/models--(.+?)--(.+)/snapshots/([^/]+)/?")


def same_digest(source: ModelSource, known: Input, digest: str) -> bool:
    """Whether `digest`, kept of an earlier model, is that of `source`. known: `source.as_input()`."""
    if digest == known.digest:
        return True
    other = _other_name(source)
    return other is not None and other.as_input().digest == digest


def named_so(name: str, source: ModelSource) -> bool | None:
    """Whether `name`, which an adapter's own config gives its base, means `source`; None where that cannot be told, because
    it is a path that is not on this machine."""
    folder = home_path(name)
    cached = _CACHED.fullmatch(name)
    hub_id = f"{cached[1]}/{cached[2]}" if cached else name if _is_hub_id(name) and not folder.is_dir() else None
    if {_plain(name), _plain(hub_id or name)} & {_plain(known) for known in _names(source)}:
        return True
    on_hub = source.kind in ("hub", "builtin")
    if on_hub != bool(hub_id) and _last(hub_id or name) in (_last(source.name), _last(source.location)):
        return True  # a folder that is called as the hub calls the model
    if folder.is_dir():
        return same_digest(source, source.as_input(), folder_digest(folder))
    if hub_id is None:
        return None
    return not on_hub and _cached_copy(hub_id, source)


def _cached_copy(hub_id: str, source: ModelSource) -> bool:
    """Whether a folder holds the bytes that the hub's cache has of `hub_id`."""
    file = file_at_hand(hub_id, "config.json")
    return file is not None and folder_digest(file.parent) == source.as_input().digest


def _other_name(source: ModelSource) -> ModelSource | None:
    """A hub id's folder in the hub's cache, or the hub id of such a folder; None where there is none."""
    if source.path is None:
        found = hub_file_at_hand(source.location, "config.json", source.revision)
        return of_folder(found.parent) if found else None
    cached = _CACHED.fullmatch(str(source.path.resolve()))
    if cached is None:
        return None
    hub_id = f"{cached[1]}/{cached[2]}"
    return ModelSource(hub_id, "hub", hub_id, hub_id, None, cached[3])


def _names(source: ModelSource) -> set[str]:
    """Every name that means this model and no other."""
    other = _other_name(source) if source.kind == "folder" else None
    named = {source.name} if source.kind in ("hub", "builtin") else set()
    return {source.spec, source.location, *named, *([other.name] if other else [])}


def _is_hub_id(name: str) -> bool:
    return has_hub_form(name) and not name.endswith("/")


def _plain(name: str) -> str:
    """The hub takes names in any case; a path is as its folder is found."""
    folder = home_path(name)
    return str(folder.resolve()) if folder.is_dir() else name.rstrip("/").casefold()


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
