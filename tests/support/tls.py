"""Real TLS: a server with a certificate of its own, and the client's side, in network namespaces."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PATIENCE = 20.0  # s


class Answer(NamedTuple):
    """Answer: the certificate that the client got, and the client's address as the server sees it."""

    certificate: bytes
    seen_as: str


class TlsServer:
    """TLS server: answers each connection with the client's address, then echoes; it counts connections."""

    def __init__(self, directory: Path, listener: Callable[[], socket.socket]) -> None:
        """Make a certificate, and serve the connections of a listening socket in a thread."""
        key, certificate = directory / "tls.key", directory / "tls.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=server"
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
        self.certificate = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        self.connections = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = listener()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with suppress(OSError), accepted, self._context.wrap_socket(accepted, server_side=True) as connection:
            connection.sendall(connection.getpeername()[0].removeprefix("::ffff:").encode())
            while data := connection.recv(1000):
                connection.sendall(data)


def listen(port: int) -> socket.socket:
    """Return a listening socket of both families."""
    return socket.create_server(("::", port), family=socket.AF_INET6, backlog=100, dualstack_ipv6=True)


def context() -> ssl.SSLContext:
    """Return the context of a client that accepts every certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def start_tls(connection: socket.socket, name: str | None) -> tuple[ssl.SSLSocket, Answer] | None:
    """Begin TLS with a server name; return the connection and the answer, None if it has been refused."""
    connection.settimeout(PATIENCE)
    try:
        made = context().wrap_socket(connection, server_hostname=name)
        return made, Answer(made.getpeercert(binary_form=True) or b"", made.recv(1000).decode())
    except (ssl.SSLError, ConnectionError):
        return None


def client_hello(name: str | None) -> bytes:
    """Return the ClientHello of a connection with a server name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context().wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()
