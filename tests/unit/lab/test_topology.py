"""Topology of the lab: names within the kernel's limits, private addresses, a route from every host to every other."""

from ipaddress import ip_network
from itertools import permutations

import pytest
import yaml

from nfq_enforcer.errors import BadInput
from nfq_enforcer.lab.topology import SEGMENT, IPAddress, Machine, Route, Topology

LAB = Topology("a1")
IFNAMSIZ = 15


def next_machine(machine: Machine, target: IPAddress) -> str | None:
    """Return the next machine on the best route to a target, the machine itself for its own address, or None."""
    if any(target == address.ip for interface in machine.interfaces for address in interface.addresses):
        return machine.name
    on_link = [Route(a.network, device=i.name) for i in machine.interfaces for a in i.addresses]
    routes = [route for route in (*on_link, *machine.routes) if target in route.to]
    if not routes:
        return None
    best = max(routes, key=lambda route: route.to.prefixlen)
    return neighbour(machine, best.device, best.via or target)


def neighbour(machine: Machine, device: str | None, address: IPAddress) -> str | None:
    """Return the machine with this address on the cable of a device, or of any device for None."""
    cables = [(c.a, c.b) for c in LAB.cables] + [(c.b, c.a) for c in LAB.cables]
    near = {far[0] for own, far in cables if own[0] == machine.name and device in (own[1], None)}
    if SEGMENT in near:
        near |= {far[0] for own, far in cables if own[0] == SEGMENT} - {machine.name}
    owners = [name for name in near if any(address == a.ip for i in LAB.machine(name).interfaces for a in i.addresses)]
    assert len(owners) <= 1
    return owners[0] if owners else None


@pytest.mark.parametrize("family", [4, 6])
def test_routes_lead_from_every_host_to_every_other(family: int) -> None:
    for source, target in permutations(LAB.hosts, 2):
        machine: str | None = source
        for _ in LAB.hosts:
            assert machine is not None, f"no route from {source} to {target}"
            machine = next_machine(LAB.machine(machine), LAB.address(target, family))
        assert machine == target


def test_a_namespace_is_named_after_its_run_and_its_machine() -> None:
    assert LAB.namespace("front1") == "nfqe-a1-front1"


def test_names_of_interfaces_fit_the_kernel() -> None:
    names = [interface.name for machine in LAB.machines.values() for interface in machine.interfaces]

    assert max(map(len, names)) <= IFNAMSIZ


def test_every_cable_ends_at_an_interface_of_its_machine() -> None:
    ends = {end for cable in LAB.cables for end in (cable.a, cable.b)}
    interfaces = {(m.name, i.name) for m in LAB.machines.values() for i in m.interfaces}

    assert interfaces - ends == {(SEGMENT, "br0")}
    assert ends - interfaces == set()
    assert len(ends) == 2 * len(LAB.cables)


def test_every_host_has_an_address_of_its_own_in_each_family() -> None:
    addresses = [address for host in LAB.hosts for address in LAB.machine(host).addresses]

    assert len(set(addresses)) == len(addresses) == 2 * len(LAB.hosts)
    assert [LAB.address("back2", family) for family in (4, 6)] == list(LAB.machine("back2").addresses)


def test_addresses_are_private() -> None:
    private = [ip_network(subnet) for subnet in ("10.31.0.0/16", "172.31.0.0/16", "fd00:31::/32")]

    for machine in LAB.machines.values():
        for address in (a.ip for interface in machine.interfaces for a in interface.addresses):
            assert any(address in subnet for subnet in private)


def test_endpoints_leave_room_for_the_stamp() -> None:
    endpoint = Topology("a1", stamp_room=24).machine("db3")
    assert [i.mtu for i in endpoint.interfaces] == [1500]
    assert {route.mtu for route in endpoint.routes} == {1476}
    assert {i.mtu for i in LAB.machine("n1").interfaces} == {1500}


def test_the_node_behind_the_router_has_no_port_on_the_segment() -> None:
    assert [i.name for i in LAB.machine(SEGMENT).interfaces] == ["br0", "rtr", "world", "store", "n1", "n2"]


def test_the_store_is_on_the_segment_and_no_endpoint() -> None:
    assert [str(LAB.address("store", family)) for family in (4, 6)] == ["172.31.0.200", "fd00:31::c8"]
    assert "store" not in {endpoint.name for endpoint in LAB.endpoints}


def test_endpoints_are_declared_in_documents() -> None:
    documents = {d["metadata"]["name"]: d for d in yaml.safe_load_all(LAB.endpoint_documents())}

    assert list(documents) == ["front1", "back1", "front2", "back2", "db3", "front3", "n3"]
    assert documents["front1"] == {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": "front1", "namespace": "default", "labels": {"role": "frontend"}},
        "spec": {"node": "n1", "ips": ["10.31.1.10", "fd00:31:1::a"], "interface": "veth-front1"},
    }


def test_a_node_that_is_an_endpoint_itself_names_no_interface() -> None:
    *_, document = yaml.safe_load_all(LAB.endpoint_documents())

    assert document["metadata"]["labels"] == {"role": "monitor"}
    assert document["spec"] == {"node": "n3", "ips": ["172.31.1.3", "fd00:31:0:1::3"]}


@pytest.mark.parametrize("run_id", ["", "abcdefg", "A1", "a-b", "a b", "é"])
def test_a_run_id_that_fits_no_name_is_refused(run_id: str) -> None:
    with pytest.raises(BadInput, match=r"is not a run id of a lab: it has 1 to 6 of the characters a-z and 0-9"):
        Topology(run_id)


def test_an_unknown_machine_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadInput, match="the lab has no machine 'n9'; there are seg, rtr, world, store, n1"):
        LAB.namespace("n9")


def test_a_machine_attached_later_is_one_more_workload_of_its_node() -> None:
    more = LAB.attach("late", "n1").attach("later", "n1")

    assert [str(more.address("later", family)) for family in (4, 6)] == ["10.31.1.13", "fd00:31:1::d"]
    assert [interface.name for interface in more.machine("n1").interfaces][-1] == "veth-later"
    assert {name: more.machine(name) for name in LAB.machines if name != "n1"} == {
        name: machine for name, machine in LAB.machines.items() if name != "n1"
    }
    assert more.endpoints == LAB.endpoints


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("Late", "n1", "is not a name of a machine"),
        ("front1", "n1", "has a machine .front1. already"),
        ("late", "n4", "has no node .n4.; there are n1, n2, n3"),
    ],
)
def test_what_cannot_be_attached_is_said(name: str, node: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LAB.attach(name, node)
