"""Traffic of one process, which a test runs as an endpoint: a server, a client, a connection that stays open.

It is executed by its path, with the standard library only.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable

_V6ONLY = 26


def serve(*ports: str) -> None:
    """Answer on these ports, TCP and UDP, IPv4 and IPv6, until the end."""
    for port in map(int, ports):
        for kind, answer in ((socket.SOCK_STREAM, _accept), (socket.SOCK_DGRAM, _reply)):
            server = socket.socket(socket.AF_INET6, kind)
            server.setsockopt(socket.IPPROTO_IPV6, _V6ONLY, 0)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("::", port))
            if kind == socket.SOCK_STREAM:
                server.listen(64)
            threading.Thread(target=answer, args=(server,)).start()
    print("ready", flush=True)


def _accept(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_echo, args=(connection,)).start()


def _echo(connection: socket.socket) -> None:
    try:
        while data := connection.recv(4096):
            connection.sendall(data)
    except OSError:
        return
    finally:
        connection.close()


def _reply(server: socket.socket) -> None:
    while True:
        data, client = server.recvfrom(4096)
        server.sendto(data, client)


def ask(*attempts: str) -> None:
    """Make attempts, each ``PROTOCOL,ADDRESS,PORT,SECONDS``, at once; print the status of each, in their order."""
    results = [""] * len(attempts)

    def attempt(place: int, text: str) -> None:
        protocol, address, port, seconds = text.split(",")
        results[place] = _exchange(protocol, address, int(port), float(seconds))

    threads = [threading.Thread(target=attempt, args=each) for each in enumerate(attempts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*results, flush=True)


def _exchange(protocol: str, address: str, port: int, seconds: float) -> str:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    with socket.socket(_family(address), kind) as client:
        client.settimeout(seconds)
        try:
            if protocol == "TCP":
                client.connect((address, port))
                client.sendall(b"question")
            else:
                client.sendto(b"question", (address, port))
            return "ok" if client.recv(100) == b"question" else "other"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return type(error).__name__


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def hold(address: str, port: str, cgroup: str = "") -> None:
    """Keep a connection open: for each line of the input, exchange a message and print the status.

    A line ``move`` moves the process into the cgroup first, and ``new`` opens another connection for its message.
    """
    client = socket.create_connection((address, int(port)), timeout=10)
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        order, _, seconds = line.strip().partition(" ")
        if order == "move":
            with open(f"{cgroup}/cgroup.procs", "w") as procs:  # noqa: PTH123 – this program is read in one glance
                procs.write(str(os.getpid()))
        if order == "new":
            print(_exchange("TCP", address, int(port), float(seconds)), flush=True)
            continue
        client.settimeout(float(seconds))
        try:
            client.sendall(b"question")
            status = "ok" if client.recv(100) == b"question" else "closed"
        except TimeoutError:
            status = "timeout"
        except OSError as error:
            status = type(error).__name__
        print(status, flush=True)


def fire(address: str, port: str, number: str) -> None:
    """Send datagrams, each from a socket that is closed at once."""
    for _ in range(int(number)):
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sender:
            sender.sendto(b"fired", (address, int(port)))


def clock(address: str, port: str, number: str) -> None:
    """Connect again and again; print the median and the 99th percentile of the time, in µs."""
    times = []
    for _ in range(int(number)):
        with socket.socket(_family(address)) as client:
            begun = time.perf_counter()
            client.connect((address, int(port)))
            times.append((time.perf_counter() - begun) * 1e6)
    times.sort()
    print(round(times[len(times) // 2]), round(times[len(times) * 99 // 100]), flush=True)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"serve": serve, "ask": ask, "hold": hold, "fire": fire, "clock": clock}
    programs[sys.argv[1]](*sys.argv[2:])
