"""A transparent TCP proxy, in the place of Envoy: one listener for each slot and IP family, in a process of its own.

It connects to the original destination, from the client's address, with the packet mark of a proxy and the slot; the
client first receives the line ``slot N``. Run as ``python transparent_proxy.py FIRST_PORT SLOT…``; it prints a line
when it listens.
"""

import contextlib
import select
import socket
import sys
import threading

IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK = 19, 75, 36
OF_PROXY = 0x08000000
LOCAL = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def transparent(family: socket.AddressFamily, slot: int) -> socket.socket:
    """Return a socket that may have any address."""
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, SO_MARK, OF_PROXY | slot)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET:
        made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    return made


def listen(family: socket.AddressFamily, first_port: int, slot: int) -> None:
    """Listen for the clients of a slot."""
    listener = transparent(family, slot)
    listener.bind((LOCAL[family], first_port + slot))
    listener.listen(64)
    threading.Thread(target=serve, args=(listener, family, slot), daemon=True).start()


def serve(listener: socket.socket, family: socket.AddressFamily, slot: int) -> None:
    """Serve each client in a thread."""
    while True:
        client, address = listener.accept()
        threading.Thread(target=relay, args=(client, address, family, slot), daemon=True).start()


def relay(client: socket.socket, address: tuple[str, int], family: socket.AddressFamily, slot: int) -> None:
    """Connect to the server of a client, and relay bytes both ways until one of them ends."""
    with client, transparent(family, slot) as server, contextlib.suppress(OSError):
        client.sendall(b"slot %d\n" % slot)
        server.bind((address[0], 0))
        server.connect(client.getsockname()[:2])
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                (server if ready is client else client).sendall(data)


if __name__ == "__main__":
    for number in map(int, sys.argv[2:]):
        for each in LOCAL:
            listen(each, int(sys.argv[1]), number)
    print("listening", flush=True)
    threading.Event().wait()
