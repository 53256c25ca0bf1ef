"""The bytes of a file, whatever it is compressed with."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tunegate.core.errors import UserError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Zstandard's skippable frame, which may stand first: one of sixteen bytes, then these.
_SKIPPABLE = b"\x2a\x4d\x18"
_OTHER_UNICODE = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@contextmanager
def decompressed(path: Path) -> Iterator[IO[bytes]]:
    """`opened`; raises UserError also when the stream turns out to be damaged while it is read."""
    with opened(path) as stream:
        try:
            yield stream
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"the compressed file is damaged or cut: {error}", where=str(path)) from None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by what it starts with (gzip, Zstandard), not by its name.

    Raises UserError for UTF-16 and UTF-32, and for a name that promises a compression the file does not have.
    """
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start.startswith(_OTHER_UNICODE):
            raise UserError("UTF-16 or UTF-32 text", where=str(path), hint="save the file as UTF-8")
        if start.startswith(_GZIP):
            with gzip.open(raw, "rb") as stream:
                yield io.BufferedReader(stream)
        elif start.startswith(_ZSTD) or (start[1:] == _SKIPPABLE and 0x50 <= start[0] <= 0x5F):
            import pyarrow

            with pyarrow.input_stream(raw, compression="zstd") as compressed:
                yield io.BufferedReader(compressed)
        elif start and path.suffix.lower() in (".gz", ".zst"):
            raise UserError(f"is no {path.suffix} file: it starts with {start!r}", where=str(path))
        else:
            yield raw
