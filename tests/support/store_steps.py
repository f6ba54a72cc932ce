"""Every step of the store on Redis, for the permissions that a user of the server needs."""

from ipaddress import ip_address

from nfq_enforcer.cluster.records import EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Commands, Request
from nfq_enforcer.store.redis.mirror import Mirror

NODE = schema.encode_node(NodeRecord((ip_address("10.0.0.1"),)))
ADDRESS = ip_address("10.0.0.10").packed
WEB = Labels.parse({"k8s:role": "web"})
FRONT = EndpointRecord("default", "front", "n1", Identity(0), (ADDRESS,), None, WEB, "default", frozenset())


async def take_every_step(store: Commands) -> None:
    """Join, write, delete, restore, collect and leave; the store is empty before and after."""
    await store.join("n1", 5 << 32, 1)  # as a node with a later position than the store
    one = Mirror("n1", LabelFilter(())).endpoint_request(FRONT)
    written = await store.write(Request([one], [(Kind.NODE, "n1", NODE)]))
    known, _ = await store.scan()
    await store.write(Request(deleted=[(Kind.ENDPOINT, "default/front")]))
    assert not await store.restore(known.items())
    assert not await store.restore((), [(Kind.ENDPOINT, "default/front")], (written.id or 0) + 1)
    await store.write(Request([one]))

    assert (await store.heartbeat("n1", 1)).registered
    assert await store.read(0, None) == await store.read(0, 1.0)
    joined = await store.join("n1", written.id or 0, 1)
    assert await store.written_since(joined.forks[-1].marker) is not None
    assert "n1" in await store.nodes()
    assert await store.changes_kept() > 0

    await store.note_restored(joined.forks[-1].name, joined.last)

    await store.heartbeat("n1", 1, ago=10.0)
    gone = await store.collect(1.0, 0.0, 0.0, 0.0)
    left = await store.collect(1.0, 0.0, 0.0, 0.0)
    assert (gone.nodes, gone.endpoints, left.identities) == (("n1",), 1, 1)
