"""Counts of HTTP requests, by verdict, class of the answer's code, and documents that decided. Pure."""

from nfq_enforcer.core.events import FlowEvent, HttpMessage
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.observe.status import HttpRequestCount

MAX_COUNTS = 500
OTHER = "(other)"  # the documents of requests that have no count of their own


class HttpCounts:
    """HTTP counts: a bounded number of them. Later documents are counted together."""

    def __init__(self, at_most: int = MAX_COUNTS) -> None:
        """Begin without requests."""
        self._at_most = at_most
        self._requests: dict[tuple[str, str, str], int] = {}

    def add(self, event: FlowEvent) -> None:
        """Count the request of an event: a response, or a dropped request; other events count nothing."""
        message = event.l7
        if not isinstance(message, HttpMessage):
            return
        if not message.is_response and event.verdict is not FlowVerdict.DROPPED:
            return
        documents = dict.fromkeys(rule.document for rule in event.allowed_by or event.enforced_by)
        key = (",".join(documents), _code_class(message.code), str(event.verdict))
        if key not in self._requests and len(self._requests) >= self._at_most:
            key = (OTHER, *key[1:])
        self._count(key)

    def add_other(self, code: int, *, refused: bool) -> None:
        """Count a request without its documents."""
        self._count((OTHER, _code_class(code), str(FlowVerdict.DROPPED if refused else FlowVerdict.FORWARDED)))

    def _count(self, key: tuple[str, str, str]) -> None:
        self._requests[key] = self._requests.get(key, 0) + 1

    def read(self) -> list[HttpRequestCount]:
        """Return the counts."""
        return [HttpRequestCount(*key, requests) for key, requests in self._requests.items()]


def _code_class(code: int) -> str:
    return f"{code // 100}xx" if 100 <= code < 600 else "none"
