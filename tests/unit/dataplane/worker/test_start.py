"""Start of a worker: a replacement starts quickly, because it imports no module that it does not use."""

import subprocess
import sys

UNUSED = ("asyncio", "pydantic", "yaml", "redis", "typer", "rich", "nfq_enforcer.policy")
PROGRAM = f"""
import sys
import nfq_enforcer.dataplane.worker.worker
print(*(name for name in {UNUSED} if name in sys.modules))
"""


def test_a_worker_imports_nothing_of_the_control_plane() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
