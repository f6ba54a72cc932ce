"""The lab's store: a real Redis server that every node reaches, that restarts after a crash, and ends with the lab."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import LabNetwork, new_run_id
from nfq_enforcer.lab.store import PORT, StoreServer
from nfq_enforcer.lab.topology import NODES, STORE, Topology
from nfq_enforcer.store.address import HostPort, parse


@pytest.fixture
def store(lab: Lab) -> Iterator[StoreServer]:
    """Run the lab's store, empty."""
    server = StoreServer(lab.network)
    server.restart(empty=True)
    yield server
    server.kill()


def redis(lab: Lab, machine: str, *command: str, family: int = 4) -> str:
    """Run a Redis command from a machine of the lab; return the store's reply."""
    argv = ["redis-cli", "-h", str(lab.address(STORE, family)), "-p", str(PORT), *command]
    done = subprocess.run(lab.network.command(machine, argv), capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("machine", [*NODES, "front3"])
def test_it_is_reached_from_everywhere(lab: Lab, store: StoreServer, machine: str, family: int) -> None:
    assert redis(lab, machine, "PING", family=family) == "PONG"


def test_its_address_is_one_that_the_configuration_takes(lab: Lab, store: StoreServer) -> None:
    assert parse(store.url).servers == (HostPort(str(lab.address(STORE)), PORT),)


@pytest.mark.parametrize("end", [StoreServer.kill, StoreServer.stop])
def test_after_a_restart_it_has_what_it_had_at_its_last_save(
    lab: Lab, store: StoreServer, end: Callable[[StoreServer], None]
) -> None:
    redis(lab, "n1", "SET", "k", "saved")
    store.save()
    redis(lab, "n1", "SET", "k", "lost")
    before = store.pid

    end(store)
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    store.restart()

    assert redis(lab, "n1", "GET", "k") == "saved"
    assert store.pid != before


def test_it_can_be_restarted_empty(lab: Lab, store: StoreServer) -> None:
    redis(lab, "n1", "SET", "k", "saved")
    store.save()

    store.restart(empty=True)

    assert redis(lab, "n1", "DBSIZE") == "0"


def test_another_object_of_the_same_lab_can_end_it(lab: Lab, store: StoreServer) -> None:
    StoreServer(lab.network).stop()

    with pytest.raises(subprocess.CalledProcessError):
        redis(lab, STORE, "PING")


def test_there_is_only_one(lab: Lab, store: StoreServer) -> None:
    with pytest.raises(NfqError, match="the lab's store runs already"):
        StoreServer(lab.network).start()

    assert redis(lab, "n1", "PING") == "PONG"


def test_one_that_cannot_start_says_why(lab: Lab, store: StoreServer) -> None:
    store.kill()
    (store.folder / "dump.rdb").write_text("this is no dump")

    with pytest.raises(NfqError, match=r"the lab's store has ended: .*Wrong signature"):
        store.start()


def test_it_ends_with_the_lab(root: None) -> None:
    network = LabNetwork(Topology(new_run_id()))
    network.up()
    server = StoreServer(network)
    server.start()

    network.down()

    server.stop()  # returns at once; it would time out if the server still ran
    assert not server.folder.exists()


def test_of_a_lab_that_is_not_up_it_is_a_sentence(root: None) -> None:
    with pytest.raises(NfqError, match="the lab 'nolab' is not up: see `nfq-enforcer lab up`"):
        StoreServer(LabNetwork(Topology("nolab"))).start()
