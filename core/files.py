"""Writing files and folders so that a reader never sees half of one, and hashing them."""

import errno
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tunegate.core.errors import InfrastructureError, UserError, first_line


def home_path(text: str | Path) -> Path:
    """The path that a user wrote, with `~` as the home folder; one whose `~name` is nobody here stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def sha256_text(text: str) -> str:
    """Hex SHA-256 of UTF-8 text (lone surrogates pass as they are)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; half a character (a file name's bytes that are no text) is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name beside it, fsync, rename. Of a symlink what it points to is replaced;
    a device or a pipe (/dev/null, a FIFO) is written into."""
    path = _pointed_to(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
        return
    temporary = _beside(path, "partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # nor is it there where its folder is none
            temporary.unlink(missing_ok=True)
        _say_where(error, path)
        raise


def _pointed_to(path: Path) -> Path:
    """Where a symlink leads, its end there or not; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _beside(path: Path, what: str) -> Path:
    """A hidden name beside `path` that nothing has yet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{what}")


def _say_where(error: BaseException, path: Path) -> None:
    """What a write reports by a temporary name, and a full disk, which it reports without a place, are named by what was
    being made."""
    if not isinstance(error, OSError):
        return
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if ".partial" in str(error.filename) or (full and error.filename is None):
        error.filename = str(path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all; NaN and infinity are refused."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))


def read_json(path: Path, *, strict: bool = False) -> Any:
    """Read a JSON file; a fault is a UserError with file and line. strict: what others write and cannot be
    written again, NaN, infinity and half of a surrogate pair, is a fault."""
    numbers: dict[str, Any] = {"parse_constant": no_constant, "parse_float": finite} if strict else {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, **numbers)
        if strict and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, a JSON file is needed here", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except RecursionError:
        raise UserError("JSON nested too deeply", where=str(path)) from None
    except UnicodeEncodeError:
        raise UserError("not valid JSON: half of a surrogate pair", where=str(path)) from None
    except ValueError as error:  # a constant, or more digits than Python reads
        raise UserError(f"not valid JSON: {first_line(error)}", where=str(path)) from None


def no_constant(name: str) -> NoReturn:
    """Raises ValueError: NaN, Infinity and -Infinity are not JSON (a `parse_constant`)."""
    raise ValueError(f"{name} is not JSON")


def finite(text: str) -> float:
    """A number's text as a float (a `parse_float`). Raises ValueError beyond the range of a double."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is beyond the range of a number")
    return number


def refuse_existing(path: Path, *, force: bool, called: str = "--out", example: str = "--out data") -> None:
    """Refuse an output folder that already holds something. force: a folder that we wrote may be replaced; a file, or a
    folder that may hold work of the user's, never is. called, example: the folder's place on the command line, for hints.

    Raises UserError. Called before any work, so that an hour of it is not thrown away at the end.
    """
    if path.name in ("", ".."):
        raise UserError("a new folder is needed here", where=str(path), hint=f"name one, such as {example}")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise UserError(
            "the output exists already", where=str(path), hint=f"choose another {called}, or pass --force to replace it"
        )
    if not _is_ours(path):
        what = "a folder that Tunegate did not write (no manifest.json of ours)" if path.is_dir() else "a file"
        raise UserError(
            f"is {what}: --force does not replace it",
            where=str(path),
            hint=f"choose another {called}, or remove it yourself",
        )


def refuse_input(out: Path, *read: str | Path) -> None:
    """Refuse an output folder that is, or holds, something the command reads: `--force` would replace it by what was made of
    it, and the lineage would lead nowhere. read: paths; names that are none here (a hub id, nothing) are passed over.

    Raises UserError. Called before any work.
    """
    place = out.resolve()
    for path in (Path(name) for name in read if str(name)):
        if path.exists() and path.resolve().is_relative_to(place):
            raise UserError(
                f"would replace the input {path}: what is read would be replaced by what is made of it",
                where=str(out),
                hint="choose another --out",
            )


def refuse_input_file(out: Path, *read: str | Path, called: str = "--out") -> None:
    """Refuse an output file that is something the command reads, or would lie in a folder that it reads: the next run would
    read its own output back. called: the output's option, for hints. Like `refuse_input`."""
    places = {out.resolve(), out.parent.resolve() / out.name}
    for path in (Path(name) for name in read if str(name) and Path(name).exists()):
        place = path.resolve()
        if place in places or (path.is_dir() and place in {file.parent for file in places}):
            what = "lies in the input folder" if path.is_dir() else "would replace the input"
            raise UserError(
                f"{what} {path}: what is made would be read as input", where=str(out), hint=f"choose another {called}"
            )


def no_file(path: Path, what: str, hint: str | None = None) -> UserError:
    """The error for a path that is to be a file (`what`, in words) and is none."""
    said = f"is a folder, a {what} is needed here" if path.is_dir() else f"no such {what}"
    return UserError(said, where=str(path), hint=hint)


def refuse_existing_file(path: Path, *, force: bool | None = None) -> None:
    """Refuse an output file that exists already, unless `force` (None: the command has no such option), and a folder in
    its place. Raises UserError, before any work."""
    if path.is_dir():
        raise UserError("is a folder, a file is needed here", where=str(path), hint="name a file in it")
    if path.exists() and not force:
        hint = "choose another name" if force is None else "choose another --out, or pass --force to replace it"
        raise UserError("the output exists already", where=str(path), hint=hint)


def _is_ours(folder: Path) -> bool:
    """Whether a stage wrote this folder: the manifest it ends with is there."""
    try:
        document = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"kind", "digest", "outputs"} <= document.keys()


