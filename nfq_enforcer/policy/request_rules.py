"""Entries of ``toPorts`` for ports with the requests of layer 7 that were seen at them: HTTP, DNS and server names."""

from collections.abc import Iterable, Iterator, Mapping

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.policy.cilium import MAX_PORTS
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.recorded import RecordedFlow
from nfq_enforcer.policy.writing import Data, http_rule, ports


def wanted(
    request: L7Request, flow: RecordedFlow, direction: Direction, closed: Iterable[Direction], *, http: bool
) -> bool:
    """Return whether the rule of this direction lists a request.

    One side checks a request: DNS names and server names the opener's, HTTP requests the target's if it can.
    """
    if isinstance(request, DnsQuestion):
        return direction is Direction.EGRESS and flow.traffic.proto in {TCP, UDP}
    if not http or flow.traffic.proto != TCP:
        return False
    sides = (Direction.EGRESS, Direction.INGRESS) if isinstance(request, TlsHello) else Direction
    ends = {Direction.EGRESS: flow.source, Direction.INGRESS: flow.target}
    return direction is next((side for side in sides if side in closed and ends[side].is_endpoint), None)


def port_entries(requests: Mapping[TrafficSpec, Iterable[L7Request]]) -> Iterator[Data]:
    """Yield the entries of ``toPorts`` for ports of TCP, UDP and SCTP, with the requests that they allow.

    A port without requests allows all, and so does one with requests that no rule can tell apart.
    """
    groups: dict[str, tuple[Data, list[TrafficSpec]]] = {}
    for port, seen in requests.items():
        rules = _rules(frozenset(seen))
        groups.setdefault(str(rules), (rules, []))[1].append(port)
    for rules, specs in groups.values():
        for first in range(0, len(specs), MAX_PORTS):
            (entry,) = ports(specs[first : first + MAX_PORTS])["toPorts"]
            yield {**entry, **rules}


def _rules(requests: frozenset[L7Request]) -> Data:
    dns = sorted({one.name for one in requests if isinstance(one, DnsQuestion)})
    names = sorted({one.name for one in requests if isinstance(one, TlsHello)})
    http = [one for one in requests if isinstance(one, HttpRequest)]
    if sum(map(bool, (dns, names, http))) != 1 or "" in names:
        return {}
    if dns:
        return {"rules": {"dns": [{"matchName": name} for name in dns]}}
    return {"serverNames": names} if names else {"rules": {"http": _http(http)}}


def _http(requests: Iterable[HttpRequest]) -> list[Data]:
    """Return a rule for each method and path; the query of a path counts only in that it may have one."""
    queries: dict[tuple[str, str], bool] = {}
    for request in requests:
        path, mark, _ = request.path.partition("?")
        key = request.method, path
        queries[key] = queries.get(key, False) or bool(mark)
    return [http_rule(method, path, query=queries[method, path]) for method, path in sorted(queries)]
