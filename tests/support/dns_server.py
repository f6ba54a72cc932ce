"""A DNS server on a machine of a lab, whose answers a test chooses, and a client that asks it."""

import os
import select
import socket
import threading
from collections.abc import Callable

import dns.message

from nfq_enforcer.lab.lab import Lab
from tests.support.namespaces import received, within

Respond = Callable[[bytes], list[bytes]]
"""Return the datagrams that answer a query."""

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class DnsServer:
    """DNS server: answers each query by a function, in both families; keeps the queries that reach it."""

    def __init__(self, lab: Lab, machine: str, respond: Respond, port: int = 53) -> None:
        self.queries: list[bytes] = []
        self.respond = respond
        self._sockets = [udp_socket(lab, machine, family, port) for family in _FAMILIES]
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        descriptors = [server.fileno() for server in self._sockets]
        while self._stop not in (ready := select.select([*descriptors, self._stop], [], [])[0]):
            for server in (one for one in self._sockets if one.fileno() in ready):
                query, client = server.recvfrom(65_535)
                self.queries.append(query)
                for answer in self.respond(query):
                    server.sendto(answer, client)

    def close(self) -> None:
        os.close(self._stopper)
        self._thread.join()
        os.close(self._stop)
        for server in self._sockets:
            server.close()


def udp_socket(lab: Lab, machine: str, family: int, port: int = 0) -> socket.socket:
    """Return a UDP socket of a machine on every address of a family."""

    def make() -> socket.socket:
        made = socket.socket(_FAMILIES[family], socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", port))
        return made

    return within(lab, machine, make)


class DnsClient:
    """DNS client: one connected socket, as a stub resolver has, so that only its server can answer it."""

    def __init__(self, lab: Lab, machine: str, server: str, family: int, port: int = 53) -> None:
        self._socket = udp_socket(lab, machine, family)
        self._socket.connect((str(lab.address(server, family)), port))

    def ask(self, message: bytes, timeout: float) -> bytes | None:
        """Return the answer to a message, None after the timeout."""
        self._socket.send(message)
        found = received(self._socket, timeout)
        return found[0] if found else None

    def rcode(self, message: bytes, timeout: float) -> int | None:
        """Return the response code of the answer to a query, None without one."""
        heard = self.ask(message, timeout)
        return None if heard is None else int(dns.message.from_wire(heard).rcode())

    def close(self) -> None:
        self._socket.close()
