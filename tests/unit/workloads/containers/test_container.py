"""Containers as the answers of Docker and Podman describe them; the answers are shortened ones of real daemons."""

from ipaddress import ip_address
from typing import Any

import pytest

from nfq_enforcer.workloads.containers.container import AnswerError, Network, inspected, joined, summaries

ID = "75d77d52a76353ee77dd0f3dd8674b135669914f67495f6b90ad62a3357d8dc5"
INSPECTED = {
    "Id": ID,
    "Name": "/web",
    "State": {"Status": "running", "Pid": 10289},
    "Config": {"Labels": {"role": "frontend"}},
    "HostConfig": {"NetworkMode": "back"},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "443/tcp": None},
        "Networks": {"back": {"IPAddress": "172.30.0.2", "GlobalIPv6Address": "fd00:30::2"}},
    },
}
LISTED = {
    "Id": ID,
    "Names": ["/front/db", "/web"],
    "Labels": {"role": "frontend"},
    "State": "running",
    "HostConfig": {"NetworkMode": "back"},
    "NetworkSettings": {"Networks": {"back": {"IPAddress": "172.30.0.2", "GlobalIPv6Address": "fd00:30::2"}}},
}
BACK = Network("back", (ip_address("172.30.0.2"), ip_address("fd00:30::2")))


def test_a_container_has_its_labels_process_addresses_and_published_ports() -> None:
    container = inspected(INSPECTED)

    assert (container.id, container.name, container.mode, container.process) == (ID, "web", "back", 10289)
    assert container.labels == {"role": "frontend"}
    assert container.networks == (BACK,)
    assert container.published == ("80/tcp",)


def test_a_container_that_has_ended_has_no_process_and_no_addresses() -> None:
    networks = {"back": {"IPAddress": "", "GlobalIPv6Address": ""}}
    settings = {"Ports": {}, "Networks": networks}

    container = inspected(INSPECTED | {"State": {"Pid": 0}, "NetworkSettings": settings})

    assert (container.process, container.networks) == (0, (Network("back", ()),))


def test_a_container_without_labels_and_networks_is_read() -> None:
    container = inspected(INSPECTED | {"Config": {"Labels": None}, "NetworkSettings": {"Networks": None}})

    assert (container.labels, container.networks) == ({}, ())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (None, "the answer has no object NetworkSettings"),
        (INSPECTED | {"State": []}, "the answer has no object State"),
        (INSPECTED | {"State": {"Pid": "1"}}, "State.Pid of a container is not a number"),
        (INSPECTED | {"Id": ""}, "the answer has no text Id"),
        (
            INSPECTED | {"NetworkSettings": {"Networks": {"a": {"IPAddress": "\x1b[1m"}}}},
            r"'\x1b[1m' is not an address",
        ),
    ],
)
def test_another_answer_is_refused_with_a_sentence(answer: Any, sentence: str) -> None:
    with pytest.raises(AnswerError) as raised:
        inspected(answer)

    assert str(raised.value) == sentence


def test_the_name_of_a_listed_container_is_no_link_to_another() -> None:
    (listed,) = summaries([LISTED])

    assert (listed.id, listed.name, listed.is_active, listed.networks) == (ID, "web", True, (BACK,))


@pytest.mark.parametrize(("state", "active"), [("running", True), ("paused", True), ("created", False), (None, False)])
def test_the_state_of_a_listed_container_tells_whether_it_has_processes(state: str | None, active: bool) -> None:
    (listed,) = summaries([LISTED | {"State": state}])

    assert listed.is_active == active


@pytest.mark.parametrize("answer", [{}, [{}], [None], ["web"]])
def test_another_list_is_refused(answer: Any) -> None:
    with pytest.raises(AnswerError):
        summaries(answer)


def test_a_listed_container_is_compared_with_an_earlier_description() -> None:
    container = inspected(INSPECTED)
    same, without_mode, renamed, moved = summaries(
        [
            LISTED,
            LISTED | {"HostConfig": None},
            LISTED | {"Names": ["/other"]},
            LISTED | {"NetworkSettings": {"Networks": {"back": {"IPAddress": "172.30.0.3"}}}},
        ]
    )

    assert [one.describes(container) for one in (same, without_mode, renamed, moved)] == [True, True, False, False]


def test_a_container_that_starts_has_the_addresses_that_its_networks_have_for_it() -> None:
    (listed,) = summaries([LISTED | {"State": "created"}])
    member = {"Name": "web", "IPv4Address": "172.30.0.2/24", "IPv6Address": "fd00:30::2/64"}
    networks = {"back": {"Containers": {ID: member}}, "front": {"Containers": {"other": member}}, "last": {}}

    starting = joined(listed, networks)

    assert (starting.process, starting.networks) == (0, (BACK,))
