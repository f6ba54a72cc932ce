"""Certificates of the agents: TLS 1.3 with certificates on both sides, each for the name of a node.

The names of a certificate are its subject alternative names: ``DNS:NAME``, or ``URI:nfq-enforcer:NAME`` for a node
whose name is none of a host. The common name is not used (RFC 9525).
"""

import ssl
from collections.abc import Mapping
from typing import Any

from nfq_enforcer.agent.peers.section import PeersSection
from nfq_enforcer.errors import NfqError

_URI = "nfq-enforcer:"


def server_context(section: PeersSection) -> ssl.SSLContext:
    """Return the settings of a server that accepts clients with a certificate only; raise NfqError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, section)


def client_context(section: PeersSection) -> ssl.SSLContext:
    """Return the settings of a client; the caller compares the server's name by ``names``; raise NfqError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, section)


def _context(protocol: Any, section: PeersSection) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # it compares DNS names and addresses; see ``names``
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    assert section.cert_file is not None and section.ca_file is not None  # see ``PeersSection``
    for name, file in (("ca_file", section.ca_file), ("cert_file", section.cert_file)):
        try:
            if name == "ca_file":
                context.load_verify_locations(file)
            else:
                context.load_cert_chain(file, section.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            raise NfqError(f"peers.{name} {file} cannot be used: {sentence(error)}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the names of nodes that a verified certificate has."""
    found = (certificate or {}).get("subjectAltName", ())
    hosts = {name for kind, name in found if kind == "DNS"}
    return frozenset(hosts | {name.removeprefix(_URI) for kind, name in found if kind == "URI" and name[:13] == _URI})


def sentence(error: BaseException) -> str:
    """Return an error of TLS, or of the system, as the end of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)
