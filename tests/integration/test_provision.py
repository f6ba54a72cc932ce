"""The set-up script for real hosts: its files and modes, and the operation of a store and a node that it has set up.

The script changes files under /etc, /opt and /usr of a host. It runs in a copy of this host: an overlay over all of its
files, in a mount namespace of its own, with network namespaces that exist in this mount namespace only. The kernel
removes all of it after the namespace's last process.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

import nfq_enforcer
from nfq_enforcer.store.redis.commands import Commands
from nfq_enforcer.store.redis.connection import check
from tests.support.copies import PATIENCE, Copy, until
from tests.support.redis_servers import RedisServer
from tests.support.store_steps import take_every_step

pytestmark = pytest.mark.timeout(600)  # the installation of the program takes most of this time

REPOSITORY = Path(nfq_enforcer.__file__).parents[1]
SCRIPTS = REPOSITORY / "nfq_enforcer" / "systemd"
PROVISION, ENDPOINTS = str(SCRIPTS / "provision.sh"), str(SCRIPTS / "endpoints.sh")
N1, N2, STORE = "n1", "n2", "store"
ADDRESSES = {N1: "172.31.0.11", N2: "172.31.0.12", STORE: "172.31.0.200"}
PASSWORD = "/etc/nfq-enforcer/store-password"
CONFIGURATION = "/etc/nfq-enforcer/agent.yaml"


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[Copy]:
    """Build a copy of this host with the network namespaces of a store and two nodes, on one segment."""
    with Copy() as copy:
        copy.build_segment(ADDRESSES, STORE)
        yield copy


@pytest.fixture(scope="module")
def installed(host: Copy) -> Copy:
    """Install the program in the copy, which needs the host's own network for its downloads."""
    output = host.run(PROVISION, "node", "--store", "memory:")
    assert "installing the program in /opt/nfq-enforcer" in output
    return host


@pytest.fixture(scope="module")
def store(host: Copy) -> Copy:
    """Run a store in the copy, started with the command that the script prints."""
    output = host.run(PROVISION, "store", "--bind", ADDRESSES[STORE], at=STORE)
    (command,) = (line.partition("this starts it: ")[2] for line in output.splitlines() if "this starts it" in line)
    server = host.start(*command.split(), at=STORE)
    until(lambda: "PONG" in redis(host, "PING") or server.poll() is not None)
    assert server.poll() is None, server.communicate()[0]
    return host


def redis(host: Copy, *command: str, user: str = "nfqe", password: str | None = None) -> str:
    """Run a Redis command from a node; return the store's reply."""
    secret = host.file(PASSWORD).read_text().strip() if password is None else password
    login = ["--user", user, "--pass", secret, "--no-auth-warning"] if user else []
    return host.attempt("redis-cli", "-h", ADDRESSES[STORE], *login, *command, at=N1).stdout.strip()


