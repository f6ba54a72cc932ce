"""The same churn under address-based rules: what a set-up without identities has to change, and what that costs.

Such a set-up has an ipset for each selector of peers that a policy names, and every address that a selector selects
is an entry of it. So an endpoint that starts or stops changes some sets, on every node that has a policy with one.
"""

import resource
import subprocess
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from tests.support.apart import run_apart

_BATCH = 0.1  # seconds whose changes are restored together
_FIRST, _LATER = IPv4Address("10.64.0.0"), IPv4Address("10.80.0.0")


class Updates(NamedTuple):
    """Entries of sets to be changed each second."""

    node: float  # on the node under measure, which has only the sets that policies of its own endpoints name
    cluster: float  # on all nodes together


def restore(sets: int, entries: int, rate: float, duration: float) -> float:
    """Return how much of a core it takes to add and delete so many entries a second, by ``ipset restore`` in batches.

    ``entries`` are in all the sets together before; half of the changes add one, the other half take the oldest out.
    """
    return run_apart(_restore(sets, entries, rate, duration))


async def _restore(sets: int, entries: int, rate: float, duration: float) -> float:
    names = [f"selector-{number}" for number in range(sets)]
    _run(f"create {name} hash:ip maxelem 1048576" for name in names)
    _run(f"add {names[number % sets]} {_FIRST + number}" for number in range(entries))
    before, begun, done = _spent(), time.perf_counter(), 0
    for batch in range(1, round(duration / _BATCH) + 1):
        due = round(rate * batch * _BATCH / 2)
        _run(_changes(names, range(done, due)))
        done = due
        time.sleep(max(0.0, begun + batch * _BATCH - time.perf_counter()))
    return (_spent() - before) / (time.perf_counter() - begun)


def _changes(names: Sequence[str], numbers: Iterable[int]) -> Iterable[str]:
    for number in numbers:
        name = names[number % len(names)]
        yield f"add {name} {_LATER + number}"
        yield f"del {name} {_LATER + number - len(names)} -exist"


def _run(lines: Iterable[str]) -> None:
    subprocess.run(["ipset", "-exist", "restore"], input="\n".join(lines), text=True, check=True)


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
