"""The demo over ssh on the machines of the Vagrantfile, each a network namespace of a copy of this host.

The Vagrantfile's own script connects the machines, creates and registers their endpoints, and sets up ssh. ssh is
OpenSSH, with its server on each machine.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_provision import ENDPOINTS, SCRIPTS
from tests.support.copies import PATIENCE, Copy, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("sshd", path="/usr/sbin") is None, reason="needs OpenSSH's server"),
]

STORE = "store"
ADDRESSES = {STORE: "172.31.0.200", "n1": "172.31.0.11", "n2": "172.31.0.12", "n3": "172.31.0.13"}
ENDPOINTS_OF = {
    "n1": ["front1=frontend", "back1=backend"],
    "n2": ["front2=frontend", "back2=backend"],
    "n3": ["db3=db", "front3=frontend", "n3=monitor"],
}
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: mine}
spec: {endpointSelector: {matchLabels: {role: db}}, ingress: [{}]}
"""
MACHINES = "/etc/nfq-enforcer/machines.yaml"
PROGRAM = str(Path(sys.executable).with_name("nfq-enforcer"))


@pytest.fixture(scope="module", name="copy")
def cluster_copy(root: None) -> Iterator[Copy]:
    """Build a copy of this host with a cluster of four machines in it."""
    with Copy() as copy:
        copy.build_segment(ADDRESSES, STORE)
        copy.run(ENDPOINTS, "router", at=STORE)
        for node, own in ENDPOINTS_OF.items():
            copy.run(ENDPOINTS, "network", node[1], *own, at=node)
        copy.run("ln", "-s", PROGRAM, "/usr/local/bin/nfq-enforcer")
        copy.run("mkdir", "-p", "/etc/nfq-enforcer", "/run/sshd")
        start_ssh(copy)
        copy.start("redis-server", "--bind", ADDRESSES[STORE], "--protected-mode", "no", "--save", "", at=STORE)
        agents = [start_agent(copy, node) for node in ENDPOINTS_OF]
        for node, own in ENDPOINTS_OF.items():
            copy.run("ln", "-sfn", socket(node), socket("agent"))  # the script uses the default socket
            copy.run(ENDPOINTS, "register", node[1], *own, at=node)
        machines = yaml.safe_load((SCRIPTS / "machines.yaml").read_text())
        for machine in machines["machines"]:
            if machine["name"] in ENDPOINTS_OF:
                machine["socket"] = socket(machine["name"])
        copy.file(MACHINES).write_text(yaml.safe_dump(machines))
        yield copy
        for agent in agents:
            agent.terminate()
            agent.wait(PATIENCE)


def start_ssh(copy: Copy) -> None:
    copy.run("ssh-keygen", "-A")
    copy.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/nfq-enforcer/key")
    copy.run(ENDPOINTS, "operator", "/etc/nfq-enforcer/key", at="n1")
    copy.run(ENDPOINTS, "operated", "/etc/nfq-enforcer/key.pub", at="n2")
    for machine in (STORE, "n2", "n3"):
        copy.start("/usr/sbin/sshd", "-D", "-e", "-o", "UsePAM=no", at=machine)


def socket(name: str) -> str:
    return f"/run/nfq-enforcer/{name}.sock"


def start_agent(copy: Copy, node: str) -> "subprocess.Popen[str]":
    settings = {
        "node": {
            "name": node,
            "ips": [ADDRESSES[node], f"fd00:31::1{node[1]}"],
            "cluster_interfaces": ["eth1"],
        },
        "store": f"redis://{ADDRESSES[STORE]}",
        "state": f"/var/lib/nfq-enforcer-{node}",
        "api": {"socket": socket(node)},
    }
    copy.file(f"/etc/nfq-enforcer/{node}.yaml").write_text(yaml.safe_dump(settings))
    until(lambda: copy.attempt("redis-cli", "-h", ADDRESSES[STORE], "PING", at=node).stdout == "PONG\n")
    return copy.start_agent("--config", f"/etc/nfq-enforcer/{node}.yaml", at=node)


def policies(copy: Copy) -> list[str]:
    rows = json.loads(copy.run("nfq-enforcer", "policy", "list", "-o", "json", "--socket", socket("n1"), at="n1"))
    return [row["name"] for row in rows]


def attempt(copy: Copy, machines: str = MACHINES) -> "subprocess.CompletedProcess[str]":
    return copy.attempt("nfq-enforcer", "lab", "demo", "--hosts", machines, at="n1")


def load(copy: Copy, text: str) -> None:
    """Load policies from standard input, as an operator would from a pipe."""
    command = copy.command("nfq-enforcer", "policy", "load", "--wait", "-", "--socket", socket("n1"), at="n1")
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def assert_restored(copy: Copy) -> None:
    """Assert that no machine has a policy, a rule or a process of the demo."""
    assert policies(copy) == []
    for tables in ("iptables-save", "ip6tables-save"):
        assert "MASQUERADE" not in copy.run(tables, at=STORE)
    until(lambda: not traffic(copy))


def traffic(copy: Copy) -> list[str]:
    """Return the command lines of the processes that make or capture traffic."""
    return [line for line in copy.processes() if "tcpdump -n -U" in line or "python3 -I -S -c" in line]


def test_the_demo_of_the_lab_plays_on_the_machines_and_leaves_them_as_they_were(copy: Copy) -> None:
    shown = attempt(copy)

    assert (shown.returncode, shown.stderr) == (0, ""), shown.stdout
    assert "734 of 734 observations are as expected." in shown.stdout
    assert "✓ every IPv6 packet between nodes bears a stamp" in shown.stdout
    assert_restored(copy)


def test_an_interrupted_demo_leaves_the_machines_as_they_were(copy: Copy) -> None:
    # The parent of the tests may have set SIGINT to ignored, which children inherit.
    demo = ["env", "--default-signal=INT", "nfq-enforcer", "lab", "demo", "--hosts", MACHINES]
    process = copy.start(*demo, at="n1")
    until(lambda: policies(copy) and traffic(copy))

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode not in {0, 1}
    assert "Traceback" not in output
    assert_restored(copy)


def test_a_cluster_with_policies_of_its_own_is_left_alone(copy: Copy) -> None:
    load(copy, POLICY)

    refused = attempt(copy)
    left = policies(copy)
    copy.run("nfq-enforcer", "policy", "delete", "--wait", "default/mine", "--socket", socket("n1"), at="n1")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "nfq-enforcer: the cluster has policies already, which the demo would mix with its own: mine; "
        "'nfq-enforcer policy delete' takes them back\n"
    )
    assert left == ["mine"]


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("n2", {"ssh": "root@172.31.0.99"}, r"root@172\.31\.0\.99 cannot be reached by ssh: .+"),
        ("n2", {"ips": ["172.31.0.99", "fd00:31::99"]}, r"n2 has no interface with the address 172\.31\.0\.99, .*"),
        ("n2", {"socket": "/run/none.sock"}, r"n2: nfq-enforcer: .*/run/none\.sock.*"),
        ("back2", {"ips": ["10.31.2.99", "fd00:31:2::99"]}, r"the cluster knows no endpoints with .* of back2; .*"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(copy: Copy, part: str, change: Any, message: str) -> None:
    machines = yaml.safe_load(copy.file(MACHINES).read_text())
    next(machine for machine in machines["machines"] if machine["name"] == part).update(change)
    copy.file("/etc/nfq-enforcer/other.yaml").write_text(yaml.safe_dump(machines))

    refused = attempt(copy, "/etc/nfq-enforcer/other.yaml")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(f"nfq-enforcer: {message}", refused.stderr.strip())
    assert policies(copy) == []
