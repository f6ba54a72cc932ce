"""ipsets with the addresses of the endpoints of this node, for rules and tools of the administrator.

No rule of ours names them: such a rule could not be restored at boot (docs/decisions/0017-address-marks.md). They are
kept where ipset is installed, and their loss concerns no verdict.
"""

import logging
import re
import shutil
import time
from contextlib import suppress

from nfq_enforcer.dataplane.rules.commands import run
from nfq_enforcer.dataplane.rules.filter_table import Members
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_SETS = {"ends4": ("nfqe-local4", "inet"), "ends6": ("nfqe-local6", "inet6")}
_SIZE = "maxelem 1048576"
_DESTROY_ATTEMPTS, _DESTROY_INTERVAL = 20, 0.1  # s; the kernel releases the sets of removed rules a little later


def render_change(old: Members, new: Members) -> str:
    """Return the input of ``ipset restore -exist`` that changes the members of the sets; empty if none differs."""
    lines: list[str] = []
    for name, (ipset, family) in _SETS.items():
        gone, added = (sorted(map(str, one - other)) for one, other in ((old[name], new[name]), (new[name], old[name])))
        if gone or added:
            lines.append(_create(ipset, family))
            lines += [f"del {ipset} {address}" for address in gone] + [f"add {ipset} {address}" for address in added]
    return "".join(f"{line}\n" for line in lines)


def install(members: Members) -> None:
    """Create the sets with these members, in place of those of an earlier agent; see ``change``."""
    lines = (f"{_create(ipset, family)}\nflush {ipset}\n" for ipset, family in _SETS.values())
    _restore("".join(lines) + render_change(dict.fromkeys(_SETS, frozenset()), members))


def change(old: Members, new: Members) -> None:
    """Change the members, all of them if another program has changed a set; log a warning if the kernel refuses."""
    text = render_change(old, new)
    if text and shutil.which("ipset") is not None:
        if sizes(run(["ipset", "list", "-t"])) == {ipset: len(old[name]) for name, (ipset, _) in _SETS.items()}:
            _restore(text)
        else:
            install(new)


def sizes(listed: str) -> dict[str, int]:
    """Return the number of members of each of our sets, from ``ipset list -t``."""
    found = re.findall(r"^Name: (nfqe-local[46])$.*?^Number of entries: (\d+)$", listed, re.MULTILINE | re.DOTALL)
    return {name: int(number) for name, number in found}


def _create(ipset: str, family: str) -> str:
    return f"create {ipset} hash:ip family {family} {_SIZE}"


def _restore(text: str) -> None:
    if not text or shutil.which("ipset") is None:
        return
    try:
        run(["ipset", "restore", "-exist"], text)
    except NfqError as error:
        _log.warning("the ipsets nfqe-local4 and nfqe-local6 may lack addresses, which concerns no verdict: %s", error)


def remove() -> list[str]:
    """Destroy the sets; return the names of those that this host had. A set that other rules use remains."""
    if shutil.which("ipset") is None:
        return []
    names = {ipset for ipset, _ in _SETS.values()}.intersection(run(["ipset", "list", "-n"]).split())
    return [name for name in sorted(names) if _destroy(name)]


def _destroy(name: str) -> bool:
    for _ in range(_DESTROY_ATTEMPTS):
        with suppress(NfqError):
            run(["ipset", "destroy", name])
            return True
        time.sleep(_DESTROY_INTERVAL)
    return False
