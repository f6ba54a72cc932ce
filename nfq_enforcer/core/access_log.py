"""Access log of the proxy: its record of one request or of one ClientHello, as a flow event.

A request makes one event. If it was forwarded, the event is its response, which has the request's fields too, as in
Hubble. If the proxy refused it, the event is the request. The texts are the client's: each character that is not
printable ASCII is percent-encoded, and long texts are cut.
"""

from typing import NamedTuple
from urllib.parse import quote

from nfq_enforcer.core.events import FlowEvent, HttpMessage, L7Message, TlsMessage
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict

MAX_URL = 2048  # characters
MAX_TEXT = 256  # characters of a method, protocol, or header's name or value
MAX_HEADERS = 16
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))  # quote() keeps them


class AccessRecord(NamedTuple):
    """Access record: one request that the proxy has forwarded or refused."""

    time: float  # of the answer's end, on the clock of flow events
    opening: Opening  # of the client's connection
    direction: Direction  # the side whose rules decide; ingress, if both sides' rules allow the request
    method: str
    path: str  # with the query
    host: str  # as the client sent it; empty: none
    protocol: str = "HTTP/1.1"
    reason: DropReason | None = None  # HTTP_REFUSED or HTTP_MALFORMED; None: forwarded
    code: int = 0  # that the client was answered; 0: its connection ended before
    duration: float = 0.0  # s, to the end of the response
    rules: tuple[RuleRef, ...] = ()  # those that allow the request; refused: those that list other requests
    headers: tuple[tuple[str, str], ...] = ()  # of the request, those that rules name
    grpc_status: int | None = None


def access_event(record: AccessRecord) -> FlowEvent:
    """Return the flow event of a request: its response, or the refused request."""
    refused = record.reason is not None
    message = HttpMessage(
        not refused,
        _shown(record.method),
        _url(record.host, record.path),
        _shown(record.protocol),
        record.code,
        max(0, round(record.duration * 1e9)),
        tuple((_shown(name), _shown(value)) for name, value in record.headers[:MAX_HEADERS]),
        record.grpc_status,
    )
    return _event(record, message, is_reply=not refused)


class HelloRecord(NamedTuple):
    """Hello record: a connection at its ClientHello, after the proxy has compared the server name."""

    time: float  # at which the connection began, on the clock of flow events
    opening: Opening  # of the client's connection
    direction: Direction  # as in ``AccessRecord``
    server_name: str  # as the client sent it, in lower case; empty: none
    reason: DropReason | None = None  # TLS_REFUSED or TLS_MALFORMED; None: forwarded
    rules: tuple[RuleRef, ...] = ()  # as in ``AccessRecord``


def hello_event(record: HelloRecord) -> FlowEvent:
    """Return the flow event of a ClientHello."""
    return _event(record, TlsMessage(_shown(record.server_name)), is_reply=False)


def _event(record: AccessRecord | HelloRecord, message: L7Message, *, is_reply: bool) -> FlowEvent:
    refused = record.reason is not None
    return FlowEvent(
        record.time,
        FlowVerdict.DROPPED if refused else FlowVerdict.FORWARDED,
        record.reason,
        record.direction,
        record.opening,
        0,
        is_reply=is_reply,
        allowed_by=() if refused else record.rules,
        enforced_by=record.rules if refused else (),
        l7=message,
    )


def _url(host: str, path: str) -> str:
    """Return the URL; a target that is no path (``*`` of OPTIONS) follows a slash, as in Hubble."""
    slash = "/" if path and not path.startswith("/") else ""
    return _shown(f"http://{host}{slash}{path}", MAX_URL)


def _shown(text: str, at_most: int = MAX_TEXT) -> str:
    shown = text[:at_most]
    if shown.isascii() and shown.isprintable():
        return shown
    return quote(shown, safe=_PRINTABLE, errors="surrogatepass")[:at_most]
