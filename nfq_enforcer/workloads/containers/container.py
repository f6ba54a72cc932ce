"""Containers as Docker's API describes them; Podman's answers have the same shape. Pure.

Reference: https://docs.docker.com/reference/api/engine/, ContainerInspect, ContainerList, NetworkInspect.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from nfq_enforcer.text import shorten

Address = IPv4Address | IPv6Address
_ACTIVE = {"running", "paused"}  # states with processes and addresses


class Network(NamedTuple):
    """Network: a network of a container, and the container's addresses in it."""

    name: str
    addresses: tuple[Address, ...]


class Container(NamedTuple):
    """Container: the fields that determine its endpoints."""

    id: str
    name: str
    labels: Mapping[str, str]
    mode: str  # network mode: host, none, container:ID, or the name of the network that it was created in
    process: int  # process id of its first process; 0: none
    networks: tuple[Network, ...]
    published: tuple[str, ...] = ()  # ports that the host has for it, as in 80/tcp


class Summary(NamedTuple):
    """Summary: a container in the list of all, which the daemon returns also while it starts or stops the container."""

    id: str
    name: str
    labels: Mapping[str, str]
    mode: str
    is_active: bool  # it has processes
    networks: tuple[Network, ...]

    def describes(self, container: Container) -> bool:
        """Tell whether this is all the same as an earlier answer about the container."""
        same = self[:3] == container[:3] and self.mode in ("", container.mode)  # Podman's list has no mode
        return self.is_active and same and set(self.networks) == set(container.networks)


class AnswerError(ValueError):
    """Answer of the daemon that does not have the documented shape; its text is a sentence."""


def inspected(data: Any) -> Container:
    """Return the container of an answer of ContainerInspect; raise AnswerError."""
    settings, state = _object(data, "NetworkSettings"), _object(data, "State")
    process = state.get("Pid", 0)
    if not isinstance(process, int):
        raise AnswerError("State.Pid of a container is not a number")
    return Container(
        _text(data, "Id"),
        _text(data, "Name").removeprefix("/"),
        _labels(_object(data, "Config")),
        _mode(data),
        process,
        _networks(settings),
        tuple(str(port) for port, bindings in _object(settings, "Ports", default={}).items() if bindings),
    )


def summaries(data: Any) -> list[Summary]:
    """Return the containers of an answer of ContainerList; raise AnswerError."""
    if not isinstance(data, list):
        raise AnswerError("the list of containers is not a list")
    return [_summary(entry) for entry in data]


def _summary(data: Any) -> Summary:
    names = data.get("Names") if isinstance(data, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    own = [name.removeprefix("/") for name in names if "/" not in name.removeprefix("/")]  # others are links
    state = data.get("State") if isinstance(data, Mapping) else None
    networks = _networks(_object(data, "NetworkSettings", default={}))
    return Summary(_text(data, "Id"), own[0] if own else "", _labels(data), _mode(data), state in _ACTIVE, networks)


def joined(summary: Summary, networks: Mapping[str, Any]) -> Container:
    """Return a container that starts, with its addresses by answers of NetworkInspect, by the networks' names."""
    found = []
    for name, data in networks.items():
        member = _object(data, "Containers", default={}).get(summary.id)
        if isinstance(member, Mapping):
            written = (member.get("IPv4Address"), member.get("IPv6Address"))
            found.append(Network(name, tuple(map(_address, filter(None, written)))))
    return Container(summary.id, summary.name, summary.labels, summary.mode, 0, tuple(found))


def _networks(settings: Mapping[str, Any]) -> tuple[Network, ...]:
    networks = _object(settings, "Networks", default={})
    return tuple(Network(str(name), tuple(_addresses(network))) for name, network in networks.items())


def _addresses(network: Any) -> Iterator[Address]:
    if isinstance(network, Mapping):
        for key in ("IPAddress", "GlobalIPv6Address"):
            if network.get(key):
                yield _address(network[key])


def _address(written: Any) -> Address:
    try:
        return ip_address(str(written).partition("/")[0])
    except ValueError:
        raise AnswerError(f"'{shorten(str(written))}' is not an address") from None


def _mode(data: Mapping[str, Any]) -> str:
    return str(_object(data, "HostConfig", default={}).get("NetworkMode", ""))


def _labels(data: Mapping[str, Any]) -> Mapping[str, str]:
    labels = _object(data, "Labels", default={})
    return {str(key): str(value) for key, value in labels.items()}


def _object(data: Any, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    if value is None and default is not None:
        return default
    if not isinstance(value, Mapping):
        raise AnswerError(f"the answer has no object {key}")
    return value


def _text(data: Any, key: str) -> str:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, str) or not value:
        raise AnswerError(f"the answer has no text {key}")
    return value
