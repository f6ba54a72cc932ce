"""A Kubernetes cluster in network namespaces: a real kube-apiserver with etcd, real CNI plugins, real agents.

     api (kube-apiserver, etcd, Redis) ──┐
     n1 (agent) ── pods by a CNI plugin ─┼─ segment
     n2 (agent) ── pods by a CNI plugin ─┘

The test is the kubelet: it makes a pod's network namespace with the node's CNI plugin, and writes the pod's status. No
container runtime is needed: the test opens the sockets of a pod itself.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import nfq_enforcer.workloads.kubernetes
from nfq_enforcer.agent import client
from nfq_enforcer.workloads.kubernetes.access import Access, from_kubeconfig
from tests.support.apart import call_in
from tests.support.redis_servers import RedisServer, wait_until

API_ADDRESS, API_PORT = "192.0.2.2", 6443
MANIFEST = Path(nfq_enforcer.workloads.kubernetes.__file__).with_name("manifest.yaml")
TUNNEL = "flannel.1"
PATIENT, BRIEF = 10.0, 0.4  # s, for a connection that should be accepted, or dropped
ACCOUNT = "/api/v1/namespaces/nfq-enforcer/serviceaccounts/nfq-enforcer/token"
_CILIUM, _TIERS = ("cilium.io", "v2"), ("policy.networking.k8s.io", "v1alpha2")
_CRDS = ((_CILIUM, "ciliumnetworkpolicies", "CiliumNetworkPolicy", "Namespaced"),)
_CLUSTER_CRDS = (
    (_CILIUM, "ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy", "Cluster"),
    (_CILIUM, "ciliumcidrgroups", "CiliumCIDRGroup", "Cluster"),
    (_TIERS, "clusternetworkpolicies", "ClusterNetworkPolicy", "Cluster"),
)
_APPROVED = "api-approved.kubernetes.io"  # annotation that groups of Kubernetes need
_SYSCTLS = (
    *("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0"),
    *("net/ipv6/conf/default/accept_dad=0", "net/ipv6/conf/all/accept_dad=0"),
)


class Answer(NamedTuple):
    """Answer: of the API server."""

    status: int
    body: dict[str, Any]


class Place:
    """Place: a network namespace of the cluster."""

    def __init__(self, name: str) -> None:
        self.namespace = name

    def make(self) -> None:
        """Make the namespace."""
        _run("ip", "netns", "add", self.namespace)
        self.run("ip", "link", "set", "lo", "up")
        for setting in _SYSCTLS:
            key, value = setting.split("=")
            self.run("sh", "-c", f"echo {value} > /proc/sys/{key}")

    def remove(self) -> None:
        """Remove the namespace, if it exists."""
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs a command here."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, text: str | None = None, **options: Any) -> str:
        """Run a command here; return its output."""
        return _run(*self.command(*argv), text=text, **options)


class Api(Place):
    """Api: the place of kube-apiserver, etcd and Redis."""

    def __init__(self, name: str, binaries: Path, folder: Path) -> None:
        super().__init__(name)
        self.binaries = binaries
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.redis = RedisServer(folder / "redis", 6379, host=API_ADDRESS, prefix=self.command())

    def start(self) -> None:
        """Start etcd and kube-apiserver; return when it is ready."""
        keys = self.folder / "pki"
        keys.mkdir(parents=True)
        _run("openssl", "genrsa", "-out", str(keys / "account.key"), "2048")
        (keys / "tokens.csv").write_text("admin-token,admin,admin,system:masters\n")
        self._etcd = self._start("etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync")
        self.start_server()

    def start_server(self) -> None:
        """Start kube-apiserver; return when it is ready."""
        keys = self.folder / "pki"
        account = str(keys / "account.key")
        self._server = self._start(
            "kube-apiserver",
            *("--etcd-servers=http://127.0.0.1:2379", f"--cert-dir={keys}", f"--secure-port={API_PORT}"),
            *(f"--bind-address={API_ADDRESS}", f"--advertise-address={API_ADDRESS}", "--insecure-port=0"),
            *("--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc"),
            *(f"--service-account-key-file={account}", f"--service-account-signing-key-file={account}"),
            *(f"--token-auth-file={keys}/tokens.csv", "--authorization-mode=RBAC"),
            "--disable-admission-plugins=ServiceAccount",
        )
        wait_until(lambda: (keys / "apiserver.crt").exists() and self._is_ready(), "kube-apiserver is ready")
        self._write_kubeconfig(self.kubeconfig, {"token": "admin-token"})

    def _start(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                self.command("nice", "-n", "5", str(self.binaries / program), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self.folder / "kube-apiserver.log").read_text()[-2000:]
        with suppress(OSError, http.client.HTTPException):
            return (
                self.ask("GET", "/readyz").status == 200 and self.ask("GET", "/api/v1/namespaces/default").status == 200
            )
        return False

    def kill_server(self) -> None:
        """Kill kube-apiserver."""
        _kill(self._server)

    def stop(self) -> None:
        """End all servers."""
        _kill(self._server)
        _kill(self._etcd)
        self.redis.kill()

    def _write_kubeconfig(self, path: Path, user: Mapping[str, str]) -> None:
        authority = base64.b64encode((self.folder / "pki/apiserver.crt").read_bytes()).decode()
        cluster = {"server": f"https://{API_ADDRESS}:{API_PORT}", "certificate-authority-data": authority}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": dict(user)}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(document))

    def agent_kubeconfig(self) -> Path:
        """Return a kubeconfig with a token of the manifest's service account, which is valid for an hour."""
        path = self.folder / "agent.kubeconfig"
        if path.exists():
            return path
        token = self.ask(
            "POST", ACCOUNT, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        )
        assert token.status == 201, token
        (self.folder / "token").write_text(token.body["status"]["token"])
        self._write_kubeconfig(path, {"tokenFile": "token"})
        return path

    def access(self) -> Access:
        """Return the access of an administrator."""
        return from_kubeconfig(self.kubeconfig)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as an administrator; return its output."""
        program = str(self.binaries / "kubectl")
        environment = {**os.environ, "HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig)}
        return self.run(program, *arguments, text=text, env=environment)

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Answer:
        """Return the answer to a request of an administrator."""

        def request() -> Answer:
            tls = ssl.create_default_context(cafile=str(self.folder / "pki/apiserver.crt"))
            connection = http.client.HTTPSConnection(API_ADDRESS, API_PORT, timeout=30, context=tls)
            try:
                headers = {"Authorization": "Bearer admin-token", "Content-Type": kind}
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read()
                return Answer(answer.status, json.loads(text) if text.startswith(b"{") else {})
            finally:
                connection.close()

        return call_in(self.namespace, request)

    def compact(self) -> None:
        """Have etcd forget the history until now."""

        def ask(path: str, body: object) -> str:
            with closing(http.client.HTTPConnection("127.0.0.1", 2379, timeout=10)) as connection:
                connection.request("POST", path, json.dumps(body))
                return str(json.loads(connection.getresponse().read())["header"]["revision"])

        revision = call_in(self.namespace, lambda: ask("/v3/kv/range", {"key": "AA=="}))
        call_in(self.namespace, lambda: ask("/v3/kv/compaction", {"revision": revision, "physical": True}))

    def install_crds(self, *, only: Iterable[str] = ()) -> None:
        """Install the CRDs of policies, without schemas."""
        for (group, served), plural, kind, scope in (*_CRDS, *_CLUSTER_CRDS):
            if only and kind not in only:
                continue
            version = {
                "name": served,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
            document = {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}", "annotations": {_APPROVED: "unapproved, for tests"}},
                "spec": {
                    "group": group,
                    "scope": scope,
                    "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
                    "versions": [version],
                },
            }
            answer = self.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", document)
            assert answer.status in (201, 409), answer
            path = f"/apis/{group}/{served}/{plural}"
            wait_until(lambda path=path: self.ask("GET", path).status == 200, f"{plural} are served")  # type: ignore[misc]


class Pod(Place):
    """Pod: an object of the API and a network namespace."""

    def __init__(self, node: "Node", namespace: str, name: str) -> None:
        super().__init__(f"{node.namespace}-{namespace}-{name}")
        self.node = node
        self.pod_namespace = namespace
        self.name = name
        self.addresses: list[str] = []
        self._listening: list[socket.socket] = []

    @property
    def path(self) -> str:
        """Return the path of the object."""
        return f"/api/v1/namespaces/{self.pod_namespace}/pods/{self.name}"

    def create(self, labels: Mapping[str, str], **spec: Any) -> None:
        """Create the object, as a user and the scheduler do."""
        container = {"name": "main", "image": "none", **spec.pop("container", {})}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.pod_namespace, "labels": dict(labels)},
            "spec": {"nodeName": self.node.name, "containers": [container], **spec},
        }
        answer = self.node.api.ask("POST", self.path.rpartition("/")[0], body)
        assert answer.status == 201, answer

    def attach(self) -> None:
        """Make the network namespace, by the node's CNI plugin."""
        self.make()
        result = json.loads(self.node.cni("ADD", self))
        self.addresses = [entry["address"].split("/")[0] for entry in result["ips"]]

    def report(self, phase: str = "Running", addresses: Iterable[str] | None = None) -> Answer:
        """Write the status, as the kubelet does."""
        ips = list(self.addresses if addresses is None else addresses)
        status = {"phase": phase, "podIP": ips[0] if ips else None, "podIPs": [{"ip": ip} for ip in ips]}
        return self.node.api.ask("PATCH", f"{self.path}/status", {"status": status}, "application/merge-patch+json")

    def start(self, labels: Mapping[str, str], **spec: Any) -> "Pod":
        """Create the pod with network and status."""
        self.create(labels, **spec)
        self.attach()
        assert self.report().status == 200
        return self

    def delete(self, *, grace: int = 0) -> None:
        """Delete the object; with ``grace`` the pod is terminating until it is deleted without."""
        answer = self.node.api.ask("DELETE", self.path, {"kind": "DeleteOptions", "gracePeriodSeconds": grace})
        assert answer.status in (200, 202, 404), answer

    def detach(self) -> None:
        """Remove the network namespace, by the node's CNI plugin."""
        self.close()
        with suppress(AssertionError):
            self.node.cni("DEL", self)
        self.remove()

    def listen(self, port: int, family: int = 4) -> None:
        """Accept connections to a port."""
        host = "0.0.0.0" if family == 4 else "::"
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self._listening.append(
            call_in(self.namespace, lambda: socket.create_server((host, port), family=kind, backlog=1000))
        )

    def close(self) -> None:
        """Close the sockets."""
        for one in self._listening:
            one.close()
        self._listening.clear()

    def connects(self, address: str, port: int, timeout: float = PATIENT) -> bool:
        """Return whether a connection from this pod is accepted within a time."""
        return connects(self.namespace, address, port, timeout)


