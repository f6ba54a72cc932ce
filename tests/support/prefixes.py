"""Policy documents with many distinct prefixes of several lengths, which do not touch each other, and some nested."""

from collections.abc import Iterator
from ipaddress import ip_address

_HEAD = """---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: many-{number}}}
spec:
  endpointSelector: {{matchLabels: {{role: backend}}}}
  {direction}:
  - {field}:
"""


def document(number: int, entries: int) -> str:
    """Return the document with this number, for backends: ingress from, or with an odd number egress to, its prefixes.

    Odd documents share no addresses with even ones. No address of the lab is among them.
    """
    direction, field = (("ingress", "fromCIDR"), ("egress", "toCIDR"))[number % 2]
    head = _HEAD.format(number=number, direction=direction, field=field)
    return head + "".join(f"    - {prefix}\n" for prefix in prefixes(number * entries, entries))


def documents(number: int, entries: int) -> str:
    """Return the first documents, of so many prefixes each."""
    return "".join(document(one, entries) for one in range(number))


def prefixes(first: int, number: int) -> Iterator[str]:
    """Yield prefixes by their numbers: no two numbers have the same."""
    return (_prefix(*divmod(one, 10)) for one in range(first, first + number))


def _prefix(block: int, kind: int) -> str:
    if kind < 4:  # hosts with gaps: 16 addresses for the four of a block
        return f"{ip_address((100 << 24) + 16 * block + 4 * kind)}/32"
    if kind < 6:
        return f"{ip_address((64 << 24) + (block << 8) + ((kind - 4) << 7))}/{28 + kind - 4}"
    if kind < 8:
        return f"{ip_address((32 << 24) + (block << 8) + ((kind - 6) << 5))}/{24 if kind == 6 else 28}"
    return f"2001:db8:{block >> 8:x}:{(block & 255) << 8:x}::/{64 if kind == 8 else 56}"
