"""A small cluster for policy tests: endpoints of two namespaces, peers outside, and look-ups in the policy maps.

shop: web (app=web, http=80/TCP), db (app=db, tier=data; sql=5432/TCP, stat=53/UDP), two twins (app=twin; http=81, 82)
far: web (app=web, http=8080/TCP)
"""

from ipaddress import ip_address

from nfq_enforcer.core.identity import RESERVED, Identity
from nfq_enforcer.core.tables.policymap import LookupResult, PolicyMap
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.model import ClusterModel, EndpointModel, build_model

ENDPOINTS = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {ips: [10.0.0.1, "fd00::1"], ports: [{name: http, port: 80}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: db, namespace: shop, labels: {app: db, tier: data, "container:kind": a}}
spec: {ips: [10.0.0.2, "fd00::2"], ports: [{name: sql, port: 5432}, {name: stat, port: 53, protocol: UDP}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: twin1, namespace: shop, labels: {app: twin}}
spec: {ips: [10.0.0.3], ports: [{name: HTTP, port: 81}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: twin2, namespace: shop, labels: {app: twin}}
spec: {ips: [10.0.0.4], ports: [{name: http, port: 82}]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: far, labels: {app: web}}
spec: {ips: [10.1.0.1, "fd01::1"], ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: far, labels: {team: red}}
"""
CILIUM = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: "
CLUSTERWIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: c}\nspec: "
PLAIN = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: 'n', namespace: shop}\nspec: "
ORDERED = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: o}\nspec: "
DB, WEB = "{matchLabels: {app: db}}", "{matchLabels: {app: web}}"

_PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP, "ICMP": ICMP, "ICMPv6": ICMPV6}
_RESERVED = {str(labels): identity for identity, labels in RESERVED.items()}


class PolicyCluster:
    """PolicyCluster: the cluster model with these policies compiled."""

    def __init__(self, *policies: str, mode: Enforcement = Enforcement.PER_ENDPOINT) -> None:
        texts = [f"{text}\n" for text in (ENDPOINTS, *policies)]
        documents = group_documents(one.document for text in texts for one in parse(text, "x.yaml"))
        self.model: ClusterModel = build_model(documents, mode)

    def endpoint(self, name: str) -> EndpointModel:
        return next(endpoint for endpoint in self.model.endpoints if endpoint.name == name)

    def ingress(self, of: str = "shop/db") -> PolicyMap:
        return self.model.maps(self.endpoint(of)).ingress

    def egress(self, of: str = "shop/db") -> PolicyMap:
        return self.model.maps(self.endpoint(of)).egress

    def host(self) -> tuple[PolicyMap, PolicyMap]:
        maps = self.model.policy.maps_for(RESERVED[Identity(1)])
        return maps.ingress, maps.egress

    def lookup(self, policy: PolicyMap, peer: str, port: str = "80/TCP") -> LookupResult:
        """Look up a peer in a policy map: an address, an endpoint (by its IPv4 address) or a reserved name."""
        number, _, protocol = port.partition("/")
        identity, local_identities = self._peer(peer)
        return policy.lookup(identity, _PROTOCOLS[protocol], int(number), local_identities)

    def _peer(self, name: str) -> tuple[Identity, tuple[Identity, ...]]:
        if name in _RESERVED:
            return _RESERVED[name], ()
        address = str(self.endpoint(name).document.spec.ips[0]) if "/" in name else name
        packed = ip_address(address).packed
        identity = self.model.ipcache.lookup(packed).identity
        return identity, self.model.ipcache.local_identities(packed, identity)

    def ingress_allowed(self, *peers: str, port: str = "80/TCP", of: str = "shop/db") -> list[bool]:
        """Return for each peer whether ingress from it to this port is allowed."""
        return [self.lookup(self.ingress(of), peer, port).allowed for peer in peers]

    def egress_allowed(self, *peers: str, port: str = "80/TCP", of: str = "shop/db") -> list[bool]:
        """Return for each peer whether egress to this port of it is allowed."""
        return [self.lookup(self.egress(of), peer, port).allowed for peer in peers]


ALL_PEERS = ("shop/web", "far/web", "198.51.100.7", "reserved:host", "reserved:remote-node")
