"""Pods as endpoints: which pod is one, and which of several has an address."""

from typing import Any

import pytest

from nfq_enforcer.workloads.kubernetes.pods import Pod, PodSet, Port, project


def item(
    *,
    phase: str = "Running",
    ips: tuple[str, ...] = ("10.0.0.1",),
    created: str = "2026-01-01T00:00:00Z",
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    return {
        "metadata": {
            **{"name": "web", "namespace": "shop", "uid": "u1", "creationTimestamp": created},
            **{"labels": {"role": "web", "app": "shop"}, **(meta or {})},
        },
        "spec": spec,
        "status": {"phase": phase, "podIP": ips[0] if ips else None, "podIPs": [{"ip": ip} for ip in ips]},
    }


def pod(**fields: Any) -> Pod:
    return project(item(**fields))


def test_a_pod_has_labels_account_addresses_and_phase() -> None:
    assert pod(ips=("10.0.0.1", "fd00::1"), serviceAccountName="shop") == Pod(
        uid="u1",
        labels=(("app", "shop"), ("role", "web")),
        account="shop",
        addresses=("10.0.0.1", "fd00::1"),
        ports=(),
        host_network=False,
        phase="Running",
        deleting=False,
        created="2026-01-01T00:00:00Z",
    )


def test_an_object_without_optional_fields_is_a_pod_without_them() -> None:
    bare = project({"metadata": {"name": "web", "namespace": "shop"}})

    assert (bare.account, bare.addresses, bare.labels, bare.is_endpoint) == ("default", (), (), False)


def test_an_old_server_has_one_address() -> None:
    assert project({"metadata": {"name": "w"}, "status": {"podIP": "10.0.0.9"}}).addresses == ("10.0.0.9",)


def test_named_ports_are_those_of_containers_and_of_init_containers_that_stay() -> None:
    http = {"name": "http", "containerPort": 80}
    containers = [
        {"ports": [http, {"containerPort": 81}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
        {"ports": [{"name": "http", "containerPort": 8080}, {"name": "odd", "containerPort": 1, "protocol": "ICMP"}]},
        {},
    ]
    init = [
        {"restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
        {"ports": [{"name": "once", "containerPort": 7}]},
    ]

    ports = pod(containers=containers, initContainers=init).ports

    assert ports == (Port("proxy", 15001, "TCP"), Port("http", 80, "TCP"), Port("dns", 53, "UDP"))


@pytest.mark.parametrize(
    ("fields", "is_endpoint"),
    [
        ({}, True),
        ({"phase": "Pending"}, True),  # containers start, and init containers have connections
        ({"ips": ()}, False),
        ({"hostNetwork": True}, False),
        ({"phase": "Succeeded"}, False),
        ({"phase": "Failed"}, False),
        ({"phase": "Unknown"}, True),
        ({"meta": {"deletionTimestamp": "2026-01-01T00:00:30Z"}}, True),
    ],
)
def test_a_pod_is_an_endpoint_while_it_can_send(fields: dict[str, Any], is_endpoint: bool) -> None:
    assert pod(**fields).is_endpoint is is_endpoint


DELETING = {"deletionTimestamp": "2026-01-01T00:00:30Z"}
LATER = "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("one", "two", "owner"),
    [
        ({}, {"created": LATER}, "two"),
        ({"created": LATER}, {}, "one"),
        ({}, {"created": LATER, "phase": "Pending"}, "one"),
        ({"meta": DELETING}, {"created": LATER, "phase": "Pending"}, "one"),
        ({"meta": DELETING}, {}, "two"),
        ({"phase": "Succeeded", "created": LATER}, {}, "two"),
        ({"hostNetwork": True, "created": LATER}, {}, "two"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_two_pods_with_one_address_one_has_it(
    one: dict[str, Any], two: dict[str, Any], owner: str, turned: bool
) -> None:
    pods = [("one", pod(**one)), ("two", pod(**two))]

    known = PodSet(reversed(pods) if turned else pods)

    assert [name for name in ("one", "two") if known.endpoint(name)] == [owner]


def test_a_change_touches_those_that_share_an_address() -> None:
    known = PodSet()

    assert known.put("one", pod()) == {"one"}
    assert known.put("two", pod(created=LATER)) == {"one", "two"}
    assert known.put("three", pod(ips=("10.0.0.3",))) == {"three"}
    assert known.put("two", pod(created=LATER, ips=("10.0.0.2",))) == {"one", "two"}
    assert known.remove("two") == {"two"}
    assert known.remove("two") == set()
    assert sorted(known.names()) == ["one", "three"]


def test_a_pod_keeps_the_addresses_that_are_not_another_ones() -> None:
    known = PodSet([("one", pod(ips=("10.0.0.1", "fd00::1"))), ("two", pod(ips=("fd00::1",), created=LATER))])

    found = known.endpoint("one")

    assert found is not None
    assert found.addresses == ("10.0.0.1",)


def test_an_unknown_pod_is_no_endpoint() -> None:
    assert PodSet().endpoint("shop/web") is None
