"""Configuration: each key has its default, is set in the file or by a variable, and is refused if invalid."""

import socket
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nfq_enforcer.agent import config, defaults
from nfq_enforcer.agent.config import Config
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.store.address import MEMORY, HostPort, StoreAddress

SECRET = "geheim-s3cret"

DEFAULTS: dict[str, object] = {
    "node": {"name": socket.gethostname(), "ips": (), "cluster_interfaces": (), "cluster_cidrs": (), "labels": {}},
    "cluster": "default",
    "kube_apiserver": (),
    "store": "memory:",  # in a dump
    "state": "/var/lib/nfq-enforcer",
    "documents": (),
    "enforcement": "auto",
    "audit": False,
    "allow_localhost": "always",
    "identity_source": "stamp",
    "identity_labels": (),
    "stamp": {"sign": "off"},
    "fail": "closed",
    "datapath": "per-packet",
    "driver": "auto",
    "queues": "auto",
    "first_queue": 100,
    "conntrack": {"max": 262_144},
    "dns": {"min_ttl": 0},
    "proxy": {"user": 64_931, "first_port": 20_000},
    "containers": {"docker": None, "podman": None},
    "openings": {
        "budgets": True,
        "per_endpoint": 1000,
        "per_source": 1000,
        "per_prefix": 2000,
        "guaranteed": 5000,
        "excess": 20_000,
    },
    "kubernetes": {"enabled": False, "kubeconfig": None, "context": None, "node": None},
    "api": {"socket": "/run/nfq-enforcer/agent.sock", "group": None},
    "peers": {"listen": "", "ca_file": None, "cert_file": None, "key_file": None},
    "metrics": {"address": "127.0.0.1:9962", "flows": 0},
    "processes": {"cgroup": "/nfqe", "socket": None, "allow": (), "units": ()},
    "log": {"level": "info", "format": "text"},
}

