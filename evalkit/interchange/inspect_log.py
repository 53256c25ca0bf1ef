"""Inspect (UK AI Security Institute): its logs, `.json` and `.eval` (a zip of JSON), read and written (log version 2)."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.evalkit.interchange.foreign import Format, Record, asked_in, mapping, text_of
from tunegate.evalkit.outcomes import Answer

ZSTANDARD = 93  # method of a zip entry, APPNOTE 6.3.8 section 4.4.5; Python before 3.14 cannot read it
MAX_ENTRY = 1 << 30  # bytes of one unpacked sample
OURS = "tunegate/"  # opens the name of the model in a log that `inspect_write` made
STOPS = {"max_tokens": "length", "model_length": "length", "content_filter": "content_filter"}


def read(path: Path) -> list[Record]:
    """Every sample and epoch. Raises UserError where the file is damaged or of a newer version."""
    header, samples = _zipped(path) if zipfile.is_zipfile(path) else _plain(path)
    version = header.get("version")
    if not isinstance(version, int) or version > 2:
        raise UserError(f"an Inspect log of version {version!r}, this one reads up to 2", where=str(path))
    model = str(mapping(header.get("eval")).get("model") or "")
    ordered = sorted(samples, key=lambda s: int(s["epoch"]) if isinstance(s.get("epoch"), int) else 1)
    return [_record(sample, model) for sample in ordered]


def _plain(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document = read_json(path)
    samples = document.get("samples") if isinstance(document, dict) else None
    if not isinstance(samples, list) or not all(isinstance(s, dict) for s in samples):
        raise UserError("an Inspect log without samples", where=str(path), hint="log with --log-samples")
    return document, samples


def _zipped(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i for i in archive.infolist() if i.filename.startswith("samples/")]
            start = next((i for i in archive.infolist() if i.filename == "header.json"), None)
            if start is None:
                raise UserError("the Inspect log has no header.json: its run did not finish", where=str(path))
            documents = [json.loads(_entry(archive, path, info)) for info in (start, *names)]
    except (zipfile.BadZipFile, ValueError, struct.error, OSError) as error:
        raise UserError(f"the Inspect log is damaged: {error}", where=str(path)) from None
    return documents[0], documents[1:]


def _entry(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_ENTRY:
        raise UserError(f"{info.filename} is larger than {MAX_ENTRY} bytes", where=str(path))
    if info.compress_type != ZSTANDARD:
        return archive.read(info)
    import pyarrow as arrow

    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)  # APPNOTE section 4.3.7: lengths of name and extra field
        name, extra = struct.unpack("<HH", stream.read(4))
        stream.seek(info.header_offset + 30 + name + extra)
        packed = stream.read(info.compress_size)
    with arrow.CompressedInputStream(io.BytesIO(packed), "zstd") as unpacked:
        return bytes(unpacked.read(info.file_size))


def _record(sample: dict[str, Any], model: str) -> Record:
    output = mapping(sample.get("output"))
    metadata, ours = mapping(sample.get("metadata")), model.startswith(OURS)
    target = sample.get("target")
    ids = [i for i in (metadata.get("id"), sample.get("id")) if isinstance(i, str | int)]
    if ours:  # a tag may be called id
        ids.reverse()
    return Record(
        place=f"sample {sample.get('id')} epoch {sample.get('epoch', 1)}",
        ids=tuple(str(i) for i in ids),
        prompts=asked_in(sample.get("input")),
        answer=_answer(sample, output, metadata if ours else {}),
        expected=target if isinstance(target, str) else None,
        system=model,
    )


def _answer(sample: dict[str, Any], output: dict[str, Any], kept: dict[str, Any]) -> Answer:
    """kept: what of an answer has no place in a sample, where we wrote it (`inspect_write`)."""
    choice = mapping(next(iter(output.get("choices") or []), None))
    message = mapping(choice.get("message"))
    usage, stop = mapping(output.get("usage")), choice.get("stop_reason")
    error = mapping(sample.get("error")).get("message") or output.get("error")
    if not choice and not error:
        error = "Inspect recorded no output"
    seconds = output.get("time")
    return Answer(
        text=text_of(message.get("content")),
        finish_reason=STOPS.get(stop, stop) if isinstance(stop, str) else None,
        tool_calls=[
            {"function": {"name": call.get("function"), "arguments": call.get("arguments")}}
            for call in message.get("tool_calls") or []
        ],
        refusal=str(kept["refusal"]) if kept.get("refusal") else None,
        rejected=str(kept["rejected"]) if kept.get("rejected") else None,
        error=None if not error else str(error),
        latency_ms=float(seconds) * 1000.0 if isinstance(seconds, int | float) else None,
        prompt_tokens=usage.get("input_tokens"),
        completion_tokens=usage.get("output_tokens"),
        cost_usd=usage.get("total_cost"),
    )


FORMAT = Format(name="Inspect", read=read, lacks="time to first token")
