"""Safetensors, one tensor at a time: read by offset, written behind a header that is made first.

Memory holds one tensor, however large the files are. Format: 8 bytes header length, a JSON header of {name: dtype, shape,
data_offsets}, then the bytes (the safetensors format's own description).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from tunegate.core.console import Ticker
from tunegate.core.errors import UserError
from tunegate.core.files import need_disk, write_json
from tunegate.core.weight_files import INDEX, indexed, read_header

# Names of the format, and torch's.
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
WHOLE = "model.safetensors"
FORMAT_NAMES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Type (torch's name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        import math

        import torch

        return math.prod(self.shape) * int(torch.empty(0, dtype=getattr(torch, self.dtype)).element_size())


def weights_of(folder: Path) -> list[Path]:
    """The weight files that transformers loads from a model's folder: `model.safetensors`, else those of the index. Without
    either the only `.safetensors` file. Raises UserError where there is none, or several that nothing chooses from."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if names := indexed(folder):
        return [folder / name for name in names]
    found = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))
    if not found:
        raise UserError("no safetensors file: weights in another format are not read", where=str(folder))
    if len(found) > 1:
        raise UserError(
            f"several weight files and no index: {', '.join(p.name for p in found)}",
            where=str(folder),
            hint=f"keep one of them, or add {INDEX}",
        )
    return found


class TensorFiles:
    """The tensors of a model's folder, in the files that `weights_of` names (or of one file). specs: name -> Spec, in the files' order."""

    def __init__(self, place: Path) -> None:
        """Read the headers. Raises UserError for no file, more than one set of them, a missing or damaged one, or a tensor type
        that is not known."""
        self.place = place
        self.specs: dict[str, Spec] = {}
        self._at: dict[str, tuple[Path, int, int]] = {}
        self._named: dict[str, str] = {}
        for path in [place] if place.is_file() else weights_of(place):
            self._read_header(path)

    def named(self, name: str) -> str:
        """What the files call a tensor of the model: the same, or the name with the longest common end, where a checkpoint has
        another beginning (Gemma 3's `language_model.model.` for `model.language_model.`); `name` where none or several fit."""
        if name in self.specs:
            return name
        if name not in self._named:
            parts = name.split(".")
            found = [(_alike(parts, other.split(".")), other) for other in self.specs]
            best = max((score for score, _ in found), default=(0, 0))
            fitting = [other for score, other in found if score == best and best[0] > 1]
            self._named[name] = fitting[0] if len(fitting) == 1 else name
        return self._named[name]

    def read(self, name: str) -> Any:
        """One tensor, a copy in memory. Raises UserError when the file is shorter than it was."""
        import torch

        path, offset, size = self._at[name]
        spec = self.specs[name]
        dtype = getattr(torch, spec.dtype)
        if not size:
            return torch.empty(spec.shape, dtype=dtype)
        buffer = bytearray(size)
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            view, done = memoryview(buffer), 0
            while done < size and (got := stream.readinto(view[done:])):
                done += got
        if done < size:
            raise UserError(f"the weight file ends inside {name}", where=str(path))
        return torch.frombuffer(buffer, dtype=dtype).reshape(spec.shape)

    def _read_header(self, path: Path) -> None:
        header = read_header(path)
        try:
            for name, entry in header.tensors.items():
                begin, end = entry["data_offsets"]
                self.specs[name] = Spec(dtype=TORCH_NAMES[entry["dtype"]], shape=tuple(entry["shape"]))
                self._at[name] = (path, header.start + begin, end - begin)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the weight file is damaged: {error}", where=str(path)) from None


def write(
    folder: Path, specs: Mapping[str, Spec], make: Callable[[str], Any], *, max_shard_bytes: int, tick: Ticker
) -> int:
    """Write `specs` as shards of at most `max_shard_bytes` (a larger tensor gets one of its own); bytes of tensors.

    `make(name)` gives each tensor when its turn comes. Raises InfrastructureError when the disk has no room, before
    anything is written; ValueError when a tensor is not what its spec says.
    """
    total = sum(spec.bytes for spec in specs.values())
    need_disk(folder.parent, total, "writing the weights", "choose another place")
    shards = _shards(specs, max_shard_bytes)
    names = [
        WHOLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    for file, tensors in zip(names, shards, strict=True):
        _write_shard(folder / file, {name: specs[name] for name in tensors}, make, tick)
    if len(shards) > 1:
        places = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return total


def _shards(specs: Mapping[str, Spec], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = limit
    for name, spec in specs.items():
        if shards[-1] and spec.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= spec.bytes
    return shards


def _write_shard(path: Path, specs: Mapping[str, Spec], make: Callable[[str], Any], tick: Ticker) -> None:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": FORMAT_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.bytes],
        }
        at += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, spec in specs.items():
            tensor = make(name)
            found = Spec(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
            if found != spec:
                raise ValueError(f"{name} is {found}, not {spec}")
            if tensor.numel():
                stream.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            tick()


def _alike(one: list[str], two: list[str]) -> tuple[int, int]:
    """(parts that two dotted names end with alike, parts they share anywhere)."""
    return len(commonprefix([one[::-1], two[::-1]])), len(set(one) & set(two))  # noqa: RUF071  (names, no paths)
