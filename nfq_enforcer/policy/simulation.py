"""Offline evaluation of connections: documents compiled as for the data path, connections looked up in the policy maps.

A connection is evaluated on both sides, each as its own node does: egress of the source, then ingress of the target. An
end that is not an endpoint (an address outside, ``reserved:host``) has no policy of its own, so its side allows all.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from nfq_enforcer.core.identity import HOST, KUBE_APISERVER, RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.dns_names import NamePatterns, canonical
from nfq_enforcer.core.tables.policymap import L7Rule, LookupResult, PolicyMap, RuleRef
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.policy import l7_match
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER, Address
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.model import EndpointModel, build_model
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.probes import Family, Probe
from nfq_enforcer.policy.rules import PortSet, Rule

ECHO_REQUEST = {"IPv4": (ICMP, 8), "IPv6": (ICMPV6, 128)}

_FAMILIES: Mapping[int, Family] = {4: "IPv4", 6: "IPv6"}
_EVERY_ADDRESS: Mapping[Family, Network] = {"IPv4": ip_network("0.0.0.0/0"), "IPv6": ip_network("::/0")}
_PREPOSITIONS = {Direction.EGRESS: "to", Direction.INGRESS: "from"}
_MAX_LISTED = 3  # documents or rules in one sentence, so that a long list does not hide the reason
_REFERENCES = "allowed: NAMESPACE/NAME of an endpoint, ip:ADDRESS, fqdn:NAME or reserved:NAME"


class ConnectionEnd(NamedTuple):
    """ConnectionEnd: an endpoint, a reserved identity or an address outside, at one end of a connection."""

    name: str
    identity: Identity
    labels: Labels
    addresses: Mapping[Family, Network]  # empty: not known; of the world: every address
    maps: EndpointMaps | None  # None: it has no policy of its own
    ports: PortSet = frozenset()
    fqdn: str | None = None  # of an address outside that DNS answers have given
    node_labels: Labels = Labels()  # of the host, for rules that select nodes

    @property
    def subject_labels(self) -> Labels:
        """Return the labels by which rules select it as their subject."""
        return self.labels.union(self.node_labels) if self.node_labels else self.labels

    def supports(self, family: Family) -> bool:
        """Return whether the end has an address of this family, or no known address."""
        return family in self.addresses or not self.addresses

    def address(self, family: Family) -> Network | None:
        """Return the address of this family, else that of the other family; None without any address."""
        return self.addresses.get(family) or next(iter(self.addresses.values()), None)


class SideResult(NamedTuple):
    """SideResult: the verdict of one side of a connection, with its reason."""

    allowed: bool
    rules: tuple[RuleRef, ...]  # the deciding ones
    reason: str  # empty: the side's end has no policy of its own
    l7_rules: tuple[L7Rule, ...] = ()  # rules that allow some requests only


class ConnectionResult(NamedTuple):
    """ConnectionResult: the verdict on a connection, with the results of both sides and a reason."""

    egress: SideResult
    ingress: SideResult
    reason: str

    @property
    def allowed(self) -> bool:
        """Return whether both sides allow the connection."""
        return self.egress.allowed and self.ingress.allowed

    @property
    def restricted(self) -> bool:
        """Return whether the connection is allowed for some requests only, evaluated without a request."""
        return self.allowed and bool(self.egress.l7_rules or self.ingress.l7_rules)

    @property
    def verdict(self) -> str:
        """Return ``allow`` or ``deny``."""
        return verdict_word(self.allowed)

    def as_data(self) -> dict[str, object]:
        """Return the JSON object of the result."""
        return {
            "verdict": self.verdict,
            "egress": {"verdict": verdict_word(self.egress.allowed), "rules": list(map(str, self.egress.rules))},
            "ingress": {"verdict": verdict_word(self.ingress.allowed), "rules": list(map(str, self.ingress.rules))},
            "reason": self.reason,
        }


class ConnectionSide(NamedTuple):
    """ConnectionSide: one side of a connection: its own end, that end's policy map, and the peer at the other end."""

    direction: Direction
    subject: ConnectionEnd
    policy: PolicyMap | None
    peer: ConnectionEnd
    local_identities: tuple[Identity, ...]  # of the peer's address
    exemption: str = ""  # the reason why the side applies deny rules only

    def lookup(self, traffic: TrafficSpec) -> LookupResult | None:
        """Return the policy map's result, None without a policy map."""
        if self.policy is None:
            return None
        return self.policy.lookup(self.peer.identity, traffic.proto, traffic.port, self.local_identities)

    def __str__(self) -> str:
        """Render as ``ingress of default/web``."""
        return f"{self.direction} of {self.subject.name}"


