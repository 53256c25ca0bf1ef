"""Data sets of the `datasets` package: `hf:NAME[@CONFIG][:SPLIT]` of the hub or its local cache, and folders of `save_to_disk`.

Only the Arrow files are taken from there; the rows are read by our own reader, which changes no type.
"""

from functools import lru_cache
from pathlib import Path

from tunegate.core.errors import UserError, nearest
from tunegate.core.files import read_json

PREFIX = "hf:"
_ONE, _MANY = "state.json", "dataset_dict.json"


def saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote, of all its splits; empty for any other folder."""
    if (folder / _MANY).is_file():
        return [file for split in read_json(folder / _MANY)["splits"] for file in saved(folder / split)]
    if not (folder / _ONE).is_file() or not (folder / "dataset_info.json").is_file():
        return []
    return [folder / entry["filename"] for entry in read_json(folder / _ONE)["_data_files"]]


@lru_cache(maxsize=8)
def files(name: str) -> tuple[Path, ...]:
    """The Arrow files of one split of a data set, downloaded when it is not in the cache of `datasets` yet.

    Raises UserError for a data set that cannot be had and, naming those there are, for a split that must be chosen.
    """
    import datasets

    whole, _, split = name.removeprefix(PREFIX).partition(":")
    path, _, config = whole.partition("@")
    if not path:
        raise UserError("no name of a data set", where=name, hint="hf:NAME, hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT")
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        hint = "datasets infers one type for each column; give the files themselves, which are read as they are"
        known = isinstance(error, datasets.exceptions.DatasetGenerationError)
        raise UserError(f"cannot be loaded: {reason}", where=name, hint=hint if known else None) from None
    if not split and len(found) > 1:
        raise UserError("has several splits", where=name, hint="say which: " + ", ".join(f"{name}:{s}" for s in found))
    if split and split not in found:
        raise UserError(f"no split {split!r}", where=name, hint=nearest(split, list(found)))
    chosen = found[split or next(iter(found))]
    return tuple(Path(entry["filename"]) for entry in chosen.cache_files)