# key, a value other than the default in YAML, and the same value in Python
SETTINGS: list[tuple[str, str, object]] = [
    ("node.name", "n1", "n1"),
    ("node.ips", "[192.0.2.1, 'fd00::1']", (ip_address("192.0.2.1"), ip_address("fd00::1"))),
    ("node.cluster_interfaces", "[eth0, eth1]", ("eth0", "eth1")),
    ("node.labels", "{role: gateway}", {"role": "gateway"}),
    ("node.cluster_cidrs", "[10.0.0.0/8, 'fd00::/8']", (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
    ("cluster", "east-1", "east-1"),
    ("kube_apiserver", "[192.0.2.9, 'fd00::9']", (ip_address("192.0.2.9"), ip_address("fd00::9"))),
    ("store", "'memory:'", MEMORY),
    ("store", "redis://h/1", StoreAddress((HostPort("h", 6379),), db=1)),
    ("state", "/srv/state", "/srv/state"),
    ("documents", "[/etc/a, b.yaml]", ("/etc/a", "b.yaml")),
    ("enforcement", "per-endpoint", "per-endpoint"),
    ("audit", "true", True),
    ("allow_localhost", "policy", "policy"),
    ("identity_source", "stamp-or-ipcache", "stamp-or-ipcache"),
    ("identity_labels", "['!version', app]", ("!version", "app")),
    ("stamp.sign", "'off'", "off"),
    ("fail", "open", "open"),
    ("datapath", "per-flow", "per-flow"),
    ("driver", "netfilterqueue", "netfilterqueue"),
    ("driver", "netlink", "netlink"),
    ("queues", "1", 1),
    ("queues", "auto", "auto"),
    ("queues", "256", 256),
    ("first_queue", "0", 0),
    ("first_queue", "65486", 65486),
    ("conntrack.max", "1000", 1000),
    ("dns.min_ttl", "3600", 3600),
    ("proxy.user", "65000", 65_000),
    ("proxy.first_port", "30000", 30_000),
    ("processes.cgroup", "/nfqe/here", "/nfqe/here"),
    ("processes.socket", "/run/x.sock", "/run/x.sock"),
    ("processes.allow", "[{user: 0, labels: {a: b}}]", (config.PermissionSection(user=0, labels={"a": "b"}),)),
    ("processes.units", "[{unit: a.service}]", (config.UnitSection(unit="a.service"),)),
    ("containers.docker", "unix:///run/docker.sock", "unix:///run/docker.sock"),
    ("containers.podman", "unix:///run/podman/podman.sock", "unix:///run/podman/podman.sock"),
    ("openings.budgets", "false", False),
    ("openings.per_endpoint", "1", 1),
    ("openings.per_source", "1000000", 1_000_000),
    ("openings.per_prefix", "500", 500),
    ("openings.guaranteed", "100", 100),
    ("openings.excess", "7", 7),
    ("kubernetes.enabled", "true", True),
    ("kubernetes.kubeconfig", "/root/.kube/config", "/root/.kube/config"),
    ("kubernetes.context", "admin@east", "admin@east"),
    ("kubernetes.node", "worker-1", "worker-1"),
    ("api.socket", "/tmp/agent.sock", "/tmp/agent.sock"),
    ("api.group", "wheel", "wheel"),
    ("metrics.address", "'[fd00::1]:80'", "[fd00::1]:80"),
    ("metrics.address", "''", ""),
    ("metrics.address", "null", ""),
    ("metrics.flows", "500", 500),
    ("log.level", "debug", "debug"),
    ("log.format", "json", "json"),
]

# one line of a file, the place of the error in it, and the message
REFUSED = [
    (
        "nodes: {}",
        "1:1: nodes: unknown field 'nodes'; did you mean 'node'? allowed: node, cluster, kube_apiserver, store, ",
    ),
    ("node: {nmae: x}", "1:8: node.nmae: unknown field 'nmae'; did you mean 'name'? allowed: name, ips, "),
    ("node: 3", "1:7: node: must be a mapping, not a number"),
    ("node: {name: [x]}", "1:14: node.name: must be a string, not a list"),
    ("node: {name: 12}", '1:14: node.name: must be a string, not a number; quote it: "12"'),
    ("node: {name: a b}", "1:14: node.name: 'a b' is not a node's name; allowed: 1 to 253 letters"),
    ("node: {ips: [10.0.0.256]}", "1:14: node.ips[0]: '10.0.0.256' is not an address; allowed: IPv4 or IPv6"),
    ("node: {cluster_interfaces: [eth0/1]}", "1:29: node.cluster_interfaces[0]: 'eth0/1' is not an interface's name"),
    (
        "node: {cluster_cidrs: [10.0.0.1/8]}",
        "1:24: node.cluster_cidrs[0]: '10.0.0.1/8' is not a network; allowed: as in 10.0.0.0/8 or fd00::/8",
    ),
    ("store: http://h", "1:8: store: this is not the address of a store; allowed: memory:, redis://[user["),
    ("store: [redis://h]", "1:8: store: must be a string, not a list"),
    ("store: redis://h:0", "1:8: store: the port of the store is wrong; allowed: 1 to 65535, or none for 6379"),
    ("state: state", "1:8: state: 'state' is not allowed; allowed: the absolute path of a folder"),
    (
        "store: redis://h\ndocuments: [/etc/a]",
        "2:1: documents: documents are watched with the store 'memory:' only; allowed: none, and to load them ",
    ),
    ("documents: /etc/a", "1:12: documents: must be a list, not a string"),
    (
        "kubernetes: {kubeconfig: config}",
        "1:26: kubernetes.kubeconfig: 'config' is not allowed; allowed: the absolute ",
    ),
    ("enforcement: strict", "1:14: enforcement: 'strict' is not allowed; allowed: 'auto', 'per-endpoint', "),
    ('audit: "yes"', "1:8: audit: must be true or false, not a string"),
    ("audit: 1", "1:8: audit: must be true or false, not a number"),
    ("allow_localhost: never", "1:18: allow_localhost: 'never' is not allowed; allowed: 'always' or 'policy'"),
    ("identity_source: ip", "1:18: identity_source: 'ip' is not allowed; allowed: 'stamp' or 'stamp-or-ipcache'"),
    ("cluster: East", "1:10: cluster: 'East' is not a cluster's name; allowed: 1 to 32 lower-case letters"),
    ("kube_apiserver: [10.0.0.0/8]", "1:18: kube_apiserver[0]: '10.0.0.0/8' is not an address; allowed: IPv4 or IPv6"),
    ("identity_labels: ['(a+)++']", "1:18: identity_labels: '(a+)++' is not a regular expression: "),
    ("identity_labels: ['(']", "1:18: identity_labels: '(' is not a regular expression: "),
    ("stamp: {sign: prefer}", "1:15: stamp.sign: signed stamps are not supported by this version; allowed: 'off'"),
    ("stamp: {sign: required}", "1:15: stamp.sign: signed stamps are not supported by this version; allowed: 'off'"),
    ("stamp: {sign: perhaps}", "1:15: stamp.sign: 'perhaps' is not allowed; allowed: 'off'"),
    ("stamp: {sign: off}", '1:15: stamp.sign: must be a string, not a boolean; quote it: "off"'),
    ("fail: ajar", "1:7: fail: 'ajar' is not allowed; allowed: 'closed' or 'open'"),
    ("datapath: none", "1:11: datapath: 'none' is not allowed; allowed: 'per-packet' or 'per-flow'"),
    ("driver: dpdk", "1:9: driver: 'dpdk' is not allowed; allowed: 'auto', 'netlink' or 'netfilterqueue'"),
    ("queues: 0", "1:9: queues: 0 is not allowed; allowed: 'auto', or 1 to 256"),
    ("queues: 257", "1:9: queues: 257 is not allowed; allowed: 'auto', or 1 to 256"),
    ("queues: true", "1:9: queues: True is not allowed; allowed: 'auto', or 1 to 256"),
    ("queues: 1.5", "1:9: queues: 1.5 is not allowed; allowed: 'auto', or 1 to 256"),
    (
        "driver: netfilterqueue\nqueues: 2",
        "2:1: queues: 2 is not supported by the driver 'netfilterqueue'; allowed: 'auto' or 1",
    ),
    (
        "queues: 3\nfirst_queue: 65387",
        "1:1: queues: 3 workers need 150 queues, and from first_queue 65387 on there are numbers for no more than 2 "
        "workers; allowed: 'auto', or 1 to 2",
    ),
    ("first_queue: 65532", "1:14: first_queue: 65532 is out of range; allowed: 0 to 65486"),
    ("first_queue: -1", "1:14: first_queue: -1 is out of range; allowed: 0 to 65486"),
    *(
        (
            f"containers: {{docker: '{wrong}'}}",
            f"1:22: containers.docker: '{wrong}' is not allowed; allowed: a socket of the daemon, as in unix:///run/",
        )
        for wrong in ("/run/docker.sock", "tcp://127.0.0.1:2375", "unix://docker.sock", "")
    ),
    ("containers: {containerd: x}", "1:14: containers.containerd: unknown field 'containerd'; allowed: docker, podman"),
    ("openings: {excess: 0}", "1:20: openings.excess: 0 is out of range; allowed: 1 to 1000000"),
    ("conntrack: {max: 0}", "1:18: conntrack.max: 0 is out of range; allowed: 1 to 100000000"),
    ("conntrack: {max: 1.5}", "1:18: conntrack.max: must be a number, not a fraction"),
    ("api: {socket: 3}", '1:15: api.socket: must be a string, not a number; quote it: "3"'),
    (
        "metrics: {address: 'x:1'}",
        "1:20: metrics.address: 'x:1' is not an address with a port; "
        'allowed: as in 127.0.0.1:9962 or [::1]:9962, or "" for no metrics',
    ),
    *(
        (f"metrics: {{address: '{wrong}'}}", f"1:20: metrics.address: '{wrong}' is not an address with a port; ")
        for wrong in ("127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "[127.0.0.1]:80", ":80", "1.2.3.4:")
    ),
    (
        "peers: {listen: '10.0.0.1'}",
        "1:17: peers.listen: '10.0.0.1' is not an address with a port; "
        'allowed: as in 10.0.0.1:9964 or [::]:9964, or "" for none',
    ),
    (
        "peers: {listen: '10.0.0.1:9964'}",
        "1:1: peers: 'listen', 'ca_file', 'cert_file' and 'key_file' go together; allowed: all or none",
    ),
    (
        "peers: {ca_file: ca.pem}",
        "1:18: peers.ca_file: 'ca.pem' is not allowed; allowed: the absolute path of a file",
    ),
    ("metrics: {address: 9962}", '1:20: metrics.address: must be a string, not a number; quote it: "9962"'),
    ("metrics: {port: 80}", "1:11: metrics.port: unknown field 'port'; allowed: address, flows"),
    ("metrics: {flows: 10001}", "1:18: metrics.flows: 10001 is out of range; allowed: 0 to 10000"),
    ("log: {level: loud}", "1:14: log.level: 'loud' is not allowed; allowed: 'debug', 'info', 'warning' or 'error'"),
    ("log: {format: xml}", "1:15: log.format: 'xml' is not allowed; allowed: 'text' or 'json'"),
    ("- node", "1:1: must be a mapping, not a list"),
    ("just text", "1:1: must be a mapping, not a string"),
    ("audit: [", "2:1: not valid YAML: "),
    ("audit: true\naudit: false", "2:1: duplicate key 'audit'; it is already given in line 1"),
    ("audit: true\n---\nfail: open", "3:1: a second YAML document; a configuration is one"),
]


def nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def variable(key: str) -> str:
    return f"NFQ_ENFORCER_{key.replace('.', '__').upper()}"


def read(loaded: Config, key: str) -> object:
    value: object = loaded
    for part in key.split("."):
        value = getattr(value, part)
    return value


def write(folder: Path, text: str) -> Path:
    file = folder / "agent.yaml"
    file.write_text(text)
    return file


def refusal(path: Path | None, environment: dict[str, str]) -> str:
    with pytest.raises(BadInput) as caught:
        config.load(path, environment)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "null", "node:\nlog: null\nstamp: {sign: }"])
def test_what_a_file_does_not_say_has_its_default(text: str, tmp_path: Path) -> None:
    assert config.load(write(tmp_path, text), {}).model_dump() == DEFAULTS


def test_without_any_file_everything_has_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(defaults, "DEFAULT_PATH", tmp_path / "missing.yaml")

    assert config.load(None, {"PATH": "/bin"}).model_dump() == DEFAULTS


def test_the_file_is_looked_for_where_the_documents_say() -> None:
    assert Path("/etc/nfq-enforcer/agent.yaml") == defaults.DEFAULT_PATH


@pytest.mark.parametrize(
    ("written", "listening"),
    [("", None), ("127.0.0.1:9962", ("127.0.0.1", 9962)), ("[::]:1", ("::", 1)), ("[0:0::1]:65535", ("::1", 65535))],
)
def test_where_metrics_are_to_be_had(written: str, listening: tuple[str, int] | None) -> None:
    assert config.MetricsSection(address=written).listening == listening


@pytest.mark.parametrize(("key", "written", "value"), SETTINGS)
def test_a_key_can_be_set_in_the_file(key: str, written: str, value: object, tmp_path: Path) -> None:
    file = write(tmp_path, yaml.safe_dump(nested(key, yaml.safe_load(written))))

    assert read(config.load(file, {}), key) == value


@pytest.mark.parametrize(("key", "written", "value"), SETTINGS)
def test_a_key_can_be_set_by_a_variable(key: str, written: str, value: object, tmp_path: Path) -> None:
    assert read(config.load(write(tmp_path, ""), {variable(key): written}), key) == value


def test_every_key_is_among_those_that_can_be_set() -> None:
    leaves = {
        key if not isinstance(value, dict) else f"{key}.{inner}"
        for key, value in DEFAULTS.items()
        for inner in (value if isinstance(value, dict) else [""])
    }

    assert {key for key, _, _ in SETTINGS} == leaves - {f"peers.{name}" for name in PEERS}  # these go together


PEERS = {"listen": "'[::]:9964'", "ca_file": "/ca.crt", "cert_file": "/n1.crt", "key_file": "/n1.key"}


def test_the_keys_of_peers_can_be_set_by_variables_together(tmp_path: Path) -> None:
    environment = {variable(f"peers.{name}"): written for name, written in PEERS.items()}

    loaded = config.load(write(tmp_path, ""), environment).peers

    assert (loaded.listening, loaded.ca_file) == (("::", 9964), "/ca.crt")
    assert (loaded.cert_file, loaded.key_file) == ("/n1.crt", "/n1.key")


@pytest.mark.parametrize("missing", PEERS)
@pytest.mark.parametrize("text", ["", "fail: open"])
def test_a_key_of_peers_alone_is_refused(missing: str, text: str, tmp_path: Path) -> None:
    environment = {variable(f"peers.{name}"): written for name, written in PEERS.items() if name != missing}

    message = refusal(write(tmp_path, text), environment)

    assert message.endswith("peers: 'listen', 'ca_file', 'cert_file' and 'key_file' go together; allowed: all or none")


def test_a_variable_wins_over_the_file_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    file = write(tmp_path, "node: {name: of-the-file, cluster_interfaces: [eth0]}\nfail: open")

    loaded = config.load(file, {"NFQ_ENFORCER_NODE__NAME": "of-the-variable"})

    assert (loaded.node.name, loaded.node.cluster_interfaces, loaded.fail) == ("of-the-variable", ("eth0",), "open")


def test_a_variable_may_hold_a_whole_section_and_another_one_a_key_of_it(tmp_path: Path) -> None:
    environment = {"NFQ_ENFORCER_LOG": "{level: debug, format: json}", "NFQ_ENFORCER_LOG__LEVEL": "error"}

    loaded = config.load(write(tmp_path, ""), environment)

    assert (loaded.log.level, loaded.log.format) == ("error", "json")


def test_the_variable_that_names_the_file_is_no_setting(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, ""), {"NFQ_ENFORCER_CONFIG": "/a/file"}).model_dump() == DEFAULTS


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_a_wrong_file_is_refused_with_place_field_and_what_is_allowed(text: str, expected: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)

    assert refusal(file, {}).startswith(f"{file}:{expected}")


