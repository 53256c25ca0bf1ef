"""The address of an endpoint: what is one, that it holds no secret, and what its certificate lacks."""

import re
import ssl
from urllib.parse import urlsplit

from tunegate.core.errors import UserError, first_line

EXAMPLE = "http://host:port/v1"
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# OpenSSL's X509_V_ERR_ codes of a certificate whose issuer is not known here: trusting it mends that.
_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})


def is_url(spec: str) -> bool:
    """Whether this names an endpoint by its address. Schemes are read in any case (RFC 3986, section 3.1)."""
    return _SCHEME.match(spec) is not None


def normal_url(url: str) -> str:
    """The address with its scheme in lower case and no slash at its end, so that one endpoint has one name."""
    return _SCHEME.sub(lambda found: found[0].lower(), url, count=1).rstrip("/")


def checked_url(url: str) -> str:
    """The normal form, to which paths are added, and which stands in reports and errors. Raises UserError for an address
    with a password or query, and for one that no connection can be made to; no part of a password is shown."""
    url = normal_url(url)
    shown = re.sub(r"//.*@", "//...@", url, flags=re.DOTALL).partition("?")[0]
    try:
        parts = urlsplit(url)
        possible = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError as error:  # a bracket, a port or a label that is none
        if "@" in url:  # what looked like a port is a password with a slash in it, or the like
            raise _holds_password(shown) from None
        raise UserError(f"no such URL can be: {first_line(error)}", where=shown, hint=EXAMPLE) from None
    if "@" in parts.netloc or ("@" in url and parts.netloc.endswith(":")):
        raise _holds_password(shown)
    if not is_url(url) or not possible or parts.query or parts.fragment:
        raise UserError("not the URL of an endpoint", where=shown, hint=EXAMPLE)
    return url


def _holds_password(shown: str) -> UserError:
    return UserError(
        "the URL holds a user or password, which would stand in every report",
        where=shown,
        hint="leave it out; a key comes from TUNEGATE_API_KEY or --api-key-file",
    )


def certificate_problem(error: BaseException | None) -> tuple[str, str | None] | None:
    """(message, hint) where a server's certificate was refused; None for any other error.

    Both HTTP clients verify by OpenSSL's default context, which reads SSL_CERT_FILE instead of the system's certificates.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    unknown = error.verify_code in _UNKNOWN_ISSUER
    return (
        f"its certificate is not trusted: {error.verify_message}",
        "if you trust it: SSL_CERT_FILE=FILE, a PEM file with it or its issuer" if unknown else None,
    )