def connects(namespace: str, address: str, port: int, timeout: float) -> bool:
    """Return whether a connection from a namespace is accepted within a time."""

    def attempt() -> bool:
        with suppress(OSError), socket.create_connection((address, port), timeout):
            return True
        return False

    return call_in(namespace, attempt)


class Node(Place):
    """Node: a host with an agent, and a CNI plugin for its pods."""

    def __init__(self, cluster: "Cluster", number: int, plugin: str) -> None:
        super().__init__(f"{cluster.prefix}-n{number}")
        self.api = cluster.api
        self.name = f"n{number}"
        self.number = number
        self.address = f"192.0.2.{10 + number}"
        self.folder = cluster.folder / self.name
        self.socket = self.folder / "agent.sock"
        self.log = self.folder / "agent.log"
        self.pods: list[Pod] = []
        self._plugin = plugin
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def networks(self) -> list[str]:
        """Return the networks of the node's pods."""
        return [f"10.78.{self.number}.0/24", f"fd78:{self.number}::/64"]

    def start_agent(self, store: str, **settings: Any) -> None:
        """Start the agent; return when it enforces."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "node": {"name": self.name, **settings.pop("node", {})},
            "store": store,
            "state": str(self.folder / "state"),
            "kubernetes": {"enabled": True, "kubeconfig": str(self.api.agent_kubeconfig())},
            "api": {"socket": str(self.socket)},
            "metrics": {"address": ""},
            "queues": 1,
            **settings,
        }
        file = self.folder / "agent.yaml"
        file.write_text(yaml.safe_dump(configuration))
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                self.command(sys.executable, "-P", "-m", "nfq_enforcer.cli", "agent", "--config", str(file)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._is_ready, f"the agent of {self.name} is ready")

    def _is_ready(self) -> bool:
        assert self._agent is not None
        assert self._agent.poll() is None, self.log.read_text()
        return b"\nready\n" in b"\n" + self.log.read_bytes()

    @property
    def pid(self) -> int:
        """Return the agent's process id."""
        assert self._agent is not None
        return self._agent.pid

    def stop_agent(self) -> None:
        """Stop the agent, if it runs; its log must not have a traceback."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.send_signal(signal.SIGTERM)
            self._agent.wait(40)
        if self.log.exists():
            text = self.log.read_text()
            self.log.unlink()
            assert "Traceback" not in text, text

    def status(self) -> dict[str, Any]:
        """Return the agent's status."""
        return dict(client.call(self.socket, "status"))

    def ask(self, method: str, **params: Any) -> Any:
        """Return the agent's answer to a request."""
        return client.call(self.socket, method, **params)

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """Return the cluster's endpoints as this node has them, by their full names."""
        return {f"{entry['namespace']}/{entry['name']}": entry for entry in self.ask("endpoints")}

    def cni(self, command: str, pod: Pod) -> str:
        """Run the CNI plugin for a pod, as a container runtime does."""
        configuration: dict[str, Any] = {
            "cniVersion": "0.4.0",
            "name": self.namespace,
            "type": self._plugin,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "cni"),
                "ranges": [[{"subnet": network}] for network in self.networks],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        if self._plugin == "bridge":
            configuration |= {"bridge": "cni0", "isGateway": True}
        environment = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.namespace,
            "CNI_NETNS": f"/run/netns/{pod.namespace}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.api.binaries / "cni"),
        }
        program = str(self.api.binaries / "cni" / self._plugin)
        return self.run(program, text=json.dumps(configuration), env=environment)

    def pod(self, name: str, namespace: str = "default") -> Pod:
        """Return a pod of this node, which does not exist yet."""
        pod = Pod(self, namespace, name)
        self.pods.append(pod)
        return pod

    def clear(self) -> None:
        """Delete all pods of this node."""
        for pod in self.pods:
            pod.delete()
            pod.detach()
        self.pods.clear()


