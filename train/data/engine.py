"""Where the heavy steps run: here, or as Ray Data pipelines over the workers of a cluster (`--engine ray`).

A step is a function over pieces (a stretch of a file, a block of rows, some hundred texts) whose results come back in order, so
an engine is nothing but a `map`: the functions, the pieces and their order are the same on both, and so are the results.
What needs the rows one after another (hold-out, duplicates, reports) stays on the driver, which holds them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunegate.core.errors import InfrastructureError, UsageError, UserError, first_line, one_of
from tunegate.core.rows import Row
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, file_kind, form_of, read, read_file, sources, stretch
from tunegate.train.data.stream import opened

ENGINES = ("local", "ray")
INSTALL = "pip install 'tunegate[ray]'"
# Bytes of a file that one task parses.
STRETCH = 1 << 23

A = TypeVar("A")
B = TypeVar("B")
Mapped = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def engine(name: str, address: str | None) -> Mapped:
    """The `map` of an engine. address: of a running Ray cluster; None: a local one, ended with the process.

    Raises UsageError for an unknown engine or an address without Ray, UserError where Ray is not installed,
    InfrastructureError where the cluster does not answer.
    """
    one_of("--engine", name, ENGINES)
    if name == "local":
        if address is not None:
            raise UsageError("only with --engine ray", where="--address")
        return map
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed", where="--engine ray", hint=INSTALL) from None
    try:
        if not ray.is_initialized():
            here = {"num_cpus": None, "include_dashboard": False} if address is None else {"address": address}
            ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **here)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise InfrastructureError(f"Ray does not start: {first_line(error)}", where=f"--address {address}") from None
    return _spread


def rows_of(names: Iterable[str], reading: Reading, mapped: Mapped) -> Iterator[Row | Fault]:
    """`read` with the parsing of plain JSON Lines files spread over the engine; the same rows and faults, in order.

    The workers open the files themselves, by the same path. Compressed files and other formats are read by the driver.
    """
    if mapped is map:
        yield from read(names, reading)
        return
    for name in names:
        for file in [] if name.startswith("builtin:") else sources([name]):
            form = form_of(file, reading) if _is_plain(file) else None
            if form is None:
                yield from read_file(file, reading)
                continue
            fixed = Reading(
                format=form if reading.columns is None else None, columns=reading.columns, tag_keys=reading.tag_keys
            )
            cuts = _cuts(file)
            first, pieces = 1, []
            for (start, end), lines in zip(cuts, mapped(_count, [(file, *cut) for cut in cuts]), strict=True):
                pieces.append(_Piece(file=file, start=start, end=end, first=first, reading=fixed))
                first += lines
            for found in mapped(_parsed, pieces):
                yield from found
        if name.startswith("builtin:"):
            yield from read([name], reading)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Whole lines of a file: bytes from start to end, of which the first is line `first`."""

    file: Path
    start: int
    end: int
    first: int
    reading: Reading


def _is_plain(file: Path) -> bool:
    if file_kind(file) != "jsonl":
        return False
    with opened(file) as stream, file.open("rb") as raw:
        return stream.read(16) == raw.read(16)


def _cuts(file: Path) -> list[tuple[int, int]]:
    """Stretches of some 8 MB that end where a line does."""
    size, edges = file.stat().st_size, [0]
    with file.open("rb") as stream:
        while (at := edges[-1] + STRETCH) < size:
            stream.seek(at)
            stream.readline()
            edges.append(stream.tell())
    return list(zip(edges, [*edges[1:], size], strict=True))


def _bytes(file: Path, start: int, end: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(end - start)


def _count(piece: tuple[Path, int, int]) -> int:
    return _bytes(*piece).count(b"\n")


def _parsed(piece: _Piece) -> list[Row | Fault]:
    return list(stretch(piece.file, _bytes(piece.file, piece.start, piece.end), piece.first, piece.reading))


@dataclass(frozen=True)
class _Box:
    content: Any


def _spread(function: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
    """`map` as a Ray Data pipeline. Pieces and results travel in boxes that Arrow cannot look into, so it infers nothing."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that it cannot look into a box
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True

    def call(row: dict[str, Any]) -> dict[str, Any]:
        return {"at": row["at"], "piece": _Box(function(row["piece"].content))}

    packed = [{"at": at, "piece": _Box(piece)} for at, piece in enumerate(pieces)]
    if not packed:
        return
    dataset = ray.data.from_items(packed, override_num_blocks=len(packed)).map(call)
    for expected, row in enumerate(dataset.iter_rows()):
        assert row["at"] == expected, "pieces came back in another order"
        yield row["piece"].content
