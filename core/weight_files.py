"""The header of a safetensors file: is it one, and is the file as long as it says? Reads no tensor and imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError

INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100 * 1024**2  # largest header (the format's reference implementation's limit)


@dataclass(frozen=True, kw_only=True)
class Header:
    """tensors: name -> {dtype, shape, data_offsets}. start: of the data, in bytes from the file's beginning."""

    tensors: dict[str, dict[str, Any]]
    start: int


def read_header(path: Path, *, hint: str = "fetch or make it again") -> Header:
    """The header of a whole file: 8 bytes length (little-endian), JSON, then data up to the last tensor's end.

    Raises UserError, with `hint`, when the file is missing, is no safetensors file, or is shorter or longer than its header says.
    """
    if not path.is_file():
        raise UserError(f"the weight file {path.name} is missing", where=str(path.parent), hint=hint)
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ValueError("no header")
            tensors = json.loads(stream.read(length))
        tensors.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise UserError(f"the weight file is damaged: {error}", where=str(path), hint=hint) from None
    if size != 8 + length + end:
        raise UserError(
            f"the weight file has {size} bytes, its header says {8 + length + end}: cut off or overwritten",
            where=str(path),
            hint=hint,
        )
    return Header(tensors=tensors, start=8 + length)


def indexed(folder: Path) -> list[str]:
    """Names of the weight files that the folder's index lists; empty without an index. Raises UserError for a damaged one."""
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a name that leads out of the folder")
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is not an index of weight files", where=str(index), hint="fetch the model again") from None
