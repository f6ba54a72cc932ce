"""Rules that keep openings apart from known flows, and within budgets, as text.

A packet belongs to a *known flow* if the kernel's conntrack has confirmed its connection and seen an answer (state
ESTABLISHED). The kernel confirms a connection when its first packet has left the last hook, so only after a worker has
accepted that packet. One-way datagrams stay in state NEW, and are known by the status CONFIRMED. A repeated SYN has it
as well, but it is no packet of a known flow, and neither is an ICMP error (RELATED), which anyone may send about a
flow. All other packets are *openings*: they may open a flow, and a flood consists of them.

Openings within the budgets of their sources have a queue of their own, which floods of other sources do not fill. The
budget of a remote source counts from its second opening on, within seconds: a source address that is forged at random
rarely occurs twice, whereas a real client repeats an unanswered opening. Every other opening is *excess*: it has the
smallest share of a busy worker, and the kernel drops it when a limit for all of them is exceeded.

The kernel keeps a budget as a hash table by source (hashlimit), and finds it by name as long as a rule uses it, with
the rates that it was made with. So the name contains the rate.
"""

from dataclasses import dataclass

from nfq_enforcer.dataplane.rules import packet_mark
from nfq_enforcer.dataplane.rules.packet_mark import FROM_ENDPOINT, KNOWN_SOURCE, TO_ENDPOINT

KNOWN = "NFQE-KNOWN"  # sends packets of known flows to their queues
OPENINGS = "NFQE-OPENINGS"  # sends openings within the budgets to their queue
EXCESS = "NFQE-EXCESS"  # sends other openings to their queue, or drops them
QUEUED = (KNOWN, OPENINGS, EXCESS)  # the chains whose rules send packets to queues

MAX_RATE = 1_000_000  # packets per second; hashlimit has no higher one
_PREFIXES = {4: (32, 24), 6: (64, 48)}  # bits of a remote source, and of its neighbourhood
_WHOLE_ADDRESS = (32, 128)  # bits; iptables-save leaves such a mask out
_SIZE = "--hashlimit-htable-max 65536 --hashlimit-htable-expire 2000"  # sources; ms


@dataclass(frozen=True)
class Budgets:
    """Budgets of openings, in packets per second; each allows as many at once."""

    per_endpoint: int = 1000  # of each address of an endpoint of this node
    per_source: int = 1000  # of each remote source: an IPv4 address, an IPv6 /64
    per_prefix: int = 2000  # of remote sources in an IPv4 /24, an IPv6 /48
    guaranteed: int = 5000  # all openings within these budgets: of endpoints, and again of remote sources
    excess: int = 20_000  # all others; the kernel drops further ones

    def times(self, workers: int) -> "Budgets":
        """Return the budgets of several workers, which share the openings of all sources."""
        shared = (min(rate * workers, MAX_RATE) for rate in (self.guaranteed, self.excess))
        return Budgets(self.per_endpoint, self.per_source, self.per_prefix, *shared)


def split_rules(queue: str, budgets: Budgets | None, version: int) -> list[str]:
    """Return the rules of chain ``queue`` that send each packet to one of the three chains."""
    known = [
        f"-A {queue} -m conntrack --ctstate ESTABLISHED -g {KNOWN}",
        f"-A {queue} ! -p tcp -m conntrack --ctstate NEW --ctstatus CONFIRMED -g {KNOWN}",
    ]
    if budgets is None:
        return [*known, f"-A {queue} -g {OPENINGS}"]
    source, prefix = _PREFIXES[version]
    all_of_endpoints, all_remote = (_budget(f"all-{kind}", budgets.guaranteed) for kind in ("endpoints", "sources"))
    endpoint = f"{_budget('endpoint', budgets.per_endpoint, 128)} {all_of_endpoints}"
    remote = f"{_budget('source', budgets.per_source, source)} {_budget('prefix', budgets.per_prefix, prefix)}"
    return [
        *known,
        f"-A {queue} {packet_mark.match(FROM_ENDPOINT)} {endpoint} -g {OPENINGS}",
        f"-A {queue} {packet_mark.match(TO_ENDPOINT | KNOWN_SOURCE)} {remote} {all_remote} -g {OPENINGS}",
        f"-A {queue} -g {EXCESS}",
    ]


def excess_rules(budgets: Budgets) -> list[str]:
    """Return the rules that drop excess openings beyond the limit."""
    return [f"-A {EXCESS} {_budget('excess', budgets.excess, above=True)} -j DROP"]


def _budget(name: str, rate: int, bits: int | None = None, *, above: bool = False) -> str:
    """Return the match of packets within (or above) a budget: one for each source prefix, or one for all packets."""
    limit = f"-m hashlimit --hashlimit-{'above' if above else 'upto'} {rate}/sec --hashlimit-burst {rate}"
    if bits is None:
        return f"{limit} --hashlimit-name nfqe-{name}-{rate}"
    mask = "" if bits in _WHOLE_ADDRESS else f" --hashlimit-srcmask {bits}"
    return f"{limit} --hashlimit-mode srcip --hashlimit-name nfqe-{name}-{rate} {_SIZE}{mask}"
