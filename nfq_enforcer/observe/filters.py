"""Filters on flows, by the options of ``hubble observe``: tests of one end, of either end, or of the flow.

Of one filter, several values are alternatives; a flow has to match all filters. The filters of either end have to match
on one and the same end. A flow that matches all filters after ``--not`` is left out. Options and meaning:
cilium/cilium, hubble/cmd/observe/flows_filter.go and pkg/hubble/filters.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from ipaddress import ip_network
from typing import Any, NamedTuple

from nfq_enforcer.core.events import DnsMessage, FlowEvent, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import split_target
from nfq_enforcer.core.verdict import DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import TCP_FLAGS, Logged, Side
from nfq_enforcer.policy.requirements import parse_requirements
from nfq_enforcer.text import shorten

SideTest = Callable[[Side], bool]
FlowTest = Callable[[Logged], bool]

_DEFAULT_NAMESPACE = "default"
_PROTOCOLS: dict[str, FlowTest] = {
    "tcp": lambda logged: logged.event.opening.proto == TCP,
    "udp": lambda logged: logged.event.opening.proto == UDP,
    "sctp": lambda logged: logged.event.opening.proto == SCTP,
    "icmp": lambda logged: logged.event.opening.proto in {ICMP, ICMPV6},
    "icmpv4": lambda logged: logged.event.opening.proto == ICMP,
    "icmpv6": lambda logged: logged.event.opening.proto == ICMPV6,
    "dns": lambda logged: isinstance(logged.event.l7, DnsMessage),
    "http": lambda logged: isinstance(logged.event.l7, HttpMessage),
    "tls": lambda logged: isinstance(logged.event.l7, TlsMessage),
}
_VERSIONS = {"v4": 4, "4": 4, "ipv4": 4, "v6": 16, "6": 16, "ipv6": 16, "none": 0}  # bytes of an address
_TYPES: dict[str, FlowTest] = {
    "drop": lambda logged: logged.event.verdict is FlowVerdict.DROPPED,
    "policy-verdict": lambda logged: _is_opening(logged.event),
    "l7": lambda logged: logged.event.l7 is not None,
    "flow-end": lambda logged: logged.event.end is not None,
}


class FilterOption(NamedTuple):
    """Filter option: its name on the command line without dashes, and the test that a value stands for."""

    name: str
    metavar: str
    help: str
    test: Callable[[str], Any]  # returns a SideTest or a FlowTest; raises ValueError with the reason
    ends: str = ""  # ``source``, ``destination`` or ``either`` for a SideTest
    short: str = ""  # one letter
    constant: str = ""  # the value of an option without one


def _is_opening(event: FlowEvent) -> bool:
    return event.l7 is None and event.end is None and event.verdict is not FlowVerdict.DROPPED


def _has_protocol(text: str) -> FlowTest:
    return _one_of(_PROTOCOLS, text)


def _has_type(text: str) -> FlowTest:
    return _one_of(_TYPES, text)


def _one_of(allowed: Mapping[str, FlowTest], text: str) -> FlowTest:
    if text.lower() not in allowed:
        raise ValueError(f"allowed: {', '.join(allowed)}")
    return allowed[text.lower()]


def _in_network(text: str) -> SideTest:
    network = ip_network(text, strict=False)
    first, last = network.network_address.packed, network.broadcast_address.packed
    return lambda side: len(side.address) == len(first) and first <= side.address <= last


def _has_port(text: str) -> SideTest:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) < 1 << 16:
        raise ValueError("allowed: 0 to 65535")
    port = int(text)
    return lambda side: side.port == port


def _is_pod(text: str) -> SideTest:
    namespace, slash, prefix = text.partition("/")
    if not slash:
        namespace, prefix = _DEFAULT_NAMESPACE, text
    return lambda side: (
        bool(side.names.name) and side.names.namespace == namespace and side.names.name.startswith(prefix)
    )


def _in_namespace(text: str) -> SideTest:
    return lambda side: bool(side.names.name) and side.names.namespace == text


def _has_labels(text: str) -> SideTest:
    requirements = parse_requirements(text)
    return lambda side: all(one.matches(side.names.labels or Labels()) for one in requirements)


def _has_identity(text: str) -> SideTest:
    names = {next(iter(labels)).key: number for number, labels in RESERVED.items()}
    name = text.removeprefix("reserved:")
    if name not in names and not (text.isascii() and text.isdigit()):
        raise ValueError(f"allowed: a number, {', '.join(names)}")
    identity = names[name] if name in names else Identity(int(text))
    return lambda side: side.identity == identity


def _has_verdict(text: str) -> FlowTest:
    if text.upper() not in map(str, FlowVerdict):
        raise ValueError(f"allowed: {', '.join(FlowVerdict)}")
    return lambda logged: logged.event.verdict == text.upper()


def _has_reason(text: str) -> FlowTest:
    if text.upper() not in DropReason.__members__:
        raise ValueError(f"allowed: {', '.join(DropReason.__members__)}")
    reason = DropReason[text.upper()]
    return lambda logged: logged.event.reason is reason


def _has_direction(text: str) -> FlowTest:
    if text.lower() not in {"ingress", "egress"}:
        raise ValueError("allowed: ingress, egress")
    return lambda logged: logged.event.direction == text.lower()


def _has_flags(text: str) -> FlowTest:
    names = text.upper().split(",")
    if not set(names) <= set(TCP_FLAGS):
        raise ValueError(f"allowed: {', '.join(TCP_FLAGS)}, several joined by commas")
    mask = sum(1 << TCP_FLAGS.index(name) for name in set(names))
    return lambda logged: logged.event.opening.proto == TCP and logged.event.tcp_flags & mask == mask


def _is_version(text: str) -> FlowTest:
    if text.lower() not in _VERSIONS:
        raise ValueError("allowed: v4, v6, none")
    size = _VERSIONS[text.lower()]
    return lambda logged: len(logged.event.opening.src) == size


def _on_node(text: str) -> FlowTest:
    pattern = re.compile(translate(text.replace("[", "[[]").replace("?", "[?]")))  # an asterisk is the only wildcard
    return lambda logged: pattern.match(logged.node) is not None


def _has_uuid(text: str) -> FlowTest:
    return lambda logged: logged.uuid == text


def _http(test: Callable[[HttpMessage], bool]) -> FlowTest:
    return lambda logged: isinstance(logged.event.l7, HttpMessage) and test(logged.event.l7)


def _has_status(text: str) -> FlowTest:
    prefix, plus, rest = text.partition("+")
    if not prefix.isdigit() or rest or len(prefix) > 3 or (not plus and len(prefix) < 3):
        raise ValueError("allowed: a code such as 404, or its beginning such as 5+ or 40+")
    return _http(lambda message: message.is_response and str(message.code).startswith(prefix))


def _has_method(text: str) -> FlowTest:
    return _http(lambda message: message.method.upper() == text.upper())


def _has_path(text: str) -> FlowTest:
    search = _regex(text)
    return _http(lambda message: search(path_of(message.url)))


def _has_url(text: str) -> FlowTest:
    search = _regex(text)
    return _http(lambda message: search(message.url))


def _has_header(text: str) -> FlowTest:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError("allowed: NAME:VALUE")
    pair = name.strip().lower(), value.strip()
    return _http(lambda message: any((key.lower(), text) == pair for key, text in message.headers))


def _has_query(text: str) -> FlowTest:
    search = _regex(text)
    return lambda logged: isinstance(logged.event.l7, DnsMessage) and search(f"{logged.event.l7.name}.")


def path_of(url: str) -> str:
    """Return the path of a URL, without the query."""
    return split_target(url)[1].partition("?")[0]


def _regex(text: str) -> Callable[[str], bool]:
    """Return a search by a regular expression of RE2 (https://github.com/google/re2/wiki/Syntax), as Hubble's."""
    import re2  # it takes 20 ms, and few commands need it

    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0]
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None
    return lambda searched: pattern.search(searched) is not None


