"""A replica depends on the current records only: any sequence of changes gives the same state as one batch."""

from ipaddress import ip_address
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nfq_enforcer.cluster.names import EndpointName, KnownAddress, Names
from nfq_enforcer.cluster.records import Address, Change, EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.cluster.replica import NodeSettings, Replica, View
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.ipcache import Peer
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.documents import Namespace
from nfq_enforcer.policy.rules import NamedPort
from tests.property.test_incremental_property import DOCUMENTS, HTTP, HTTP_TOO, KINDS
from tests.support.effort import scaled
from tests.support.packets import packed

NUMBERS = [Identity(300 + number) for number in range(6)]
ADDRESSES = [packed(f"10.1.0.{number}") for number in range(4)] + [packed("fd00::1")]
NODES = ("here", "n2", "n3")
HOSTS: list[Address] = [ip_address(address) for address in ("10.1.0.0", "172.16.0.1", "172.16.0.2", "fd00::1")]
OUTSIDE = [packed(address) for address in ("10.1.7.7", "10.20.20.1", "192.0.2.1", "2001:db8::1")]

ENDPOINTS = st.builds(
    lambda name, node, identity, addresses, ports: (
        (Kind.ENDPOINT, f"one/{name}"),
        EndpointRecord("one", name, node, identity, tuple(addresses), None, Labels(), "default", ports),
    ),
    st.sampled_from("abcd"),
    st.sampled_from(NODES),
    st.sampled_from(NUMBERS),
    st.lists(st.sampled_from(ADDRESSES), max_size=3),
    st.sampled_from([frozenset[NamedPort](), HTTP, HTTP_TOO]),
)
IDENTITIES = st.builds(
    lambda number, labels: ((Kind.IDENTITY, str(number)), labels), st.sampled_from(NUMBERS), st.sampled_from(KINDS)
)
HOSTED = st.builds(
    lambda name, addresses: ((Kind.NODE, name), NodeRecord(tuple(addresses))),
    st.sampled_from(NODES),
    st.lists(st.sampled_from(HOSTS), max_size=2, unique=True),
)
POLICIES = DOCUMENTS.map(lambda document: ((Kind.DOCUMENT, "/".join(document.key)), document))
SPACES = st.sampled_from([{"team": "red"}, {"team": "blue"}]).map(
    lambda labels: (
        (Kind.DOCUMENT, "Namespace//one"),
        Namespace.model_validate(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one", "labels": labels}}
        ),
    )
)
Key = tuple[Kind, str]
RECORDS: st.SearchStrategy[tuple[Key, Record]] = st.one_of(
    ENDPOINTS, ENDPOINTS, ENDPOINTS, IDENTITIES, IDENTITIES, HOSTED, POLICIES, SPACES
)

Evaluation = tuple[dict[bytes, tuple[Any, ...]], list[tuple[Any, ...]]]


def evaluation(snapshot: Snapshot) -> Evaluation:
    """Return a worker's input: the endpoints with the contents of their maps, and the identities of addresses."""
    endpoints = {
        address: (
            *(one.name, one.identity, one.interface, one.is_host),
            *((dict(side.entries), side.enforced, side.enforced_by) for side in (one.ingress, one.egress)),
        )
        for address, one in snapshot.endpoints.items()
    }
    cache = snapshot.ipcache
    return endpoints, [(cache.lookup(one), cache.local_identities(one)) for one in (*ADDRESSES, *OUTSIDE)]


AllNames = tuple[dict[str, EndpointName], dict[Identity, Labels | None], list[KnownAddress], list[str]]


def all_names(names: Names) -> AllNames:
    """Return all names."""
    return (
        {one.name: one for one in names},
        {number: names.labels(number) for number in (*NUMBERS, *names.cidrs)},
        sorted(names.addresses()),
        sorted(names.nodes),
    )


