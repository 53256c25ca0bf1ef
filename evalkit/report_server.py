"""`ft report serve`: the reports of a folder on 127.0.0.1, each rendered from its data when it is asked for.

No address is ever made into a path: a request names a report by its digest, or gets 404. A page is rendered by this
version from report.json and results.jsonl, so that no HTML that lies in the folder is served.
"""

import errno
import json
import re
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.evalkit.render import html, html_trend
from tunegate.evalkit.report_trend import Collection, collect, read, trend

ADDRESS = "127.0.0.1"
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReportServer(ThreadingHTTPServer):
    """Serves the reports under `root`. The folder is read again for every page, so that a new report appears on reload.

    port: 0 takes a free one. Raises InfrastructureError when the port is taken.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            words = "the port is taken" if error.errno == errno.EADDRINUSE else str(error.strerror)
            hint = "choose another with --port, or --port 0 for a free one"
            raise InfrastructureError(words, where=f"{ADDRESS}:{port}", hint=hint) from None

    @property
    def url(self) -> str:
        """Where the list is."""
        return f"http://{ADDRESS}:{self.server_port}/"


def serve(root: Path, port: int) -> None:
    """Serve until interrupted. Raises UserError when `root` is no folder, InfrastructureError when the port is taken."""
    found = collect(root)
    with ReportServer(root, port) as server:
        say(f"{len(found.entries)} reports in {root}; Ctrl-C stops")
        print(f"serving: {server.url}", flush=True)
        server.serve_forever(poll_interval=0.2)


def page(found: Collection, key: str) -> str | None:
    """The page of the report `key`, with its baseline's answers where that report is in the folder too; None for no such
    report. Raises UserError when it was changed or removed since."""
    entry = next((entry for entry in found.entries if entry.key == key), None)
    if entry is None:
        return None
    digest = ((entry.report.get("comparison") or {}).get("baseline") or {}).get("digest")
    other = next((e for e in found.entries if digest and e.digest == digest), None)
    return _rendered(entry.folder, entry.digest, None if other is None else other.folder)


@lru_cache(maxsize=4)
def _rendered(folder: Path, digest: str, baseline: Path | None) -> str:
    """digest: of the report, so that a changed one is rendered anew."""
    reading = read(folder)
    other = None if baseline is None else list(read(baseline).rows)
    return html.render(reading.report, list(reading.rows), other, served=True)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version, protocol_version = "tunegate", "", "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """The list, the trend as JSON, or one report."""
        if self.headers.get("Host") not in (
            f"{ADDRESS}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "this server answers as 127.0.0.1 only\n")  # DNS rebinding
            return
        try:
            self._answer(urlsplit(self.path).path)
        except UserError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error.line()}\n")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str) -> None:
        root = self.server.root
        if path == "/":
            self._send(HTTPStatus.OK, "text/html", html_trend.render(trend(collect(root))), html_trend.policy())
        elif path == "/trend.json":
            self._send(HTTPStatus.OK, "application/json", json.dumps(trend(collect(root)), ensure_ascii=False))
        elif path.startswith("/report/") and (text := page(collect(root), path.removeprefix("/report/"))) is not None:
            policy = _POLICY.search(text)
            assert policy is not None
            self._send(HTTPStatus.OK, "text/html", text, policy.group(1) + "; frame-ancestors 'none'")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "no such page; the list is at /\n")

    def _send(self, status: HTTPStatus, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), **_HEADERS}
        for name, value in {**headers, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: requests are no news."""
