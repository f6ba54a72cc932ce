"""Values of the configuration that several sections have."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from nfq_enforcer.policy.fields import MAX_PORT

_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<v4>[^]:[]+)):(?P<port>[0-9]{1,5})")


def host_and_port(written: str) -> tuple[str, int] | None:
    """Return address and port of a text as 127.0.0.1:9962 or [::1]:9962; None for another text."""
    found = _HOST_AND_PORT.fullmatch(written)
    if found is None or not 1 <= int(found["port"]) <= MAX_PORT:
        return None
    try:
        return str(IPv6Address(found["v6"]) if found["v6"] else IPv4Address(found["v4"])), int(found["port"])
    except ValueError:
        return None


def listening_address(example: str, without: str) -> Callable[[str], str]:
    """Return the check of an address with a port, or an empty text, whose errors have these words."""

    def check(written: str) -> str:
        if written and host_and_port(written) is None:
            allowed = f'allowed: as in {example}, or "" for {without}'
            raise ValueError(f"'{written}' is not an address with a port; {allowed}")
        return written

    return check


def absolute_file(path: str) -> str:
    """Return the absolute path of a file; raise ValueError for another one."""
    if not path.startswith("/"):
        raise ValueError(f"'{path}' is not allowed; allowed: the absolute path of a file")
    return path