def _of_ends(
    name: str, metavar: str, of: str, test: Callable[[str], SideTest], short: str = ""
) -> Iterable[FilterOption]:
    yield FilterOption(name, metavar, f"Flows with {of} at either end.", test, "either", short)
    yield FilterOption(f"from-{name}", metavar, f"Flows from {of}.", test, "source")
    yield FilterOption(f"to-{name}", metavar, f"Flows to {of}.", test, "destination")


OPTIONS = (
    *_of_ends("label", "SELECTOR", "labels such as role=frontend or 'tier in (a, b)'", _has_labels, "l"),
    *_of_ends("pod", "[NAMESPACE/]NAME", "an endpoint whose name begins like this", _is_pod),
    *_of_ends("namespace", "NAME", "an endpoint of this namespace", _in_namespace, "n"),
    *_of_ends("identity", "NUMBER|NAME", "this identity", _has_identity),
    *_of_ends("ip", "ADDRESS|CIDR", "an address in this range", _in_network),
    *_of_ends("port", "PORT", "this port", _has_port),
    FilterOption("protocol", "NAME", f"Flows of a protocol: {', '.join(_PROTOCOLS)}.", _has_protocol),
    FilterOption(
        "verdict", "NAME", "Flows with a verdict: FORWARDED, DROPPED, AUDIT; TRACED: ends of flows.", _has_verdict
    ),
    FilterOption("drop-reason", "NAME", "Drops for a reason, such as POLICY_DENIED.", _has_reason),
    FilterOption("drop-reason-desc", "NAME", "The same as --drop-reason.", _has_reason),
    FilterOption("traffic-direction", "NAME", "Flows decided at this side: ingress or egress.", _has_direction),
    FilterOption("type", "NAME", f"Events of a type: {', '.join(_TYPES)}.", _has_type, short="t"),
    FilterOption("node-name", "PATTERN", "Flows decided by a node, such as n1 or n*.", _on_node),
    FilterOption("tcp-flags", "FLAGS", "Packets with all these flags, such as SYN,ACK.", _has_flags),
    FilterOption("ip-version", "VERSION", "Packets of an IP version: v4, v6; none: unreadable ones.", _is_version),
    FilterOption("ipv4", "", "The same as --ip-version v4.", _is_version, short="4", constant="v4"),
    FilterOption("ipv6", "", "The same as --ip-version v6.", _is_version, short="6", constant="v6"),
    FilterOption("http-method", "METHOD", "HTTP requests with this method.", _has_method),
    FilterOption("http-path", "REGEX", "HTTP requests whose path contains a match.", _has_path),
    FilterOption("http-url", "REGEX", "HTTP requests whose URL contains a match.", _has_url),
    FilterOption("http-header", "NAME:VALUE", "HTTP requests with this header, if a rule names it.", _has_header),
    FilterOption("http-status", "CODE", "HTTP responses with a code such as 404 or 5+.", _has_status),
    FilterOption("dns-query", "REGEX", "DNS messages whose name (with its last dot) contains a match.", _has_query),
    FilterOption("uuid", "UUID", "The event with this uuid.", _has_uuid),
)
BY_NAME = {option.name: option for option in OPTIONS}

