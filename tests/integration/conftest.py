"""What tests in namespaces share: labs, and one event loop for all that speaks to their hosts."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology
from tests.support.labs import DatapathSettings, Policies, serve, stop_agents

MakeLab = Callable[..., Lab]


@pytest.fixture(scope="session")
def root() -> None:
    """Skip what needs the kernel's network where it may not be changed."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces: run it with sudo")


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """Give the loop that hosts live in: ``runner.run(lab.host("front1").ping(…))``."""
    with asyncio.Runner() as runner:
        yield runner


def pytest_pycollect_makeitem(obj: object) -> None:
    """Have a test that is a coroutine function ask for the loop that it runs in."""
    if inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("runner")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in the loop of the hosts."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given: dict[str, Any] = pyfuncitem.funcargs
    arguments = {name: given[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    given["runner"].run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="module")
def make_lab(root: None, runner: asyncio.Runner) -> Iterator[MakeLab]:
    """Build labs, side by side if called more than once; they end with the module. Other options are Topology's."""
    labs: list[Lab] = []

    def make(*, memory: bool = False, **options: Any) -> Lab:
        lab = Lab(Topology(new_run_id(), **options), memory=memory)
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


@pytest.fixture(scope="module")
def make_served(make_lab: MakeLab, runner: asyncio.Runner) -> Iterator[MakeLab]:
    """Build labs with servers on all hosts, and no agents yet; when agents end, no log may hold a traceback."""
    made: list[Lab] = []

    def make(**options: Any) -> Lab:
        lab = make_lab(**options)
        made.append(lab)
        runner.run(serve(lab))
        return lab

    yield make
    for lab in made:
        stop_agents(lab)


@pytest.fixture(scope="module")
def datapath() -> DatapathSettings:
    """Give the settings of what packets meet; a module may have its own fixture of this name."""
    return DatapathSettings(Driver.AUTO.value, "auto")


@pytest.fixture(scope="module")
def driver(datapath: DatapathSettings) -> str:
    """Name the driver of the queues."""
    return datapath.driver


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Give the module's lab with agents of the default settings; its policies are those of ``policies``."""
    lab = make_served()
    lab.start_agents(**datapath.settings)
    return lab


@pytest.fixture
def policies(guarded: Lab, runner: asyncio.Runner) -> Iterator[Policies]:
    """Give a place for policies of ``guarded`` that is empty again after the test."""
    policies = Policies(guarded)
    yield policies
    runner.run(policies.withdraw_all())
