"""Access to the service map: the address to listen on, the token, and the checks of each request. Pure.

The page shows names, addresses and policies, so only its user may read it. On a loopback address every user of the host
can connect, as to any local service; every other address needs a token. Two attacks come from other pages in the user's
browser, and are refused by header fields that a page cannot set:

- DNS rebinding: a name of the attacker resolves to this server, so that the browser takes its answers as the attacker's
  own. The Host field then has that name. Only the names of the address that the server listens on are accepted.
- Requests across origins: Origin and Sec-Fetch-Site (W3C Fetch Metadata) name the page that makes the request.
"""

import hmac
import secrets
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from nfq_enforcer.errors import BadInput
from nfq_enforcer.text import shorten

DEFAULT_LISTEN = "127.0.0.1:9963"
MIN_TOKEN = 20  # characters of a token; a generated one has 43
_MAX_TOKEN = 1_000
_MAX_PORT = 65_535
_LISTEN = "allowed: ADDRESS:PORT with an IP address, as in 127.0.0.1:9963 or [::1]:9963"

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Listen(NamedTuple):
    """Listen: the address and port of the server; port 0 is any free one."""

    address: IPv4Address | IPv6Address
    port: int

    @property
    def needs_token(self) -> bool:
        """Tell whether hosts other than this one can connect."""
        return not self.address.is_loopback

    def url(self, token: str | None = None) -> str:
        """Return the address of the page; the token is in the fragment, which a browser never sends."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"http://{host}:{self.port}/" + (f"#token={token}" if token else "")


def parse_listen(text: str) -> Listen:
    """Return the address of ``--listen``; raise BadInput."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise BadInput(f"--listen: '{shorten(text)}' is no address to listen on; {_LISTEN}") from None
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise BadInput(f"--listen: '{shorten(text)}' has no port from 0 to {_MAX_PORT}; {_LISTEN}")
    return Listen(address, int(port))


def new_token() -> str:
    """Return a token of 256 random bits."""
    return secrets.token_urlsafe(32)


def read_token(text: str, place: str) -> str:
    """Return the token that a file has; raise BadInput for one that can be guessed or that no header field can have."""
    token = text.strip()
    if not MIN_TOKEN <= len(token) <= _MAX_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise BadInput(
            f"{place}: a token is one word of {MIN_TOKEN} to {_MAX_TOKEN} ASCII characters, "
            "as 'openssl rand -hex 32' prints one"
        )
    return token


def host_is_allowed(host: str, listen: Listen) -> bool:
    """Return whether the Host field (RFC 9110 section 7.2) has a name of the address that the server listens on.

    The port may differ: a tunnel has its own. No name in DNS is allowed, so none can be pointed at the server.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if name.lower() == "localhost":
        return listen.address.is_loopback or listen.address.is_unspecified
    try:
        address = ip_address(name)
    except ValueError:
        return False
    if listen.address.is_unspecified:
        return True
    return address.is_loopback if listen.address.is_loopback else address == listen.address


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from the page itself, or from the user (an address typed in, a program)."""
    origin, host = headers.get("Origin"), headers.get("Host", "")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return False
    return headers.get("Sec-Fetch-Site", "none") in {"none", "same-origin"}


class Token:
    """Token: the secret that a request has to prove, in the Authorization field once, then in a cookie.

    The cookie is derived from the token (HMAC-SHA256), so that neither the cookie jar nor its backup has the token.
    """

    def __init__(self, token: str) -> None:
        """Take the token."""
        self._token = token.encode()
        self.cookie = hmac.new(self._token, b"nfq-enforcer ui", sha256).hexdigest()

    def is_bearer(self, authorization: str) -> bool:
        """Return whether an Authorization field has the token (RFC 6750), in a time that does not depend on it."""
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

    def is_cookie(self, value: str) -> bool:
        """Return whether a cookie was made from the token, in a time that does not depend on it."""
        return hmac.compare_digest(value.encode(), self.cookie.encode())