Given = Mapping[str, Sequence[str]]
"""Values by the name of their filter option."""


class FlowFilter:
    """Flow filter: the filters of one kind, allowing or denying, of a query."""

    def __init__(self, given: Given) -> None:
        """Compile the values; raise BadInput for an unknown option, or a value that is not allowed."""
        self._tests: dict[str, list[list[Any]]] = {"": [], "source": [], "destination": [], "either": []}
        for name, values in given.items():
            if name not in BY_NAME:
                raise BadInput(f"unknown filter '{shorten(name)}'; allowed: {', '.join(BY_NAME)}")
            self._tests[BY_NAME[name].ends].append([_compiled(BY_NAME[name], value) for value in values])
        self._by_ends = any(self._tests[ends] for ends in ("source", "destination", "either"))

    def matches(self, logged: Logged) -> bool:
        """Return whether a flow matches every filter."""
        if not _all(self._tests[""], logged):
            return False
        if not self._by_ends:
            return True
        source, destination = logged.sides
        if not (_all(self._tests["source"], source) and _all(self._tests["destination"], destination)):
            return False
        return _all(self._tests["either"], source) or _all(self._tests["either"], destination)


def _compiled(option: FilterOption, value: str) -> Any:
    try:
        return option.test(value)
    except ValueError as error:
        raise BadInput(f"--{option.name} '{shorten(value)}': {error}") from None


def _all(filters: Iterable[Iterable[Callable[[Any], bool]]], subject: Logged | Side) -> bool:
    return all(any(test(subject) for test in tests) for tests in filters)
