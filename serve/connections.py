"""Closes connections whose client never finishes a request's headers: the server (uvicorn) waits for them for ever."""

from typing import Any


def close_silent(app: Any, silent: dict[Any, float], limit_s: float, passed_s: float = 1.0) -> dict[Any, float]:
    """Close what has sent no whole request head for `limit_s`; the seconds of the others, to be passed in next time.

    app: the application vLLM serves; its `state.server` is the uvicorn server. Nothing is done where that is unknown.
    """
    server = getattr(getattr(app, "state", None), "server", None)
    open_now = getattr(getattr(server, "server_state", None), "connections", ())
    found: dict[Any, float] = {}
    for connection in list(open_now):
        if not hasattr(connection, "cycle"):  # a websocket: it has had its head
            continue
        cycle = connection.cycle
        if cycle is not None and not cycle.response_complete:
            continue
        if getattr(connection, "timeout_keep_alive_task", None) is not None:  # between requests: uvicorn's own timer
            continue
        found[connection] = silent.get(connection, 0.0) + passed_s
        if found[connection] >= limit_s:
            connection.transport.abort()
    return found
