"""Socket of ``nfq-enforcer run``: its caller as the kernel names it, and requests that are refused."""

import asyncio
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from nfq_enforcer.agent import config, processes
from nfq_enforcer.agent.run_server import RunServer
from nfq_enforcer.cli import run
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.workloads.processes import Caller, Permission, Processes, Unit
from nfq_enforcer.workloads.registrar import Registrar


class Source:
    """Source of processes that records requests and their callers."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, str, str, Mapping[str, str]]] = []

    async def start(self, caller: Caller, namespace: str, name: str, labels: Mapping[str, str]) -> str:
        self.asked.append((caller, namespace, name, labels))
        if name == "refused":
            raise NfqError("not you")
        return f"/nfqe/{namespace}.{name}"


def ask(folder: Path, line: bytes) -> tuple[dict[str, Any], Source, int]:
    """Send a line; return the answer, the source, and the mode of the socket."""
    source, path = Source(), folder / "run.sock"

    async def scene() -> tuple[bytes, int]:
        server = RunServer(path, cast(Processes, source))
        await server.start()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line + b"\n")
            answer = await reader.readline()
            writer.close()
            return answer, mode
        finally:
            await server.stop()

    answer, mode = asyncio.run(scene())
    return json.loads(answer), source, mode


def test_the_caller_is_the_one_that_the_kernel_names(tmp_path: Path) -> None:
    request = {"method": "run", "params": {"name": "web", "labels": {"role": "web"}, "pid": 1, "uid": 0}}
    answer, source, mode = ask(tmp_path, json.dumps(request).encode())

    assert answer == {"result": {"endpoint": "default/web", "cgroup": "/nfqe/default.web"}}
    ((caller, namespace, name, labels),) = source.asked
    assert (caller.pid, caller.uid) == (os.getpid(), os.getuid())
    assert caller.gids == {os.getgid(), *os.getgroups()}
    assert (namespace, name, labels) == ("default", "web", {"role": "web"})
    assert mode == 0o666


@pytest.mark.parametrize(
    ("line", "says", "status"),
    [
        (b'{"method": "apply"}', "unknown method; allowed: run", 2),
        (b"[]", "a request is one line of JSON", 2),
        (b'{"method": "run", "params": {"name": "a"}}', "labels must be a mapping of strings", 2),
        (b'{"method": "run", "params": {"name": "a", "labels": {"a": 1}}}', "labels must be a mapping of strings", 2),
        (b'{"method": "run", "params": {"name": 1, "labels": {}}}', "name must be a string", 2),
        (b'{"method": "run", "params": {"name": "refused", "labels": {}}}', "not you", 1),
    ],
)
def test_a_request_that_is_not_valid_is_refused(tmp_path: Path, line: bytes, says: str, status: int) -> None:
    answer, _, _ = ask(tmp_path, line)

    assert says in answer["error"]
    assert answer["exit_code"] == status


def test_the_socket_is_beside_that_of_the_api_where_the_command_looks_for_it() -> None:
    assert str(config.Config().run_socket) == run._DEFAULT
    own = config.Config(api=config.ApiSection(socket="/run/x/n1.sock"))
    assert str(own.run_socket) == run._beside("/run/x/n1.sock") == "/run/x/n1-run.sock"


def test_the_configuration_names_users_groups_and_units(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "processes:\n  allow:\n  - {user: root, labels: {a: b}}\n  - {group: 7, namespace: shop}\n  - {user: 5}\n"
        "  - {group: root}\n"
        "  units:\n  - {unit: nginx.service}\n  - {unit: a-b@1.service, namespace: shop}\n"
        "  - {cgroup: /x.slice/y, name: other, labels: {c: d}}\n"
    )
    source = processes.source(config.load(file, {}), cast(Registrar, None))

    assert source._permissions == (
        Permission(0, None, "default", {"a": "b"}),
        Permission(None, 7, "shop", {}),
        Permission(5, None, "default", {}),
        Permission(None, 0, "default", {}),
    )
    assert source._units == (
        Unit("/system.slice/nginx.service", "nginx", "default", {}),
        Unit(r"/system.slice/system-a\x2db.slice/a-b@1.service", "a-b-1", "shop", {}),
        Unit("/x.slice/y", "other", "default", {"c": "d"}),
    )


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("allow: [{user: nobody-here}]", "processes.allow[0].user: this host has no user 'nobody-here'"),
        ("allow: [{user: 0}, {group: none-here}]", "processes.allow[1].group: this host has no group 'none-here'"),
        ("allow: [{labels: {a: b}}]", "one of 'user' and 'group' is needed"),
        ("allow: [{user: a, group: b}]", "one of 'user' and 'group' is needed"),
        ("units: [{labels: {a: b}}]", "one of 'unit' and 'cgroup' is needed"),
        ("units: [{cgroup: /a}]", "a cgroup needs a 'name'"),
        ("units: [{unit: nginx}]", "'nginx' is not a unit; allowed: a service"),
        ("cgroup: nfqe", "'nfqe' is not the path of a cgroup"),
    ],
)
def test_a_configuration_that_is_not_valid_is_said(tmp_path: Path, section: str, says: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"processes:\n  {section}\n")

    with pytest.raises(BadInput) as caught:
        processes.source(config.load(file, {}), cast(Registrar, None))
    assert says in str(caught.value)
