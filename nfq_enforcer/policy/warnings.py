"""Warnings about valid documents: a part that can never match, or that matches more than its author expects.

A selector that wants a label that no identity can have, and an entity without addresses, are accepted by upstream too.
They silently select nobody: what should pass is denied, and what should be isolated stays open. A peer with negative
requirements alone matches the world. An endpoint without an interface is accepted as well, and its neighbours can use
its addresses.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from nfq_enforcer.core.labels import ANY_SOURCE, DEFAULT_SOURCE
from nfq_enforcer.core.tables.dns_names import matches
from nfq_enforcer.core.tables.l7 import DnsMatch
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import cluster_policy_rules
from nfq_enforcer.policy.cilium import CiliumPolicy, ServicePeer
from nfq_enforcer.policy.cluster_policy import ClusterNetworkPolicy
from nfq_enforcer.policy.documents import Endpoint, PolicyDocument
from nfq_enforcer.policy.fields import ACCOUNT_KEY, CLUSTER_KEY, DEFAULT_CLUSTER, NAMESPACE_KEY
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.references import References
from nfq_enforcer.policy.requirements import Operator, Requirement
from nfq_enforcer.policy.rules import AddressBlock, NamePeer, Rule
from nfq_enforcer.policy.rules_index import resolve
from nfq_enforcer.policy.selectors import RESERVED_SOURCE, Selector, reserved_selector
from nfq_enforcer.policy.services import api_servers

_NAMED = 5  # endpoints of one warning
_WITH_ADDRESSES = frozenset(("host", "remote-node", "world"))
_NOBODY = frozenset(("none",))  # an entity that is meant to be nobody
_MINOR = frozenset(map(reserved_selector, ("health", "ingress", "init", "unmanaged")))
"""Entities that documents name beside others, as the entity cluster does: a warning only where no peer can match."""

_APISERVER = reserved_selector("kube-apiserver")
_SINGLE_SOURCE = frozenset((ACCOUNT_KEY, CLUSTER_KEY, NAMESPACE_KEY))  # no user's label has these keys


class ClusterFacts(NamedTuple):
    """ClusterFacts: the facts about a cluster that decide whether a selector can match."""

    cluster: str = DEFAULT_CLUSTER
    has_apiserver: bool = False  # the configuration has addresses of the entity kube-apiserver
    sources: Collection[str] = ()  # label sources of the endpoints, apart from k8s
    relevant: LabelFilter = LabelFilter()


def warnings(
    documents: Iterable[PolicyDocument], facts: ClusterFacts, others: Iterable[PolicyDocument] = ()
) -> Iterator[str]:
    """Yield a sentence for each part of a document that can never match, or matches the world, with its place.

    ``others``: further policies in force. Their DNS rules count where a document has names.
    """
    documents, others = tuple(documents), tuple(others)
    facts = facts._replace(has_apiserver=facts.has_apiserver or bool(api_servers((*documents, *others))))
    references = References.among((*documents, *others))
    resolved = [(document, tuple(resolve(document, references))) for document in documents]
    all_rules = [rule for _, rules in resolved for rule in rules]
    if any(isinstance(peer, NamePeer) for rule in all_rules for peer in rule.peers or ()):
        all_rules += [rule for document in others for rule in resolve(document, references)]
    queried = [pattern for rule in all_rules for pattern in _queried(rule)]
    ordered = {one.name: one for one in (*others, *documents) if isinstance(one, ClusterNetworkPolicy)}
    loaded = {document.name for document in documents if isinstance(document, ClusterNetworkPolicy)}
    for document, rules in resolved:
        of_rules = (text for rule in rules for text in (*_of_rule(rule, facts), *_unlearned(rule, queried)))
        before = [one for name, one in ordered.items() if name < document.name or name not in loaded]
        of_document = (*_without_effect(document), *_dangling(document, references), *_closes_nodes(document, rules))
        found = (*of_document, *_of_equals(document, before, facts), *of_rules)
        yield from (f"{document.origin}: {document.title}: {text}" for text in dict.fromkeys(found))


def without_interface(names: Collection[str]) -> str:
    """Return the sentence about endpoints whose documents name no interface."""
    shown, others = ", ".join(sorted(names)[:_NAMED]), len(names) - _NAMED
    more = f" and {others} more" if others > 0 else ""
    return (
        f"endpoints without an interface: {shown}{more}; other workloads of their node can send from their addresses "
        "(only a node itself needs no interface)"
    )


def endpoint_warnings(endpoints: Iterable[Endpoint]) -> Iterator[str]:
    """Yield a sentence about the endpoints without an interface, if there are any."""
    names = {
        f"{endpoint.namespace}/{endpoint.name}"
        for endpoint in endpoints
        if endpoint.spec.interface is None and endpoint.spec.cgroup is None
    }
    if names:
        yield without_interface(names)


def _without_effect(document: PolicyDocument) -> Iterator[str]:
    if isinstance(document, ClusterNetworkPolicy) and not (document.spec.ingress or document.spec.egress):
        yield "it has no rules, so it has no effect"
    rules = document.rules if isinstance(document, CiliumPolicy) else ()
    for rule in rules:
        for section, entries in (("ingress", rule.ingress), ("egress", rule.egress)):
            if section in rule.model_fields_set and not entries:
                yield f"{section}: [] has no effect; for default deny write {section}: [{{}}]"


def _closes_nodes(document: PolicyDocument, rules: Iterable[Rule]) -> Iterator[str]:
    """Yield a sentence if a document closes nodes themselves to all peers that it does not name."""
    closing = (rule for rule in rules if rule.subject.selects_nodes and rule.isolates and not rule.ref.deny)
    if any(rule.ref.direction is Direction.INGRESS for rule in closing):
        yield (
            "closes the nodes that it selects, SSH and every other service of the host, to all peers and ports that no "
            "such rule opens"
        )


def _dangling(document: PolicyDocument, references: References) -> Iterator[str]:
    """Yield a sentence for each reference to CIDR groups or services that matches none of these."""
    if not isinstance(document, CiliumPolicy):
        return
    for service in document.service_references:
        if not references.services.of(service):
            named = _service_name(service)
            yield f"no Service {named} is here, so toServices stands for nobody"
    for peer in document.group_references:
        if not references.groups.of(peer):
            named = f"named {peer.cidr_group_ref}" if peer.cidr_group_ref else "with the labels of a cidrGroupSelector"
            yield f"no CiliumCIDRGroup {named} is here, so it stands for no address"


def _service_name(peer: ServicePeer) -> str:
    if peer.k8s_service is None:
        return "with the labels of a k8sServiceSelector"
    namespace, name = peer.k8s_service.namespace, peer.k8s_service.service_name
    return f"named {namespace}/{name}" if namespace else f"named {name}"


def _of_equals(document: PolicyDocument, others: Iterable[ClusterNetworkPolicy], facts: ClusterFacts) -> Iterator[str]:
    """Yield a sentence for each other policy of the same tier and priority that can decide about the same traffic."""
    if not isinstance(document, ClusterNetworkPolicy):
        return
    for other in others:
        if document.spec.place == other.spec.place and _overlap(document, other, facts):
            tier, priority = document.spec.place
            yield (
                f"{other.title} has the priority {priority} of the tier {tier}, too, and can select the same "
                "endpoints: the first by name precedes here, and upstream leaves the order open"
            )


def _overlap(one: ClusterNetworkPolicy, other: ClusterNetworkPolicy, facts: ClusterFacts) -> bool:
    """Tell whether both policies have rules of one direction for subjects that one endpoint can be."""
    if not ((one.spec.ingress and other.spec.ingress) or (one.spec.egress and other.spec.egress)):
        return False
    subjects = (next(iter(cluster_policy_rules.resolve(policy))).subject for policy in (one, other))
    both = Selector(frozenset[Requirement]().union(*(subject.requirements for subject in subjects)))
    return not any(_reasons(both, facts))


def _queried(rule: Rule) -> Iterator[str]:
    """Yield the patterns of the names that a rule lets endpoints query."""
    for l4_filter in rule.filters:
        yield from (match.pattern for match in l4_filter.l7 if isinstance(match, DnsMatch))


def _unlearned(rule: Rule, queried: Collection[str]) -> Iterator[str]:
    """Yield each name of a rule of which no DNS rule lets the addresses be learned; of two patterns nobody can tell."""
    for peer in rule.peers or ():
        if isinstance(peer, NamePeer):
            learnable = queried if "*" in peer.pattern else [one for one in queried if matches(one, peer.pattern)]
            if not learnable:
                yield (
                    f"{rule.ref.place} has {peer.pattern} in toFQDNs, and no DNS rule here allows a query for it, so "
                    "no address of it is learned; rules: {dns: [{matchPattern: '*'}]} in toPorts of a name server does"
                )


def _of_rule(rule: Rule, facts: ClusterFacts) -> Iterator[str]:
    section = "spec" if not rule.ref.spec else f"specs[{rule.ref.spec}]"
    if not rule.subject.selects_nodes:  # labels of nodes have no filter
        yield from (f"{section} selects no endpoint: {reason}" for reason in _reasons(rule.subject, facts))
    reasons = {
        peer: () if isinstance(peer, AddressBlock | NamePeer) else tuple(_reasons(peer, facts))
        for peer in rule.peers or ()
    }
    some_match = not all(reasons.values())
    whole_cluster = reasons.keys() >= _MINOR  # by the entity cluster
    if any(isinstance(peer, Selector) and _is_negative(peer) for peer in reasons):
        yield (
            f"{rule.ref.place} has a peer that also matches the world, this host and other nodes: its requirements are "
            f"negative only (NotIn, DoesNotExist); {NAMESPACE_KEY} with the operator Exists limits it to endpoints"
        )
    for peer, texts in reasons.items():
        if not (some_match and (peer in _MINOR or (whole_cluster and peer == _APISERVER))):
            yield from (f"{rule.ref.place} has a peer that never matches: {text}" for text in texts)


def _is_negative(selector: Selector) -> bool:
    """Tell whether a selector has requirements, and only negative ones."""
    return bool(selector.requirements) and all(requirement.negative for requirement in selector.requirements)


def _reasons(selector: Selector, facts: ClusterFacts) -> Iterator[str]:
    """Yield each reason for which no identity can meet a selector."""
    wanted: dict[tuple[str, str], frozenset[str]] = {}
    for requirement in sorted(selector.requirements):
        if requirement.negative:
            continue
        reason = _reason(requirement, facts)
        if reason:
            yield reason
        elif requirement.operator is Operator.IN:
            source = DEFAULT_SOURCE if requirement.key in _SINGLE_SOURCE else requirement.source
            key = source, requirement.key
            possible = wanted.get(key, requirement.values) & requirement.values
            if not possible:
                yield f"it wants two values of the label {requirement.key}"
            wanted[key] = possible


def _reason(requirement: Requirement, facts: ClusterFacts) -> str:
    """Return the reason for which no identity can meet a requirement; empty if one can."""
    source, key = requirement.source, requirement.key
    if source == RESERVED_SOURCE:
        return _of_entity(key, facts)
    if source not in {ANY_SOURCE, DEFAULT_SOURCE, *facts.sources}:
        return f"no endpoint known here has labels of the source '{source}'; labels of documents have the source k8s"
    if source == ANY_SOURCE and any(facts.relevant.includes(other, key) for other in facts.sources):
        return ""
    if not facts.relevant.includes(DEFAULT_SOURCE if source == ANY_SOURCE else source, key):
        return f"the label {key} is not part of identities; identity_labels in the configuration can include it"
    if key == CLUSTER_KEY and requirement.operator is Operator.IN and facts.cluster not in requirement.values:
        names = ", ".join(sorted(requirement.values))
        return f"it wants the cluster {names}, and this one is {facts.cluster} (cluster in the configuration)"
    return ""


def _of_entity(name: str, facts: ClusterFacts) -> str:
    if name in _WITH_ADDRESSES or name in _NOBODY or (name == "kube-apiserver" and facts.has_apiserver):
        return ""
    if name == "kube-apiserver":
        return (
            "the entity kube-apiserver has no addresses; the EndpointSlice of the service default/kubernetes, "
            "or kube_apiserver in the configuration, sets them"
        )
    return f"the entity {name} has no addresses in this version"