@contextmanager
def new_folder(path: Path, *, force: bool = False, own: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` and rename it to `path` when the block ends well; beside and to what `path` points
    to, where it is a symlink.

    own: what stands at `path` can only be ours (a cache): it is replaced whatever it holds.
    On any error, Ctrl-C included, the temporary folder is removed and `path` is as it was; that of a process that was killed is
    removed by the next one. Raises UserError for what came to `path` meanwhile and may not be replaced: what was made is kept.
    """
    if not own:
        refuse_existing(path, force=force)
    path = _pointed_to(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
    try:
        with _unfinished(path) as temporary:
            yield temporary
            _readable_weights(temporary)
            _put(temporary, path, replace=(own and path.is_dir()) or (force and _is_ours(path)))
    except BaseException as error:
        _say_where(error, path)
        raise


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, locked while it is written, so that no other process takes it for left behind; what has
    its name at the end is removed."""
    unlocked = _beside(path, "partial.new")
    unlocked.mkdir()
    lock = os.open(unlocked, os.O_RDONLY)
    temporary = unlocked.with_suffix("")
    try:
        with suppress(OSError):  # a disk without locks, where `remove_unfinished` gets none either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(temporary)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed while they wrote the folder `path` left beside it, by `new_folder`'s names (those
    of `run.v2` are not of `run`). A folder that is being written is locked, and stays."""
    path = _pointed_to(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    beside: list[Path] = []
    with suppress(OSError):  # may be written to, but not listed
        beside = [found for found in path.parent.iterdir() if name.fullmatch(found.name)]
    for left in beside:
        with suppress(OSError):  # in use, a file of `write_bytes`, another user's, or gone by now
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _put(temporary: Path, path: Path, *, replace: bool) -> None:
    """Rename a finished folder to its place. replace: whether the folder there goes; it then has the temporary name.

    Raises UserError where something came there that may not go: the finished folder then has a name beside it.
    """
    before = _beside(path, "old")
    if replace:
        path.rename(before)
    try:
        temporary.rename(path)  # in the place of nothing, or of an empty folder
    except BaseException as error:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            if replace:
                before.rename(path)
            raise
        kept = path.with_name(f"{path.name}.finished-{uuid.uuid4().hex[:8]}")
        temporary.rename(kept)
        if replace:
            before.rename(temporary)
        said = "something else came there meanwhile, and stays"
        raise UserError(said, where=str(path), hint=f"what was made is finished, in {kept}") from None
    if replace:
        before.rename(temporary)


def _readable_weights(folder: Path) -> None:
    """Weights are as readable as the other files here: safetensors (0.8.0) gives them to their owner alone (mode 0600), so that
    no server under another user could load them. What the folder lets others read (the umask) bounds it."""
    allowed = folder.stat().st_mode & 0o666
    for name in relative_files(folder):
        file = folder / name
        if file.suffix == ".safetensors" and not file.is_symlink():
            with suppress(OSError):  # a disk without modes
                file.chmod(file.stat().st_mode & 0o777 | allowed)


def relative_files(folder: Path) -> list[str]:
    """Every file and symlink below `folder`, hidden ones included, as sorted POSIX paths relative to it."""
    found = []
    for directory, names, files in os.walk(folder, followlinks=False):
        links = [n for n in names if (Path(directory) / n).is_symlink()]
        found += [(Path(directory) / name).relative_to(folder).as_posix() for name in files + links]
    return sorted(found)


def packaged(package: str, name: str = "") -> Path | None:
    """The path of `name` inside an installed package, which is not imported; None without the package."""
    found = importlib.util.find_spec(package)
    locations = list(found.submodule_search_locations or []) if found else []
    return Path(locations[0]) / name if locations else None


def folder_bytes(folder: Path) -> int:
    """Size in bytes of all regular files below `folder`."""
    return sum((folder / name).stat().st_size for name in relative_files(folder) if not (folder / name).is_symlink())


def need_disk(folder: Path, wanted: float, what: str, hint: str) -> None:
    """Raises InfrastructureError when the disk that `folder` is, or will be, on has not `wanted` bytes and a little more.

    what: that takes the bytes, as the subject of the message; hint: where else it could go.
    """
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < wanted * 1.01 + 20e6:
        raise InfrastructureError(
            f"{what} takes {wanted / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            where=str(place),
            hint=f"free some space, or {hint}",
        )
