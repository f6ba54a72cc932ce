"""Catalogue of all faults, in the order of the table."""

import asyncio

from tests.faults import changes, jumps, processes, resources, rules, stores
from tests.faults.fault import Fault
from tests.faults.stage import Stage


async def _nothing(_: Stage, __: int) -> None:
    await asyncio.sleep(1.0)


_BY_SUBJECT = (changes, rules, processes, stores, resources, jumps)
FAULTS = [Fault("none", _nothing), *(fault for subject in _BY_SUBJECT for fault in subject.FAULTS)]
