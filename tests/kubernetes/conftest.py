"""Fixtures of the tests with a real API server: one cluster for all of them, cleared after each test."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.kubernetes_cluster import Cluster

BUILD = Path(__file__).with_name("build_apiserver.sh")
_CANNOT = 3  # exit status of the script where the server cannot be built


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Return the folder of the binaries; build them if this machine has none yet."""
    if os.geteuid() != 0:
        pytest.skip("they make network namespaces and need root")
    built = subprocess.run([BUILD], capture_output=True, text=True, check=False)
    if built.returncode == _CANNOT:
        pytest.skip(built.stderr.strip().splitlines()[-1])
    assert built.returncode == 0, built.stderr[-4000:]
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def whole_cluster(binaries: Path) -> Iterator[Cluster]:
    """Return a cluster of two nodes: pods of the first by the plugin ptp, of the second by bridge."""
    prefix = f"nk{uuid4().hex[:4]}"
    cluster = Cluster(prefix, binaries, Path("/tmp", prefix), ("ptp", "bridge"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster without pods, policies and agents."""
    yield whole_cluster
    whole_cluster.clear()
