"""Last known state on failing disks: the earlier saves are kept, and each error is a sentence."""

import subprocess
import sys
from pathlib import Path

import nfq_enforcer

_ON_SMALL_DISK = 'mount -t tmpfs -o size=600k tmpfs /mnt && exec "$0" -c "$1"'
_FILL_THEN_LOCK = """
import subprocess
from pathlib import Path
from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.schema import StoreEntry
from nfq_enforcer.cluster.records import Kind

def save(state, name, size, **options):
    try:
        state.save([(Kind.NODE, name, StoreEntry(1, bytes(size)))], {"last": name}, **options)
    except NfqError as error:
        print(error)
        return False
    return True

def show(state):
    loaded = state.load()
    print(sorted(name for _, name in loaded.entries), loaded.marks, state.problem)

state = LastState(Path("/mnt/state"), "c")
print(save(state, "n1", 1000), save(state, "n2", 1000))
print(save(state, "n3", 1_000_000), save(state, "n4", 10))
show(state)
print(save(state, "n5", 10, replace=True))
save(state, "n6", 10)
state.close()
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
show(state)
print(save(state, "n7", 10))
subprocess.run(["mount", "-o", "remount,rw", "/mnt"], check=True)
print(save(state, "n8", 10, replace=True))
show(state)
state.close()
"""


def test_a_disk_that_is_full_or_read_only_costs_no_state(root: None) -> None:
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _ON_SMALL_DISK]
    folder = Path(nfq_enforcer.__file__).parents[1]

    done = subprocess.run(
        [*command, sys.executable, _FILL_THEN_LOCK], capture_output=True, text=True, check=False, cwd=folder
    )

    assert done.stderr == ""
    lines = [line.partition("the last known state of the cluster ")[2] or line for line in done.stdout.splitlines()]
    assert lines == [
        "True True",
        "is not to be had: the disk is full",
        lines[2],  # that an earlier save failed
        "False False",
        "['n1', 'n2'] {'last': 'n2'} None",
        "True",
        "['n5', 'n6'] {'last': 'n6'} None",
        "is not to be had: the disk is read-only",
        "False",
        "True",
        "['n8'] {'last': 'n8'} None",
    ]
