"""Running a quantizer in its own environment: files in, files out, its layers shown, its end told."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tunegate.core.chat_template import mask_answers
from tunegate.core.console import progress
from tunegate.core.errors import InfrastructureError, TunegateError
from tunegate.core.rows import Row
from tunegate.train.release import environments, worker

SCRIPTS = {"llmcompressor": "llmcompressor_awq.py", "autoawq": "autoawq_awq.py"}


def write_calibration(rows: list[Row], tokenizer: Any, stops: list[int], path: Path) -> tuple[int, int]:
    """Write each row's token ids and loss mask (1 on the answers), a line each, of some templates one for each of its answers:
    (lines, tokens)."""
    lines, tokens = 0, 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            for masked in mask_answers(tokenizer, row.messages, stops, tools=row.tools):
                line = {"input_ids": masked.input_ids, "loss_mask": [int(label != -100) for label in masked.labels]}
                stream.write(json.dumps(line) + "\n")
                lines, tokens = lines + 1, tokens + len(masked.input_ids)
    return lines, tokens


def run(backend: str, job: Path, layers: int) -> None:
    """Run the worker, showing its layers. Raises TunegateError with its last line when it fails, InfrastructureError when it
    was killed or the disk is full."""
    python = environments.ensure(backend)
    done = 0
    with progress("quantizing, layers", layers) as tick:

        def heard(line: str) -> None:
            nonlocal done
            if line.startswith("layer "):
                now = int(line.split()[1])
                tick(now - done)
                done = now

        code, lines = worker.run(python, SCRIPTS[backend], job, heard)
    if code:
        raise _failure(code, lines)


def _failure(code: int, lines: list[str]) -> TunegateError:
    if code == -9:
        return InfrastructureError(
            "the quantizer was killed, probably for memory", hint="fewer --rows, or a machine with more memory"
        )
    if any("No space left on device" in line for line in lines):
        return InfrastructureError(
            "no space left on the device while quantizing", hint="free disk space; nothing was kept"
        )
    with tempfile.NamedTemporaryFile("w", prefix="tunegate-quantize-", suffix=".log", delete=False) as log:
        log.write("\n".join(lines))
    return TunegateError(
        f"the quantizer failed: {next((x for x in reversed(lines) if x.strip()), 'no message')}",
        hint=f"its last lines are in {log.name}",
    )
