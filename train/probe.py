"""Prompts of the run with their token ids: the server must make the same of them."""

from collections.abc import Sequence
from typing import Any

from tunegate.core.chat_template import render_ids
from tunegate.core.rows import Row

PROBE_ROWS = 4


def probes(tokenizer: Any, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Messages, tools and token ids of the first rows' prompts, for `probe.json`."""
    return [
        {
            "messages": list(row.prompt),
            "tools": row.tools,
            "ids": render_ids(tokenizer, row.prompt, tools=row.tools, generate=True),
        }
        for row in rows[:PROBE_ROWS]
    ]
