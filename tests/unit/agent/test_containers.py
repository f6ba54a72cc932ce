"""Watches of the daemons that the configuration names."""

import subprocess
import sys
from typing import Any

from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.containers import runs_proxies, watches

NO_REGISTRAR: Any = None


def test_each_daemon_of_the_configuration_has_a_watch() -> None:
    both = {"docker": "unix:///run/docker.sock", "podman": "unix:///run/podman/podman.sock"}

    made = list(watches(Config.model_validate({"containers": both}), "n1", NO_REGISTRAR))

    assert [watch.name for watch in made] == ["docker", "podman"]
    assert [watch.status()["socket"] for watch in made] == ["/run/docker.sock", "/run/podman/podman.sock"]


def test_without_a_daemon_the_client_is_not_imported() -> None:
    program = (
        "import sys; from nfq_enforcer.agent.containers import watches; from nfq_enforcer.agent.config import Config; "
        "assert list(watches(Config(), 'n1', None)) == []; assert 'aiohttp' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_process_named_docker_proxy_is_a_userland_proxy() -> None:
    program = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'docker-proxy'); print(flush=True); sys.stdin.read()"
    arguments = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **arguments) as process:  # type: ignore[call-overload]
        assert process.stdout.readline()
        assert runs_proxies()
