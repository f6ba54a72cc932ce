"""Rendering of the layer-7 message of a flow event: in Hubble's field names, and as a summary."""

from ipaddress import ip_address
from typing import Any

from nfq_enforcer.core.events import DnsMessage, HttpMessage, L7Message, TlsMessage

L7Fields = dict[str, Any]

DNS_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV"}
DNS_TYPES |= {35: "NAPTR", 43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA"}
_RCODES = ("no error", "format error", "server failure", "name does not exist", "not implemented", "refused")


def render(message: L7Message) -> L7Fields:
    """Return a message in Hubble's field names, with ``tls`` for a ClientHello."""
    if isinstance(message, TlsMessage):
        return {"type": "REQUEST", "tls": {"server_name": message.server_name} if message.server_name else {}}
    if isinstance(message, DnsMessage):
        return {"type": "RESPONSE" if message.is_answer else "REQUEST", "dns": _dns(message)}
    # a number of 64 bits is a string in Hubble's JSON form
    latency = {"latency_ns": str(message.latency_ns)} if message.latency_ns else {}
    return {"type": "RESPONSE" if message.is_response else "REQUEST", **latency, "http": _http(message)}


def _http(message: HttpMessage) -> L7Fields:
    """Return an HTTP message in Hubble's field names, which have the status of gRPC as a header."""
    headers = list(message.headers)
    if message.grpc_status is not None:
        headers.append(("grpc-status", str(message.grpc_status)))
    http: L7Fields = {
        "code": message.code,
        "method": message.method,
        "url": message.url,
        "protocol": message.protocol,
        "headers": [{"key": name, "value": value} for name, value in headers],
    }
    return {field: value for field, value in http.items() if value}


def _http_summary(message: HttpMessage) -> str:
    """Return the words of Hubble: ``HTTP/1.1 GET http://…``, ``HTTP/1.1 200 12ms (GET http://…)``."""
    request = f"{message.method} {message.url}"
    if not message.is_response:
        return f"{message.protocol} {request}"
    return f"{message.protocol} {message.code} {message.latency_ns // 1_000_000}ms ({request})"


def _dns(message: DnsMessage) -> L7Fields:
    """Return a DNS message in Hubble's field names; zeros and empty lists are left out, as in its JSON form."""
    dns: L7Fields = {
        "query": f"{message.name}.",
        "ips": [str(ip_address(address)) for address in message.addresses],
        "ttl": message.ttl,
        "cnames": [f"{name}." for name in message.aliases],
        "observation_source": "proxy",
        "rcode": message.rcode,
        "qtypes": [_dns_type(message)],
    }
    return {field: value for field, value in dns.items() if value}


def _dns_type(message: DnsMessage) -> str:
    return DNS_TYPES.get(message.type, f"TYPE{message.type}")  # RFC 3597 section 5


def _dns_summary(message: DnsMessage) -> str:
    query = f"{message.name}. {_dns_type(message)}"
    if not message.is_answer:
        return f"DNS query {query}"
    words = [", ".join(str(ip_address(address)) for address in message.addresses)]
    if message.rcode or not message.addresses:
        words = [_RCODES[message.rcode] if message.rcode < len(_RCODES) else f"rcode {message.rcode}"]
    words += [f"TTL {message.ttl} s"] if message.addresses else []
    words += [f"by {', '.join(f'{name}.' for name in message.aliases)}"] if message.aliases else []
    return f"DNS answer {' '.join(words)} to {query}"


def summary(message: L7Message) -> str:
    """Return a message in a few words."""
    if isinstance(message, HttpMessage):
        return _http_summary(message)
    if isinstance(message, TlsMessage):
        return f"TLS to {message.server_name or 'no server name'}"
    return _dns_summary(message)