def test_all_that_is_wrong_with_a_file_is_told_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "fail: ajar\naudit: 1\n")

    places = [line.split(": ")[0] for line in refusal(file, {}).splitlines()]

    assert places == [f"{file}:1:7", f"{file}:2:8"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NODE__NAEM", "x", "node.naem: unknown field 'naem'; did you mean 'name'? allowed: name, ips, "),
        (
            "NODES",
            "{}",
            "nodes: unknown field 'nodes'; did you mean 'node'? allowed: node, cluster, kube_apiserver, store, ",
        ),
        ("NODE__NAME__FIRST", "x", "node.name: must be a string, not a mapping"),
        ("STORE", "http://h", "store: this is not the address of a store; allowed: memory:, redis://[user["),
        ("STORE", "redis://h/x", "store: the database of the store is wrong; allowed: 0 to 65535, as in redis"),
        ("METRICS__ADDRESS", "x:1", "metrics.address: 'x:1' is not an address with a port; allowed: as in "),
        ("STAMP__SIGN", "required", "stamp.sign: signed stamps are not supported by this version; allowed: 'off'"),
        ("STAMP__SIGN", "off", 'stamp.sign: must be a string, not a boolean; quote it: "off"'),
        ("DATAPATH", "per-node", "datapath: 'per-node' is not allowed; allowed: 'per-packet' or 'per-flow'"),
        ("DRIVER", "dpdk", "driver: 'dpdk' is not allowed; allowed: 'auto', 'netlink' or 'netfilterqueue'"),
        ("QUEUES", "many", "queues: 'many' is not allowed; allowed: 'auto', or 1 to 256"),
        ("FIRST_QUEUE", "70000", "first_queue: 70000 is out of range; allowed: 0 to 65486"),
        ("AUDIT", "maybe", "audit: must be true or false, not a string"),
        ("NODE__IPS", "192.0.2.1", "node.ips: must be a list, not a string"),
        ("NODE", "{name: 12}", 'node.name: must be a string, not a number; quote it: "12"'),
        ("FAIL", "", "fail: '' is not allowed; allowed: 'closed' or 'open'"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_name_and_what_is_allowed(
    name: str, value: str, expected: str, tmp_path: Path
) -> None:
    message = refusal(write(tmp_path, ""), {f"NFQ_ENFORCER_{name}": value})

    assert message.startswith(f"environment variable NFQ_ENFORCER_{name}: {expected}")


@pytest.mark.parametrize(
    ("value", "expected"), [("[", "2:1: not valid YAML: "), ("a\n---\nb", "3:1: a second YAML doc")]
)
def test_a_variable_that_is_not_one_yaml_value_is_refused(value: str, expected: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), {"NFQ_ENFORCER_FAIL": value})

    assert message.startswith(f"environment variable NFQ_ENFORCER_FAIL:{expected}")


@pytest.mark.parametrize("place", ["file", "variable", "both"])
def test_documents_and_a_store_exclude_each_other_wherever_they_are_said(place: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"file": "documents: [/a]", "variable": "", "both": "documents: [/b]"}[place])
    environment = {"NFQ_ENFORCER_STORE": "redis://h"}
    environment |= {"NFQ_ENFORCER_DOCUMENTS": "[/a]"} if place != "file" else {}

    expected = refusal(file, environment)

    where = f"{file}:1:1" if place == "file" else "environment variable NFQ_ENFORCER_DOCUMENTS"
    assert expected.startswith(f"{where}: documents: documents are watched with the store 'memory:' only; ")


