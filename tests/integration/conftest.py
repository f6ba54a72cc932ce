"""Fixtures of the tests in namespaces: labs, and one event loop for all traffic hosts."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology
from tests.support.labs import DatapathSettings, Policies, serve, stop_agents

MakeLab = Callable[..., Lab]

# Files that take about a minute or more, the longest first. Workers get files in this order: one that began a long file
# last would leave the others idle at the end (make test).
LONG_FILES = (
    *("test_datapath", "test_http_rules", "test_perflow", "test_rules_guard", "test_source_filter", "test_remote_lab"),
    *("test_stamping", "test_dns_learning", "test_agent", "test_store_members", "test_offload", "test_document_bombs"),
    *(
        "test_containers",
        "test_redirect",
        "test_handover",
        "test_xtables_lock",
        "test_learning",
        "test_cluster",
        "test_provision",
    ),
    *(
        "test_store",
        "test_hostile_store",
        "test_policies",
        "test_workers",
        "test_dns",
        "test_worker_liveness",
        "test_service_map",
    ),
)


@pytest.fixture(scope="session")
def root() -> None:
    """Skip tests that change the kernel's network if they do not run as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces: run it with sudo")


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """Create the event loop of all traffic hosts: ``runner.run(lab.host("front1").ping(…))``."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; within a file, and among other files, keep the order."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_pycollect_makeitem(obj: object) -> None:
    """Add the fixture of the event loop to a test that is a coroutine function."""
    if inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("runner")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in the event loop of the traffic hosts."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    fixtures: dict[str, Any] = pyfuncitem.funcargs
    arguments = {name: fixtures[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    fixtures["runner"].run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="module")
def make_lab(root: None, runner: asyncio.Runner) -> Iterator[MakeLab]:
    """Build a lab with every call, several at the same time; all end with the module. ``options`` go to Topology."""
    with ExitStack() as labs:  # each ends, also if another cannot

        def make(*, memory: bool = False, **options: Any) -> Lab:
            lab = Lab(Topology(new_run_id(), **options), memory=memory)
            labs.callback(lambda: runner.run(lab.down()))
            lab.up()
            return lab

        yield make


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    """Build the module's lab: a network without policy."""
    return make_lab()


@pytest.fixture(scope="module")
def make_bare(make_lab: MakeLab) -> Iterator[MakeLab]:
    """Build labs without servers and agents; no log of an agent may contain a traceback."""
    labs: list[Lab] = []

    def make(**options: Any) -> Lab:
        labs.append(make_lab(**options))
        return labs[-1]

    yield make
    for lab in labs:
        stop_agents(lab)


@pytest.fixture(scope="module")
def make_served(make_bare: MakeLab, runner: asyncio.Runner) -> MakeLab:
    """Build labs with servers on all hosts, but without agents; no log of an agent may contain a traceback."""

    def make(**options: Any) -> Lab:
        lab = make_bare(**options)
        runner.run(serve(lab))
        return lab

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module with ``DATAPATH_SETTINGS`` by each of these settings of the data path."""
    settings = getattr(metafunc.module, "DATAPATH_SETTINGS", None)
    if settings is not None and "datapath" in metafunc.fixturenames:
        metafunc.parametrize("datapath", settings, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    """Return the settings of the data path: one of the module's, or the defaults; a module may override it."""
    settings: DatapathSettings = getattr(request, "param", DatapathSettings(Driver.AUTO.value, "auto"))
    return settings


@pytest.fixture(scope="module")
def driver(datapath: DatapathSettings) -> str:
    """Return the name of the queues' driver."""
    return datapath.driver


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Run agents with default settings in the module's lab; the fixture ``policies`` sets their policies."""
    lab = make_served()
    lab.start_agents(**datapath.settings)
    return lab


@pytest.fixture
def policies(guarded: Lab, runner: asyncio.Runner) -> Iterator[Policies]:
    """Return the policies of ``guarded``; all of them are withdrawn after the test."""
    policies = Policies(guarded)
    yield policies
    runner.run(policies.withdraw_all())
