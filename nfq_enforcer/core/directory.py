"""Names for numbers: the labels an identity stands for, the endpoint that has an address. For logs and lists only."""

from collections.abc import Mapping
from dataclasses import dataclass

from nfq_enforcer.core.identity import RESERVED, Identity
from nfq_enforcer.core.labels import Labels


@dataclass(frozen=True, slots=True)
class EndpointName:
    """An endpoint of the cluster, as a reader knows it."""

    namespace: str
    name: str
    node: str
    identity: Identity
    labels: Labels  # all of them, also those that enter no identity
    addresses: tuple[str, ...]
    interface: str | None


@dataclass(frozen=True, slots=True)
class Directory:
    """What one revision of the documents says of names."""

    identities: Mapping[Identity, Labels]  # cluster identities; the reserved ones are known anyway
    endpoints: tuple[EndpointName, ...]
    by_address: Mapping[bytes, EndpointName]

    def labels(self, identity: Identity) -> Labels | None:
        """Return the labels that make an identity, None for one that is not known here."""
        return self.identities.get(identity, RESERVED.get(identity))

    def endpoint(self, address: bytes, identity: Identity) -> EndpointName | None:
        """Return the endpoint that has this address, if it also has this identity: an address alone proves nothing."""
        found = self.by_address.get(address)
        return found if found is not None and found.identity == identity else None
