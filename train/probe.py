"""Prompts of the run with their token ids: the server must make the same of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunegate.core.chat_template import render_ids
from tunegate.core.files import write_json
from tunegate.core.rows import Row
from tunegate.serve.template_check import FILE

PROBE_ROWS = 4


def write(folder: Path, tokenizer: Any, rows: Sequence[Row]) -> None:
    """Write messages, tools and token ids of the first rows' prompts."""
    prompts = [
        {
            "messages": list(row.prompt),
            "tools": row.tools,
            "ids": render_ids(tokenizer, row.prompt, tools=row.tools, generate=True),
        }
        for row in rows[:PROBE_ROWS]
    ]
    write_json(folder / FILE, {"prompts": prompts})