def test_documents_that_a_variable_takes_away_are_not_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "documents: [/a]")

    loaded = config.load(file, {"NFQ_ENFORCER_STORE": "redis://h", "NFQ_ENFORCER_DOCUMENTS": "[]"})

    assert (str(loaded.store), loaded.documents) == ("redis://h:6379/0", ())


def test_no_text_of_a_configuration_holds_the_password(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, ""), {"NFQ_ENFORCER_STORE": f"redis://eve:{SECRET}@h"})

    assert loaded.store.password is not None
    assert loaded.store.password.get_secret_value() == SECRET
    for text in (repr(loaded), str(loaded), repr(loaded.model_dump()), loaded.model_dump_json()):
        assert "eve" in text
        assert SECRET not in text


@pytest.mark.parametrize(
    "store",
    [
        f"redis://eve:{SECRET}",
        f"redis://:{SECRET}/@h",
        f"redis://:{SECRET}@h:0",
        f"redis://:{SECRET}@h?password={SECRET}",
        f"redis://:{SECRET}@h?{SECRET}",
        f"redis://:%{SECRET}@h",
        f"[redis://:{SECRET}@h]",
        f"{{redis: '{SECRET}'}}",
        f"http://:{SECRET}@h",
        f"redis://:{SECRET}@h: x: y",
    ],
)
def test_no_error_about_a_store_holds_the_password(store: str, tmp_path: Path) -> None:
    in_file = refusal(write(tmp_path, f"store: {store}"), {})
    in_variable = refusal(write(tmp_path, ""), {"NFQ_ENFORCER_STORE": store})
    with pytest.raises(ValidationError) as raw:
        Config.model_validate({"store": [store]})

    assert SECRET not in in_file + in_variable + str(raw.value)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"

    assert refusal(missing, {}) == f"{missing}: no such file; name a configuration with --config"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {}) == f"{tmp_path}: cannot be read: it is a folder; allowed: a regular file"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_bytes(b"audit: \xff")

    assert refusal(file, {}) == f"{file}:1:8: byte 0xff is not UTF-8; documents are UTF-8 text"


def test_the_mode_is_the_compilers() -> None:
    assert Config(enforcement="per-endpoint").mode is Enforcement.PER_ENDPOINT


def test_a_host_name_that_no_document_could_bear_is_taken_as_it_is() -> None:
    program = (
        "import socket; socket.gethostname = lambda: '(none)'\n"  # the kernel's host name before it is set
        "from nfq_enforcer.agent.config import Config; print(Config().node.name)"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (run.stdout, run.stderr) == ("(none)\n", "")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("kubernetes: {enabled: true}", "per-endpoint"),
        ("kubernetes: {enabled: true}\nenforcement: ", "per-endpoint"),
        ("kubernetes: {enabled: true}\nenforcement: always", "always"),
        ("kubernetes: {enabled: false}", "auto"),
    ],
)
def test_with_kubernetes_enforcement_is_that_of_kubernetes_by_default(text: str, mode: str, tmp_path: Path) -> None:
    assert config.load(write(tmp_path, text), {}).enforcement == mode
