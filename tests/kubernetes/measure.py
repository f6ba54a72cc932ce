"""Measure Kubernetes as a source: from the API server's event to the first allowed packet, churn, memory (root).

.venv/bin/python -m tests.kubernetes.measure [--pods 200] [--rate 100] [--seconds 60] [--population 10000]

During the churn each pod sends datagrams as long as it lives, and after its end: those with the role web must be
answered while they live, and no others, ever.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from statistics import quantiles

import aiohttp

from tests.kubernetes.conftest import BUILD
from tests.support.apart import call_in
from tests.support.kubernetes_cluster import (
    API_ADDRESS,
    API_PORT,
    Cluster,
    Node,
    Place,
    Pod,
    eventually,
    milliseconds_since,
)

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress: [{from: [{podSelector: {matchLabels: {role: web}}}]}]
"""
ECHO = 7


@contextmanager
def echoing(pod: Pod) -> Iterator[None]:
    """Echo datagrams to the port ECHO of a pod."""
    server = call_in(pod.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind(("", ECHO))

    def serve() -> None:
        while True:
            data, sender = server.recvfrom(100)
            if data == b"end":
                return
            server.sendto(data, sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        call_in(pod.namespace, _send_end)
        thread.join()
        server.close()


def _send_end() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"end", ("127.0.0.1", ECHO))


def udp_socket(pod: Pod) -> socket.socket:
    made = call_in(pod.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.setblocking(False)
    return made


def answered(sender: socket.socket, address: str) -> bool:
    """Send a datagram; return whether any has been answered so far."""
    sender.sendto(b"x", (address, ECHO))
    try:
        return bool(sender.recv(10))
    except BlockingIOError:
        return False


def first_packets(cluster: Cluster, node: Node, target: Pod, number: int) -> list[float]:
    """Return for each new pod the ms from the request that writes its status to its first answered packet."""
    results = []
    for place in range(number):
        pod = node.pod(f"new{place}")
        pod.create({"role": "web"})
        pod.attach()
        with udp_socket(pod) as sender, status_writer(cluster, pod) as write:
            assert not answered(sender, target.addresses[0])
            begin = time.monotonic()
            write()
            while not answered(sender, target.addresses[0]):
                time.sleep(0.0005)
            results.append(milliseconds_since(begin))
        pod.delete()
        pod.detach()
        node.pods.remove(pod)
        eventually(lambda: all(len(one.endpoints()) == 4 for one in cluster.nodes), "the pod has ended")
    return results


@contextmanager
def status_writer(cluster: Cluster, pod: Pod) -> Iterator[Callable[[], None]]:
    """Yield a function that sends the request that writes a pod's status, on an open connection."""
    access = cluster.api.access()

    def connect() -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection(API_ADDRESS, API_PORT, context=access.tls, timeout=30)
        made.connect()
        return made

    connection = call_in(cluster.api.namespace, connect)
    status = {"phase": "Running", "podIP": pod.addresses[0], "podIPs": [{"ip": ip} for ip in pod.addresses]}
    headers = {**access.headers(), "Content-Type": "application/merge-patch+json"}
    body = json.dumps({"status": status})
    yield lambda: connection.request("PATCH", f"{pod.path}/status", body, headers)
    assert connection.getresponse().status == 200
    connection.close()


def report(title: str, values: list[float]) -> None:
    cuts = quantiles(values, n=100)
    print(
        f"{title}: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, max {max(values):.1f} ms of {len(values)}", flush=True
    )


class Crowd(Place):
    """Crowd: the addresses of all pods of the churn on one node, behind one interface in a namespace of their own."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        super().__init__(f"{node.namespace}-crowd")
        self._network = f"10.200.{128 * (node.number - 1)}.0/17"
        self._base = int(ip_network(self._network)[256])
        self.answered: set[str] = set()  # addresses with an answered datagram
        self.make()
        node.run("ip", "link", "add", "crowd", "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        node.run("ip", "link", "set", "crowd", "up")
        node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/crowd/proxy_arp")
        node.run("ip", "route", "add", self._network, "dev", "crowd")
        for other in cluster.nodes:
            if other is not node:
                other.run("ip", "route", "add", self._network, "via", node.address)
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "local", self._network, "dev", "lo")  # every address of it is one of the crowd's
        self.run("ip", "route", "add", "default", "dev", "eth0")
        self._socket = call_in(self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_IP, _PKTINFO, 1)
        self._socket.bind(("", 0))

    def address(self, number: int) -> str:
        """Return the address of the pod with this number; it is used again after 200 pods, some seconds later.

        The kernel holds 1,024 neighbours, of all network namespaces together.
        """
        return str(ip_address(self._base + number % 200))

    def send(self, address: str, target: str) -> None:
        """Send a datagram from one of the addresses to the port ECHO of a target."""
        info = _INFO.pack(0, ip_address(address).packed, bytes(4))
        with suppress(BlockingIOError):  # the next one is sent soon
            self._socket.sendmsg([b"x"], [(socket.IPPROTO_IP, _PKTINFO, info)], 0, (target, ECHO))

    def receive(self) -> None:
        """Note all answers that have arrived."""
        with suppress(BlockingIOError):
            while True:
                _, ((_, _, info),), _, _ = self._socket.recvmsg(10, 64)
                self.answered.add(str(ip_address(_INFO.unpack(info)[2])))

    def close(self) -> None:
        """Remove the namespace, and with it the interface and its routes."""
        self._socket.close()
        self.remove()


_PKTINFO = 8  # IP_PKTINFO
_INFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, source of a sent packet, destination of a received one


async def run_pod(
    session: aiohttp.ClientSession, path: str, name: str, node: int, ip: str, labels: dict[str, str]
) -> None:
    """Create a pod in a collection, and write its status, as the kubelet does."""
    spec = {"nodeName": f"n{node}", "containers": [{"name": "c", "image": "none"}]}
    status = {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}
    patch = {"Content-Type": "application/merge-patch+json"}
    async with session.post(path, json={"metadata": {"name": name, "labels": labels}, "spec": spec}) as answer:
        assert answer.status == 201, await answer.text()
    async with session.patch(f"{path}/{name}/status", data=json.dumps(status), headers=patch) as answer:
        assert answer.status == 200, await answer.text()


async def churn(
    cluster: Cluster, crowds: list[Crowd], target: str, rate: float, seconds: float
) -> tuple[dict[str, int], list[float]]:
    """Create pods with a status at a rate, and delete each after a second, all under traffic to a target.

    Return the number of pods and of wrong outcomes, and the ms from a pod's status to its first answer.
    """
    access = cluster.api.access()
    counts = {"pods": 0, "allowed not answered": 0, "forbidden answered": 0, "answered after the end": 0}
    delays: list[float] = []

    async def live(session: aiohttp.ClientSession, number: int) -> None:
        crowd = crowds[number % 2]
        ip, allowed = crowd.address(number // 2), number % 4 < 2
        path, name = f"{access.url}/api/v1/namespaces/default/pods", f"churn{number}"
        labels = {"role": "web" if allowed else "other", "app": f"a{number % 50}"}
        await run_pod(session, path, name, number % 2 + 1, ip, labels)
        crowd.answered.discard(ip)
        begin, noted = time.monotonic(), False
        while (age := time.monotonic() - begin) < 1:
            if ip not in crowd.answered:
                crowd.send(ip, target)
            elif not noted:
                noted = True
                delays.append(1000 * age)
            await asyncio.sleep(0.01 if allowed else 0.1)
        async with session.delete(f"{path}/{name}", json={"gracePeriodSeconds": 0}) as answer:
            assert answer.status == 200, await answer.text()
        counts["pods"] += 1
        counts["allowed not answered"] += allowed and ip not in crowd.answered
        counts["forbidden answered"] += not allowed and ip in crowd.answered
        await asyncio.sleep(0.5)
        crowd.answered.discard(ip)
        for _ in range(3):
            crowd.send(ip, target)
            await asyncio.sleep(0.05)
        counts["answered after the end"] += ip in crowd.answered

    for crowd in crowds:
        asyncio.get_running_loop().add_reader(crowd._socket, crowd.receive)
    connector = aiohttp.TCPConnector(limit=64, ssl=access.tls or False)
    async with aiohttp.ClientSession(headers=access.headers(), connector=connector) as session:
        end, tasks = time.monotonic() + seconds, []
        for number in itertools.count():
            if time.monotonic() > end:
                break
            tasks.append(asyncio.create_task(live(session, number)))
            await asyncio.sleep(max(0.0, end - seconds + (number + 1) / rate - time.monotonic()))
        await asyncio.gather(*tasks)
    return counts, delays


async def populate(cluster: Cluster, number: int) -> None:
    """Create pods with a status on both nodes."""
    access = cluster.api.access()
    limit = asyncio.Semaphore(32)

    async def create(session: aiohttp.ClientSession, place: int) -> None:
        path, name = f"{access.url}/api/v1/namespaces/default/pods", f"many{place}"
        ip = f"10.201.{place // 250}.{place % 250 + 1}"
        labels = {"app": f"web-{place % 200}", "tier": f"t{place % 7}", "pod-template-hash": f"{place % 200:x}"}
        async with limit:
            await run_pod(session, path, name, place % 2 + 1, ip, labels)

    connector = aiohttp.TCPConnector(limit=32, ssl=access.tls or False)
    async with aiohttp.ClientSession(headers=access.headers(), connector=connector) as session:
        await asyncio.gather(*(create(session, place) for place in range(number)))


def probe(allowed: Pod, forbidden: Pod, target: str, stop: threading.Event, results: dict[str, int]) -> None:
    """Send from both pods until ``stop``; count the attempts with the wrong outcome."""
    while not stop.is_set():
        with udp_socket(allowed) as one, udp_socket(forbidden) as two:
            for sender in (one, two):
                sender.sendto(b"x", (target, ECHO))
            one.setblocking(True)
            one.settimeout(2)
            results["attempts"] += 1
            try:
                one.recv(10)
            except TimeoutError:
                results["allowed refused"] += 1
            time.sleep(0.01)
            try:
                two.recv(10)
                results["forbidden answered"] += 1
            except BlockingIOError:
                pass


def memory(pid: int) -> str:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return f"{int(fields['VmRSS'].split()[0]) / 1024:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=200, help="for the time to the first packet")
    parser.add_argument("--rate", type=float, default=100, help="pods a second of the churn")
    parser.add_argument("--seconds", type=float, default=60, help="of churn")
    parser.add_argument("--population", type=int, default=10_000, help="pods at the API server, for the memory")
    options = parser.parse_args()
    binaries = Path(subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    cluster = Cluster("nkm", binaries, Path("/tmp/nkm"), ("ptp", "bridge"))
    try:
        cluster.start()
        with cluster.api.redis as redis, ExitStack() as stack:
            one, two = cluster.nodes
            for node in cluster.nodes:
                node.start_agent(redis.url())
            cluster.apply(POLICY)
            near, far = one.pod("near").start({"role": "db"}), two.pod("far").start({"role": "db"})
            web, other = one.pod("web").start({"role": "web"}), one.pod("other").start({"role": "other"})
            eventually(lambda: all(len(node.endpoints()) == 4 for node in cluster.nodes), "all pods are known")
            print(f"agents after the start: {', '.join(memory(node.pid) for node in cluster.nodes)}", flush=True)
            with echoing(near), echoing(far):
                report(
                    "status written to first allowed packet, one node", first_packets(cluster, one, near, options.pods)
                )
                report(
                    "status written to first allowed packet, two nodes", first_packets(cluster, one, far, options.pods)
                )
                stop, results = threading.Event(), {"attempts": 0, "allowed refused": 0, "forbidden answered": 0}
                thread = threading.Thread(target=probe, args=(web, other, far.addresses[0], stop, results), daemon=True)
                thread.start()
                crowds = [stack.enter_context(closing(Crowd(cluster, node))) for node in cluster.nodes]
                begin = time.monotonic()

                async def scene() -> tuple[dict[str, int], list[float]]:
                    return await churn(cluster, crowds, near.addresses[0], options.rate, options.seconds)

                counts, delays = call_in(cluster.api.namespace, lambda: asyncio.run(scene()))
                elapsed = time.monotonic() - begin
                settling = time.monotonic()
                eventually(lambda: all(len(node.endpoints()) == 4 for node in cluster.nodes), "the churn has settled")
                print(f"churn of {elapsed:.1f} s, settled {time.monotonic() - settling:.1f} s later: {counts}")
                report("status written to first answer, during churn", delays)
                stop.set()
                thread.join()
                print(
                    f"probes during churn: {results}; problems: {one.status()['problems'] + two.status()['problems']}"
                )
                print(f"agents after churn: {', '.join(memory(node.pid) for node in cluster.nodes)}", flush=True)
            call_in(cluster.api.namespace, lambda: asyncio.run(populate(cluster, options.population)))
            known = options.population + 4
            eventually(lambda: all(len(node.endpoints()) == known for node in cluster.nodes), "all are known")
            sizes = ", ".join(memory(node.pid) for node in cluster.nodes)
            print(f"agents with {options.population} pods at the API server: {sizes}")
    finally:
        cluster.remove()


if __name__ == "__main__":
    main()
