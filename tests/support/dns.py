"""DNS messages and their packets, for tests; built from bytes, so they can be wrong in every way."""

from tests.support.packets import CLIENT_PORT, datagram, packed

ID = 0x1234
OPT = b"\0\0\x29\x10\0\0\0\x80\0\0\0"  # 4,096 bytes, DO
A, CNAME, AAAA = 1, 5, 28


def encoded(name: str) -> bytes:
    """Return a name in its wire format."""
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, kind: int = A) -> bytes:
    return encoded(name) + kind.to_bytes(2, "big") + b"\0\1"


def query(name: str, kind: int = A, *, ident: int = ID, edns: bool = False) -> bytes:
    head = ident.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0" + (b"\0\1" if edns else b"\0\0")
    return head + question(name, kind) + (OPT if edns else b"")


def record(owner: str, kind: int, data: bytes, ttl: int = 60) -> bytes:
    head = kind.to_bytes(2, "big") + b"\0\1" + ttl.to_bytes(4, "big") + len(data).to_bytes(2, "big")
    return encoded(owner) + head + data


def address(owner: str, text: str, ttl: int = 60) -> bytes:
    """Return an address record."""
    data = packed(text)
    return record(owner, A if len(data) == 4 else AAAA, data, ttl)


def alias(owner: str, target: str, ttl: int = 60) -> bytes:
    """Return a CNAME record."""
    return record(owner, CNAME, encoded(target), ttl)


def answer(name: str, *records: bytes, kind: int = A, ident: int = ID, flags: int = 0x8180) -> bytes:
    counts = b"".join(number.to_bytes(2, "big") for number in (flags, 1, len(records), 0, 0))
    return ident.to_bytes(2, "big") + counts + question(name, kind) + b"".join(records)


def asks(client: str, server: str, message: bytes, port: int = CLIENT_PORT) -> bytes:
    """Return the packet of a query."""
    return datagram(client, server, port, 53, message)


def answers(server: str, client: str, message: bytes, port: int = CLIENT_PORT) -> bytes:
    """Return the packet of an answer."""
    return datagram(server, client, 53, port, message)