class Cluster:
    """Cluster: an API server and two nodes without running agents."""

    def __init__(self, prefix: str, binaries: Path, folder: Path, plugins: tuple[str, ...]) -> None:
        self.prefix = prefix
        self.folder = folder
        self.api = Api(f"{prefix}-api", binaries, folder / "api")
        self.nodes = [Node(self, number, plugin) for number, plugin in enumerate(plugins, 1)]
        self._segment = Place(f"{prefix}-seg")

    def start(self) -> None:
        """Build the network and start the API server."""
        self._segment.make()
        self._segment.run("ip", "link", "add", "br0", "type", "bridge")
        self._segment.run(
            "sh", "-c", "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done"
        )
        self._segment.run("ip", "link", "set", "br0", "up")
        self._join(self.api, API_ADDRESS)
        for node in self.nodes:
            self._join(node, node.address)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.run("ip", "route", "add", other.networks[0], "via", other.address)
                    node.run("ip", "-6", "route", "add", other.networks[1], "via", f"fd00::{10 + other.number}")
        (self.folder / "api").mkdir(parents=True)
        self.api.start()
        self.api.install_crds()
        self.api.kubectl("apply", "-f", str(MANIFEST))
        for node in self.nodes:
            assert self.api.ask("POST", "/api/v1/nodes", {"metadata": {"name": node.name}}).status == 201

    def _join(self, place: Place, address: str) -> None:
        place.make()
        port = f"p{address.rpartition('.')[2]}"
        self._segment.run(
            *("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", place.namespace)
        )
        self._segment.run("ip", "link", "set", port, "up", "master", "br0")
        place.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        place.run("ip", "address", "add", f"fd00::{address.rpartition('.')[2]}/64", "dev", "eth0", "nodad")
        place.run("ip", "link", "set", "eth0", "up")

    @contextmanager
    def tunnel(self) -> Iterator[None]:
        """Lead the pods' networks through VXLAN instead of routes, as flannel does."""
        for node in self.nodes:
            vxlan = ("type", "vxlan", "id", "1", "dstport", "8472", "local", node.address, "dev", "eth0", "nolearning")
            node.run("ip", "link", "add", TUNNEL, *vxlan)
            node.run("ip", "address", "add", f"10.78.{node.number}.0/32", "dev", TUNNEL)
            node.run("ip", "link", "set", TUNNEL, "up")
            for other in self.nodes:
                if other is not node:
                    node.run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", TUNNEL, "dst", other.address)
                    via = f"10.78.{other.number}.0"
                    node.run("ip", "route", "replace", other.networks[0], "via", via, "dev", TUNNEL, "onlink")
        try:
            yield
        finally:
            for node in self.nodes:
                node.run("ip", "link", "del", TUNNEL)
                for other in self.nodes:
                    if other is not node:
                        node.run("ip", "route", "replace", other.networks[0], "via", other.address)

    def remove(self) -> None:
        """Remove all of it."""
        try:
            for node in self.nodes:
                node.clear()
                node.stop_agent()
        finally:
            self.api.stop()
            for place in (*self.nodes, self.api, self._segment):
                place.remove()
            shutil.rmtree(self.folder, ignore_errors=True)

    def apply(self, *documents: str) -> None:
        """Apply documents with kubectl."""
        self.api.kubectl("apply", "--validate=false", "-f", "-", text="\n---\n".join(documents))

    def clear(self) -> None:
        """Delete the pods and policies of tests, and stop the agents."""
        for node in self.nodes:
            node.clear()
        everything = "networkpolicies.networking.k8s.io,ciliumnetworkpolicies.cilium.io"
        self.api.kubectl("delete", everything, "--all", "--all-namespaces", "--wait=false")
        of_cluster = ",".join(plural for _, plural, *_ in _CLUSTER_CRDS)
        self.api.kubectl("delete", of_cluster, "--all", "--wait=false")
        for node in self.nodes:
            node.stop_agent()
            shutil.rmtree(node.folder / "state", ignore_errors=True)


def eventually(condition: Callable[[], object], promise: str) -> None:
    """Return once the condition holds."""
    wait_until(lambda: bool(condition()), promise)


def _run(*argv: str, text: str | None = None, **options: Any) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, **options)
    output: str = done.stdout
    assert not done.returncode, f"{' '.join(argv)}: {done.stderr}{output}"
    return output


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        process.wait(20)


def milliseconds_since(begin: float) -> float:
    """Return the milliseconds since a time of ``time.monotonic``."""
    return 1000 * (time.monotonic() - begin)
