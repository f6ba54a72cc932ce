"""What tests in namespaces share: labs, and one event loop for all that speaks to their hosts."""

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology

MakeLab = Callable[..., Lab]


NO_ROOT = pytest.mark.skip(reason="needs root to make network namespaces: run it with sudo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what asks for root where there is none; by a mark, so that pytest says it in one line a file."""
    if os.geteuid() != 0:
        for item in items:
            if "root" in getattr(item, "fixturenames", ()):
                item.add_marker(NO_ROOT)


@pytest.fixture(scope="session")
def root() -> None:
    """Be asked for by what changes the kernel's network."""


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """Give the loop that hosts live in: ``runner.run(lab.host("front1").ping(…))``."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def make_lab(root: None, runner: asyncio.Runner) -> Iterator[MakeLab]:
    """Build labs, side by side if called more than once; they end with the module. Options are Topology's."""
    labs: list[Lab] = []

    def make(**options: int) -> Lab:
        lab = Lab(Topology(new_run_id(), **options))
        labs.append(lab)
        lab.up()
        return lab

    yield make
    for lab in labs:
        runner.run(lab.down())


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    """Give the module's lab: a network without policy."""
    return make_lab()
