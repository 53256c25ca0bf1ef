"""One small blocking HTTP call, for asking the servers that we started ourselves."""

import http.client
import json
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.errors import first_line


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: HTTP status, headers by lower-case name, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed. Raises ValueError."""
        return json.loads(self.body)


def call(
    url: str, *, body: Any = None, key: str | None = None, timeout_s: float = 5.0, certificate: Path | None = None
) -> Reply:
    """GET `url`, or POST `body` as JSON; any status is a reply, a redirect too. certificate: the one a TLS server of ours must show.

    Raises OSError when there is no answer.
    """
    # http.client writes headers in Latin-1: the key's own bytes (UTF-8) come out of that.
    headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")} if key else {}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data, headers)  # noqa: S310
    try:
        with _opener(certificate).open(request, timeout=timeout_s) as response:
            return Reply(status=response.status, headers=_lower(response.headers), body=response.read())
    except (ValueError, EOFError, http.client.HTTPException) as error:  # of an answer cut off, or that is no HTTP
        raise OSError(first_line(error)) from None


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Every status is a reply. A redirect is not followed: it would take the key along to wherever it leads."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        """The response as it is."""
        return response

    https_response = http_response


def _opener(certificate: Path | None) -> urllib.request.OpenerDirector:
    """Without a proxy, whatever the environment says: it would get the key, and our servers are on this machine."""
    direct, https = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_trusting(certificate))
    return urllib.request.build_opener(direct, _AnyStatus, https)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _trusting(certificate: Path | None) -> ssl.SSLContext | None:
    """Trust exactly this certificate, whatever name it is for: the server is ours, the address is loopback."""
    if certificate is None:
        return None
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