class EndPair(NamedTuple):
    """EndPair: the two sides of every connection from one end to another."""

    family: Family
    egress: ConnectionSide
    ingress: ConnectionSide
    same_endpoint: bool  # source and target are one endpoint


def verdict_word(allowed: bool) -> str:
    """Return ``allow`` or ``deny``."""
    return "allow" if allowed else "deny"


class Simulation:
    """Simulation: evaluates connections between the ends of a cluster model; each end and pair is resolved once."""

    def __init__(
        self,
        documents: Documents,
        enforcement: Enforcement = Enforcement.AUTO,
        *,
        allow_localhost: bool = True,
        cluster: str = DEFAULT_CLUSTER,
        kube_apiserver: Iterable[Address] = (),
        relevant: LabelFilter | None = None,
        node_labels: Labels | None = None,
    ) -> None:
        """Compile the documents; the other arguments are as in the configuration of the agent.

        ``relevant`` selects the labels of an identity; ``node_labels`` are those of the host.
        """
        self.documents = documents
        self._node_labels = node_labels or Labels()
        self._enforcement = enforcement
        self._allow_localhost = allow_localhost
        self._cluster, self._kube_apiserver, self._relevant = cluster, tuple(kube_apiserver), relevant
        self._model = build_model(documents, enforcement, cluster, kube_apiserver, relevant)
        self.endpoints = tuple(endpoint.name for endpoint in self._model.endpoints)
        self._ends = dict(self._known_ends())
        self._pairs: dict[tuple[str, str, Family | None], EndPair] = {}
        self._default_deny_causes: dict[PolicyMap, str] = {}

    def with_documents(self, documents: Documents) -> "Simulation":
        """Return the simulation of other documents with the same settings."""
        return Simulation(
            documents,
            self._enforcement,
            allow_localhost=self._allow_localhost,
            cluster=self._cluster,
            kube_apiserver=self._kube_apiserver,
            relevant=self._relevant,
            node_labels=self._node_labels,
        )

    def _known_ends(self) -> Iterable[tuple[str, ConnectionEnd]]:
        for endpoint in self._model.endpoints:
            end = self._endpoint_end(endpoint)
            yield end.name, end
            for ip in endpoint.document.spec.ips:
                yield f"ip:{ip}", end._replace(addresses={_FAMILIES[ip.version]: ip_network(ip)})
        for identity, labels in RESERVED.items():
            node_labels = self._node_labels if identity == HOST else Labels()
            maps = self._model.policy.maps_for(labels.union(node_labels))
            has_policy = identity == HOST and any(policy.can_refuse for policy in maps)  # of rules that select nodes
            addresses = _EVERY_ADDRESS if identity == WORLD else {}
            end = ConnectionEnd(str(labels), identity, labels, addresses, maps if has_policy else None)
            yield end.name, end._replace(node_labels=node_labels)

    def _endpoint_end(self, endpoint: EndpointModel) -> ConnectionEnd:
        ips = reversed(endpoint.document.spec.ips)  # the first of each family counts
        addresses: Mapping[Family, Network] = {_FAMILIES[ip.version]: ip_network(ip) for ip in ips}
        maps = self._model.maps(endpoint)
        is_apiserver = any(ip.packed in self._model.kube_apiserver for ip in endpoint.document.spec.ips)
        labels = endpoint.identity_labels.union(RESERVED[KUBE_APISERVER]) if is_apiserver else endpoint.identity_labels
        return ConnectionEnd(endpoint.name, endpoint.identity, labels, addresses, maps, endpoint.ports)

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction, in the order of their documents."""
        return self._model.policy.rules(direction)

    @property
    def prefix_references(self) -> tuple[str, ...]:
        """Return a reference to the first address of each prefix in the policies."""
        local_identities = self._model.policy.local_identities
        prefixes = sorted({*local_identities.by_cidr, *local_identities.by_ip_block}, key=str)
        return tuple(f"ip:{network.network_address}" for network in prefixes if network.prefixlen)

    def end(self, reference: str) -> ConnectionEnd:
        """Return the end of a reference; raise ValueError with the allowed forms for an unknown one."""
        end = self._ends.get(reference)
        if end is None:
            end = self._ends[reference] = self._address_end(reference)
        return end

    def pair(self, source: str, target: str, family: Family | None = None) -> EndPair:
        """Return the pair of two references, by default for IPv4 if both ends have it; raise ValueError as ``end``."""
        pair = self._pairs.get((source, target, family))
        if pair is None:
            pair = self._pairs[source, target, family] = self._make_pair(self.end(source), self.end(target), family)
        return pair

    def evaluate_probe(self, probe: Probe) -> ConnectionResult:
        """Return the result of a probe; raise ValueError for an unknown reference."""
        icmp = probe.icmp
        pair = self.pair(probe.source, probe.target, probe.family or (icmp.family if icmp else None))
        if probe.protocol == "ICMP":
            proto, echo = ECHO_REQUEST[pair.family]
            return self.evaluate(pair, TrafficSpec(proto, icmp.type if icmp else echo))
        return self.evaluate(pair, TrafficSpec(PROTOCOLS[probe.protocol], probe.port or 0, probe.request))

    def evaluate(self, pair: EndPair, traffic: TrafficSpec) -> ConnectionResult:
        """Return the result of a connection."""
        egress, ingress = self._evaluate_side(pair.egress, traffic), self._evaluate_side(pair.ingress, traffic)
        if pair.same_endpoint:
            return ConnectionResult(egress, ingress, "an endpoint cannot be cut off from itself")
        sides = (egress, ingress)
        reasons = [side.reason for side in sides if not side.allowed] or [side.reason for side in sides if side.reason]
        return ConnectionResult(
            egress, ingress, "; ".join(reasons) or "neither end is an endpoint, so no policy applies"
        )

    def _address_end(self, reference: str) -> ConnectionEnd:
        kind, _, name = reference.partition(":")
        if kind == "fqdn" and name:
            return ConnectionEnd(name, WORLD, RESERVED[WORLD], {}, None, fqdn=canonical(name))
        if kind != "ip":
            raise ValueError(self._unknown_reference(reference))
        try:
            address = ip_address(name.replace("%", "/"))  # an interface after '%' is not part of an address
        except ValueError:
            raise ValueError(f"'{name}' is not an address; allowed: ip: and an IPv4 or IPv6 address") from None
        known = self._ends.get(f"ip:{address}")
        addresses = {_FAMILIES[address.version]: ip_network(address)}
        return known or ConnectionEnd(str(address), WORLD, RESERVED[WORLD], addresses, None)

    def _with_cidr_identity(self, end: ConnectionEnd, family: Family) -> ConnectionEnd:
        """Return an end outside the cluster with the identity of its address, any other end unchanged."""
        address = end.address(family)
        if end.identity != WORLD or address is None:
            return end
        packed, ipcache = address.network_address.packed, self._model.ipcache
        identity = self._model.policy.local_identities.by_cidr.get(address)  # also of 0.0.0.0/0 and ::/0
        if identity is None and address.prefixlen:
            identity = ipcache.underlying(packed).identity
        labels = self._model.policy.local_identities.labels_of(address) or end.labels
        if address.prefixlen == address.max_prefixlen and packed in self._model.kube_apiserver:
            return end._replace(identity=KUBE_APISERVER, labels=labels.union(RESERVED[KUBE_APISERVER]))
        return end._replace(identity=identity or WORLD, labels=labels)

    def _unknown_reference(self, reference: str) -> str:
        known = [name for name in self._ends if not name.startswith("ip:")]
        bare = [name for name in self.endpoints if name.endswith(f"/{reference}")]
        close = bare[:_MAX_LISTED] or get_close_matches(reference, known, _MAX_LISTED, cutoff=0.85)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"'{reference}' is nobody that the documents know; {hint}{_REFERENCES}"

    def _make_pair(self, source: ConnectionEnd, target: ConnectionEnd, family: Family | None) -> EndPair:
        chosen: Family = family or ("IPv4" if source.supports("IPv4") and target.supports("IPv4") else "IPv6")
        source, target = self._with_cidr_identity(source, chosen), self._with_cidr_identity(target, chosen)
        same_endpoint = source.name == target.name and source.maps is not None
        egress = source.maps.egress if source.maps and not same_endpoint else None
        ingress = target.maps.ingress if target.maps and not same_endpoint else None
        exemption = self._host_exemption(source, ingress)
        return EndPair(
            chosen,
            ConnectionSide(Direction.EGRESS, source, egress, target, self._local_identities(target, chosen)),
            ConnectionSide(
                Direction.INGRESS, target, ingress, source, self._local_identities(source, chosen), exemption
            ),
            same_endpoint,
        )

    def _host_exemption(self, source: ConnectionEnd, ingress: PolicyMap | None) -> str:
        """Return the reason why ingress applies deny rules only; empty if it applies all rules."""
        if source.identity != HOST or ingress is None or not ingress.enforced:
            return ""
        if self._allow_localhost:
            return "the host may reach the endpoints it runs (allow-localhost)"
        return "" if ingress.closes_host else "a NetworkPolicy closes no endpoint to its own host"

    def _local_identities(self, end: ConnectionEnd, family: Family) -> tuple[Identity, ...]:
        if end.fqdn is not None:
            return NamePatterns(self._model.policy.local_identities.by_name.items()).find(end.fqdn)
        address = end.address(family)
        if address is None:
            return ()
        if address.prefixlen:
            return self._model.ipcache.local_identities(address.network_address.packed, end.identity)
        identity = self._model.policy.local_identities.by_ip_block.get(address)
        return () if identity is None else (identity,)

    def _evaluate_side(self, side: ConnectionSide, traffic: TrafficSpec) -> SideResult:
        policy, result = side.policy, side.lookup(traffic)
        if policy is None or result is None:
            return SideResult(True, (), "")
        if result.denied:
            reason = f"{limited_list(result.rules)} denies {traffic} {_with_peer(side)} ({side})"
            return SideResult(False, result.rules, reason)
        if side.exemption:
            return SideResult(True, (), side.exemption)
        if result.rules and result.rules[0].order:
            return SideResult(True, result.rules, f"{limited_list(result.rules)} accepts {traffic} {_with_peer(side)}")
        if not policy.enforced:
            return SideResult(True, result.rules, f"nothing closes {side}")
        if not result.allowed:
            cause = self._default_deny_cause(policy)
            reason = f"{side} is closed by {cause}, and no rule opens {traffic} {_with_peer(side)}"
            return SideResult(False, (), reason)
        if result.l7:
            return _evaluate_request(result, traffic, str(side))
        return SideResult(True, result.rules, f"{limited_list(result.rules)} opens {side}")

    def _default_deny_cause(self, policy: PolicyMap) -> str:
        cause = self._default_deny_causes.get(policy)
        if cause is None:
            documents = dict.fromkeys(ref.document for ref in policy.enforced_by)
            cause = limited_list(documents) or f"enforcement mode {self._enforcement}"
            self._default_deny_causes[policy] = cause
        return cause


def _with_peer(side: ConnectionSide) -> str:
    return f"{_PREPOSITIONS[side.direction]} {side.peer.name}"


def _evaluate_request(result: LookupResult, traffic: TrafficSpec, side: str) -> SideResult:
    if wrong := l7_match.wrong_protocol((rule.match for rule in result.l7), traffic.proto):
        return SideResult(False, (), f"{limited_list(result.rules)} lists {wrong[0]} for {side}, and {wrong[1]}")
    if traffic.request is None:
        reason = f"{limited_list(result.rules)} opens {side}, but only requests that it lists pass"
        return SideResult(True, result.rules, reason, result.l7)
    request = traffic.request
    if refused := l7_match.refusal(request):
        return SideResult(False, (), f"{l7_match.render(request)} reaches no rule for {side}: {refused}")
    rules = l7_match.matching(result.l7, request)
    if rules:
        return SideResult(True, rules, f"{limited_list(rules)} lets {l7_match.render(request)} pass at {side}")
    reason = f"{l7_match.render(request)} is no request that {limited_list(result.rules)} lists for {side}"
    return SideResult(False, (), reason)


def limited_list(items: Iterable[object]) -> str:
    """Return the first items as text, and the number of the others."""
    texts = list(map(str, items))
    more = f" and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return ", ".join(texts[:_MAX_LISTED]) + more