class Changes(RuleBasedStateMachine):
    """Changes: records are written, changed and deleted, a few at a time."""

    @initialize(mode=st.sampled_from(Enforcement))
    def begin(self, mode: Enforcement) -> None:
        self.settings = NodeSettings("here", own_addresses=frozenset(HOSTS[:1]), enforcement=mode)
        self.replica = Replica(self.settings)
        self.state: dict[Key, Record] = {}  # in the order of their last changes
        self.peers: dict[bytes, Peer] = {}
        self.view = self.replica.view(1)
        self.identities: set[Identity] = set()
        self.before: list[tuple[View, Evaluation]] = []

    @rule(records=st.lists(RECORDS, min_size=1, max_size=4))
    def some_come_or_change(self, records: list[tuple[Key, Record]]) -> None:
        self.change([Change(*key, record) for key, record in records])

    @rule(data=st.data())
    def some_go(self, data: st.DataObject) -> None:
        if self.state:
            going = st.lists(st.sampled_from(sorted(self.state)), min_size=1, max_size=4)
            self.change([Change(*key, None) for key in data.draw(going)])

    @rule(records=st.lists(RECORDS, min_size=1, max_size=3), data=st.data())
    def some_come_while_others_go(self, records: list[tuple[Key, Record]], data: st.DataObject) -> None:
        keys = sorted({*self.state, *(key for key, _ in records)})
        come = [Change(*key, record) for key, record in records]
        gone = [Change(*key, None) for key in data.draw(st.lists(st.sampled_from(keys), max_size=3))]
        self.change(data.draw(st.permutations(come + gone)))

    def claims(self, address: bytes) -> list[tuple[str, str]]:
        """Return the endpoints with an address, each with its node."""
        records = (record for record in self.state.values() if isinstance(record, EndpointRecord))
        return [(record.name, record.node) for record in records if address in record.addresses]

    def change(self, changes: list[Change]) -> None:
        owned = {address: self.claims(address) for address in self.peers}
        for kind, name, record in changes:
            if self.state.get((kind, name)) != record:
                self.state.pop((kind, name), None)
                if record is not None:
                    self.state[kind, name] = record
        self.replica.apply(changes)
        for number, known in self.replica.identity_changes():
            assert known != (number in self.identities)
            (self.identities.add if known else self.identities.remove)(number)
        self.before.append((self.view, evaluation(self.view.snapshot)))
        self.view = self.replica.view(len(self.before) + 1)
        for address, peer in self.view.peer_changes:
            assert self.peers.pop(address, None) != peer or self.claims(address) != owned[address]
            if peer is not None:
                self.peers[address] = peer

    @invariant()
    def it_is_as_if_all_were_heard_of_at_once(self) -> None:
        fresh = Replica(self.settings)
        fresh.apply(Change(*key, record) for key, record in self.state.items())
        view = fresh.view(1)
        assert evaluation(self.view.snapshot) == evaluation(view.snapshot)
        recorded = {Identity(int(name)) for kind, name in self.state if kind is Kind.IDENTITY}
        used = {record.identity for record in self.state.values() if isinstance(record, EndpointRecord)}
        assert self.identities == self.replica.identities == recorded | used
        assert self.view.remote_networks == view.remote_networks
        assert self.peers == self.replica.peers == fresh.peers == dict(view.peer_changes)
        assert self.view.policies == view.policies
        assert all_names(self.view.names) == all_names(view.names)

    @invariant()
    def a_view_that_says_so_has_the_snapshot_of_before(self) -> None:
        if self.before:
            old = self.before[-1][0]
            assert self.view.changed == (self.view.snapshot is not old.snapshot)
            assert self.view.snapshot.revision == (len(self.before) + 1 if self.view.changed else old.snapshot.revision)

    def teardown(self) -> None:
        for view, earlier in self.before:
            assert evaluation(view.snapshot) == earlier  # the earlier view has not changed


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=scaled(100), stateful_step_count=12, deadline=None)
