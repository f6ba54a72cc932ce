"""Questions to a simulation: the port, and the request of layer 7, that options of ``policy trace`` describe."""

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, TlsHello
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.simulation import ECHO_REQUEST, EndPair


def question(port: str | None, http: str | None, dns: str | None, sni: str | None, pair: EndPair) -> TrafficSpec:
    """Return the traffic that the options describe; raise BadInput for options that contradict each other."""
    asked = {option: text for option, text in {"http": http, "dns": dns, "sni": sni}.items() if text is not None}
    if port is None and not asked:
        raise BadInput("what is asked? give --port, as in --port 80/TCP or --port ICMP")
    default = "53/UDP" if dns is not None else "443/TCP" if sni is not None else "80/TCP"
    question = parse_port(port or default, pair.family)
    if len(asked) > 1:
        raise BadInput(f"--{' and --'.join(asked)}: one question at a time; allowed: one of them")
    if dns is not None:
        if question.protocol not in {"TCP", "UDP"}:
            raise BadInput(f"--dns: '{dns}' on {question}; allowed: on a UDP or TCP port")
        return question._replace(request=DnsQuestion(dns))
    if sni is not None:
        if question.protocol != "TCP":
            raise BadInput(f"--sni: '{sni}' on {question}; allowed: on a TCP port")
        return question._replace(request=TlsHello(sni))
    return question if http is None else question._replace(request=_http_request(http, question))


def parse_port(text: str, family: str) -> TrafficSpec:
    """Return the traffic of a written port, as ``80/TCP``; ``family`` of the ends chooses between ICMP and ICMPv6."""
    number, _, protocol = text.partition("/")
    if number.upper() == "ICMP" and (not protocol or (protocol.isdecimal() and int(protocol) <= 255)):
        proto, echo = ECHO_REQUEST[family]
        return TrafficSpec(proto, int(protocol) if protocol else echo)
    ip_protocol = PROTOCOLS.get(protocol.upper() or "TCP")
    if ip_protocol is None or not number.isdecimal() or not 1 <= int(number) <= 65535:
        allowed = "allowed: 1 to 65535 with /TCP (the default), /UDP or /SCTP; ICMP, or ICMP/ and a type from 0 to 255"
        raise BadInput(f"--port: '{text}' is not a port; {allowed}")
    return TrafficSpec(ip_protocol, int(number))


def _http_request(http: str, question: TrafficSpec) -> HttpRequest:
    method, _, path = http.partition(" ")
    if question.protocol != "TCP" or not path.startswith(("/", "http://", "https://")) or not method:
        raise BadInput(
            f"--http: '{http}' on {question}; allowed: a method and a path or URL, as in 'GET /path', on a TCP port"
        )
    return HttpRequest(method, path)