def file_states(host: Copy, *folders: str) -> dict[str, tuple[int, int, int, int]]:
    """Return mode, owner, size and modification time of every file below these folders."""
    return {
        str(file): (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
        for folder in folders
        for file in host.file(folder).rglob("*")
        for status in [file.lstat()]
    }


def test_the_store_is_started_with_its_own_files(store: Copy) -> None:
    assert store.mode("/etc/redis/redis-nfq-enforcer.conf") == ("640", "root", "redis")
    assert store.mode(PASSWORD) == ("600", "root", "root")
    assert store.mode("/var/lib/redis/nfq-enforcer") == ("750", "redis", "redis")
    assert store.file("/var/lib/redis/nfq-enforcer/appendonlydir").is_dir()
    assert store.file(PASSWORD).read_text().strip() not in store.file("/etc/redis/redis-nfq-enforcer.conf").read_text()


def test_only_the_user_of_the_nodes_can_log_in_to_the_store(store: Copy) -> None:
    assert redis(store, "PING") == "PONG"
    assert redis(store, "PING", user="").startswith("NOAUTH")
    for user, password in (("default", None), ("default", ""), ("nfqe", "wrong"), ("nfqe", "")):
        reply = redis(store, "PING", user=user, password=password)
        assert "NOAUTH" in reply or "WRONGPASS" in reply or reply == "", (user, reply)


@pytest.mark.parametrize(
    "command, reply",
    [
        (["HSET", "nfqe:a", "field", "1"], "1"),
        (["EVAL", "return redis.call('hget', KEYS[1], 'field')", "1", "nfqe:a"], "1"),
        (["EVAL", "return type(redis.call('time')[1])", "0"], "string"),
        (["XADD", "nfqe:changes", "1-1", "field", "1"], "1-1"),
        (["XSETID", "nfqe:changes", "2-0"], "OK"),
        (["ZADD", "nfqe:z", "1", "a"], "1"),
        (["SADD", "nfqe:s", "a"], "1"),
        (["RPUSH", "nfqe:l", "a"], "1"),
        (["DEL", "nfqe:l"], "1"),
        (["SCRIPT", "LOAD", "return 1"], "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        (["CLIENT", "SETNAME", "nfq-enforcer"], "OK"),
        (["PUBLISH", "nfqe:mail:n1", "message"], "0"),
        (["SUBSCRIBE", "another"], "NOPERM"),
        (["PUBLISH", "another", "message"], "NOPERM"),
        (["SET", "another", "1"], "NOPERM"),
        (["EVAL", "return redis.call('get', 'another')", "0"], ("ERR", "NOPERM")),
        (["FLUSHALL"], "NOPERM"),
        (["KEYS", "*"], "NOPERM"),
        (["CONFIG", "GET", "*"], "NOPERM"),
        (["ACL", "LIST"], "NOPERM"),
        (["SCRIPT", "FLUSH"], "NOPERM"),
        (["FUNCTION", "FLUSH"], "NOPERM"),
        (["CLIENT", "LIST"], "NOPERM"),
    ],
    ids=lambda parameter: " ".join(parameter[:2]) if isinstance(parameter, list) else str(parameter)[:6],
)
def test_a_node_may_use_the_keys_of_its_cluster_and_no_more(
    store: Copy, command: list[str], reply: str | tuple[str, ...]
) -> None:
    assert redis(store, *command).startswith(reply)


def test_a_node_may_ask_what_server_it_is(store: Copy) -> None:
    assert "redis_version:" in redis(store, "INFO", "server")


def test_a_second_run_for_a_store_changes_nothing(store: Copy) -> None:
    before = file_states(store, "/etc", "/var/lib/redis")

    output = store.run(PROVISION, "store", "--bind", ADDRESSES[STORE], at=STORE)

    assert file_states(store, "/etc", "/var/lib/redis") == before
    assert "written" not in output
    assert f"provision.sh node --store 'redis://nfqe@{ADDRESSES[STORE]}:6379' --password-file FILE" in output


def test_the_program_is_installed_with_its_unit(installed: Copy) -> None:
    assert installed.run("/usr/local/bin/nfq-enforcer", "version").strip() == nfq_enforcer.__version__
    assert installed.file("/usr/local/bin/nfq-enforcer").readlink() == Path("/opt/nfq-enforcer/bin/nfq-enforcer")
    assert installed.mode("/etc/systemd/system/nfq-enforcer.service") == ("644", "root", "root")
    unit = installed.file("/etc/systemd/system/nfq-enforcer.service").read_text()
    assert unit == (SCRIPTS / "nfq-enforcer.service").read_text()


def test_the_man_pages_and_the_completion_of_each_shell_are_installed(installed: Copy) -> None:
    share = installed.file("/usr/local/share")
    assert '.TH "NFQ\\-ENFORCER\\-POLICY\\-LOAD" 1' in (share / "man/man1/nfq-enforcer-policy-load.1").read_text()
    for shell, place in {
        "bash": "bash-completion/completions/nfq-enforcer",
        "fish": "fish/vendor_completions.d/nfq-enforcer.fish",
        "zsh": "zsh/site-functions/_nfq-enforcer",
    }.items():
        script = REPOSITORY / "nfq_enforcer" / "cli" / "shells" / f"nfq-enforcer.{shell}"
        assert (share / place).read_text() == script.read_text()


def test_the_repository_is_left_as_it_was(installed: Copy) -> None:
    assert not installed.file(str(REPOSITORY / "nfq_enforcer" / "build")).exists()
    assert {file.name for file in installed.file(str(REPOSITORY / "build")).glob("*")} <= {"man"}  # of ``make man``


def test_a_second_run_for_a_node_changes_nothing(installed: Copy) -> None:
    arguments = ["node", "--store", "memory:", "--interface", "eth1", "--name", N1]
    installed.run(PROVISION, *arguments, at=N1)
    before = file_states(installed, "/etc", "/opt", "/usr/local")

    output = installed.run(PROVISION, *arguments, at=N1)

    assert file_states(installed, "/etc", "/opt", "/usr/local") == before
    assert output == "systemd does not run here; this starts it: nfq-enforcer agent\n"


def test_a_host_that_works_alone_enforces_its_documents(installed: Copy) -> None:
    installed.run(PROVISION, "node", "--store", "memory:", "--interface", "eth1", "--name", N1, at=N1)
    shutil.copy(REPOSITORY / "policies" / "frontend-to-backend.yaml", installed.file("/etc/nfq-enforcer/documents"))

    agent = installed.start_agent(at=N1)
    status = json.loads(installed.run("nfq-enforcer", "status", "-o", "json", at=N1))
    agent.send_signal(signal.SIGTERM)
    agent.wait(PATIENCE)

    assert (status["node"], status["cluster_interfaces"]) == (N1, ["eth1"])
    assert "NFQE" not in installed.run("iptables-save", at=N1)


def configuration(host: Copy) -> Any:
    return yaml.safe_load(host.file(CONFIGURATION).read_text())


def test_a_node_of_a_cluster_is_told_its_store_and_its_password_file(store: Copy, installed: Copy) -> None:
    password = store.file("/root/password")
    password.write_text("of the store\n")
    url = f"redis://nfqe@{ADDRESSES[STORE]}:6379"

    arguments = [
        "node",
        "--store",
        url,
        "--interface",
        ADDRESSES[N1],
        "--name",
        N1,
        "--password-file",
        "/root/password",
    ]
    before = store.file(PASSWORD).read_text()
    try:
        installed.run(PROVISION, *arguments, at=N1)
        installed_password, mode = store.file(PASSWORD).read_text(), store.mode(PASSWORD)
    finally:
        store.file(PASSWORD).write_text(before)

    assert configuration(installed) == {
        "node": {"name": N1, "ips": [ADDRESSES[N1]], "cluster_interfaces": ["eth1"]},
        "store": f"{url}?password_file={PASSWORD}",
        "state": "/var/lib/nfq-enforcer",
    }
    assert installed.mode(CONFIGURATION) == ("600", "root", "root")
    assert (installed_password, mode) == ("of the store\n", ("600", "root", "root"))


def test_the_user_of_the_nodes_may_do_all_that_the_store_does(store: Copy, tmp_path: Path) -> None:
    lines = store.file("/etc/redis/redis-nfq-enforcer.conf").read_text().splitlines()
    (user,) = (line.removeprefix("user ") for line in lines if line.startswith("user nfqe "))
    secret = store.file(PASSWORD).read_text().strip()

    async def use(port: int) -> None:
        login: dict[str, Any] = {"port": port, "username": "nfqe", "password": secret}
        async with aclosing(Redis(**login)) as client, aclosing(Redis(**login)) as reader:
            await check(client)
            await take_every_step(Commands(client, reader, "nfqe"))

    with RedisServer(tmp_path / "server", acl=[user]) as server:
        asyncio.run(use(server.port))


def test_a_node_of_a_cluster_enforces_and_registers_endpoints(store: Copy, installed: Copy) -> None:
    url = f"redis://nfqe@{ADDRESSES[STORE]}:6379"
    login = ["--store", url, "--password-file", PASSWORD]
    installed.run(PROVISION, "node", *login, "--interface", "eth1", "--name", N2, at=N2)
    installed.run(ENDPOINTS, "network", "2", "front2=frontend", "back2=backend", at=N2)

    agent = installed.start_agent(at=N2)
    installed.run(ENDPOINTS, "register", "2", "front2=frontend", "back2=backend", at=N2)
    endpoints = json.loads(installed.run("nfq-enforcer", "endpoint", "list", "-o", "json", at=N2))
    status = json.loads(installed.run("nfq-enforcer", "status", "-o", "json", at=N2))
    agent.send_signal(signal.SIGTERM)
    agent.wait(PATIENCE)

    assert {endpoint["name"]: (endpoint["node"], endpoint["addresses"]) for endpoint in endpoints} == {
        "front2": (N2, ["10.31.2.10", "fd00:31:2::a"]),
        "back2": (N2, ["10.31.2.11", "fd00:31:2::b"]),
    }
    assert (status["store"]["connected"], status["store"]["store"]) == (True, f"{url}/0")


def test_an_option_of_the_url_stays_beside_the_password_file(store: Copy, installed: Copy) -> None:
    installed.run(PROVISION, "node", "--store", "redis://nfqe@h:1/2?prefix=x", "--password-file", PASSWORD)

    assert configuration(installed)["store"] == f"redis://nfqe@h:1/2?prefix=x&password_file={PASSWORD}"


def test_a_configuration_changed_by_hand_is_kept(installed: Copy) -> None:
    installed.run(PROVISION, "node", "--store", "memory:", "--name", "before")
    file, new_file = installed.file(CONFIGURATION), installed.file(f"{CONFIGURATION}.new")
    changed = file.read_text() + "audit: true\n"
    file.write_text(changed)

    done = installed.attempt(PROVISION, "node", "--store", "memory:", "--name", "after")

    assert done.returncode == 0
    assert done.stderr == (
        f"provision.sh: {CONFIGURATION} was changed by hand and is kept; "
        f"the one from these arguments is in {CONFIGURATION}.new\n"
    )
    assert file.read_text() == changed
    assert yaml.safe_load(new_file.read_text())["node"] == {"name": "after"}

    file.unlink()
    installed.run(PROVISION, "node", "--store", "memory:", "--name", "after")
    assert configuration(installed)["node"] == {"name": "after"}
    assert not new_file.exists()


def test_an_interface_that_is_not_there_is_said(installed: Copy) -> None:
    before = installed.file(CONFIGURATION).read_text()

    refused = installed.attempt(PROVISION, "node", "--store", "memory:", "--interface", "eth7", at=N1)

    assert refused.returncode == 1
    assert refused.stderr == ("provision.sh: --interface eth7: no interface has this name or address\n")
    assert installed.file(CONFIGURATION).read_text() == before


def test_endpoints_to_try_with_reach_those_of_the_other_node(host: Copy) -> None:
    for _ in range(2):  # on a new machine, and again as after its restart
        host.run(ENDPOINTS, "network", "1", "front1=frontend", "back1=backend", at=N1)
        host.run(ENDPOINTS, "network", "2", "front2=frontend", "back2=backend", at=N2)

    for address in ("10.31.1.11", "10.31.2.10", "10.31.2.11", "172.31.0.12"):
        await_answer(host, "front1", address)
    for address in ("fd00:31:1::b", "fd00:31:2::a", "fd00:31:2::b", "fd00:31::12"):
        await_answer(host, "front1", address)


def await_answer(host: Copy, source: str, address: str) -> None:
    """Ping until a reply arrives; the first requests after a link comes up may be lost."""
    until(lambda: host.attempt("ping", "-c", "1", "-W", "5", address, at=source).returncode == 0)


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="needs vagrant, which Ubuntu has not got")
def test_vagrant_finds_no_fault_in_the_vagrantfile(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "machines"),
    }

    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "machines" / "operator.pub").read_text().startswith("ssh-ed25519 ")
    assert (tmp_path / "machines" / "store-password").stat().st_mode & 0o777 == 0o600
