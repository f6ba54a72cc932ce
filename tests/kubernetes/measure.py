"""Measure Kubernetes as a source: from the API server's event to the first allowed packet, churn, memory (root).

.venv/bin/python -m tests.kubernetes.measure [--pods 200] [--rate 100] [--seconds 60]
"""

import argparse
import asyncio
import http.client
import itertools
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp

from tests.kubernetes.conftest import BUILD
from tests.support.apart import call_in
from tests.support.kubernetes_cluster import API_ADDRESS, API_PORT, Cluster, Node, Pod, eventually, milliseconds_since

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


async def churn(cluster: Cluster, rate: float, seconds: float) -> int:
    """Create pods with a status at a rate, and delete each after a second; return their number."""
    access = cluster.api.access()
    done = 0

    async def live(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal done
        path, ip = f"{access.url}/api/v1/namespaces/default/pods", f"10.200.{number // 250 % 250}.{number % 250 + 1}"
        name, labels = f"churn{number}", {"role": "web" if number % 2 else "other", "app": f"a{number % 50}"}
        spec = {"nodeName": f"n{number % 2 + 1}", "containers": [{"name": "c", "image": "none"}]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        status = {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}
        patch = {"Content-Type": "application/merge-patch+json"}
        async with session.post(path, json=body) as answer:
            assert answer.status == 201, await answer.text()
        async with session.patch(f"{path}/{name}/status", data=json.dumps(status), headers=patch) as answer:
            assert answer.status == 200, await answer.text()
        await asyncio.sleep(1)
        async with session.delete(f"{path}/{name}", json={"gracePeriodSeconds": 0}) as answer:
            assert answer.status == 200, await answer.text()
        done += 1

    connector = aiohttp.TCPConnector(limit=64, ssl=access.tls or False)
    async with aiohttp.ClientSession(headers=access.headers(), connector=connector) as session:
        end, tasks = time.monotonic() + seconds, []
        for number in itertools.count():
            if time.monotonic() > end:
                break
            tasks.append(asyncio.create_task(live(session, number)))
            await asyncio.sleep(max(0.0, end - seconds + (number + 1) / rate - time.monotonic()))
        await asyncio.gather(*tasks)
    return done


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


def population(number: int) -> list[tuple[str, str]]:
    """Return a file of Endpoint documents on a hundred other nodes."""
    items: list[dict[str, Any]] = [
        {
            "apiVersion": "nfq-enforcer.io/v1",
            "kind": "Endpoint",
            "metadata": {
                "name": f"e{n}",
                "namespace": f"ns{n % 20}",
                "labels": {"app": f"web-{n % 200}", "tier": f"t{n % 7}"},
            },
            "spec": {"node": f"far{n % 100}", "ips": [f"10.{100 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}"]},
        }
        for n in range(number)
    ]
    return [("population.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=200, help="for the time to the first packet")
    parser.add_argument("--rate", type=float, default=100, help="pods a second of the churn")
    parser.add_argument("--seconds", type=float, default=60, help="of churn")
    options = parser.parse_args()
    binaries = Path(subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    cluster = Cluster("nkm", binaries, Path("/tmp/nkm"), ("ptp", "bridge"))
    try:
        cluster.start()
        with cluster.api.redis as redis:
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
                thread = threading.Thread(target=probe, args=(web, other, far.addresses[0], stop, results))
                thread.start()
                begin = time.monotonic()
                number = call_in(
                    cluster.api.namespace, lambda: asyncio.run(churn(cluster, options.rate, options.seconds))
                )
                elapsed = time.monotonic() - begin
                settling = time.monotonic()
                eventually(lambda: all(len(node.endpoints()) == 4 for node in cluster.nodes), "the churn has settled")
                print(f"churn: {number} pods in {elapsed:.1f} s, settled {time.monotonic() - settling:.1f} s later")
                stop.set()
                thread.join()
                print(
                    f"probes during churn: {results}; problems: {one.status()['problems'] + two.status()['problems']}"
                )
                print(f"agents after churn: {', '.join(memory(node.pid) for node in cluster.nodes)}", flush=True)
                one.ask("apply", timeout=300, files=population(10_000))
                eventually(lambda: all(len(node.endpoints()) == 10_004 for node in cluster.nodes), "all are known")
                print(f"agents with 10,000 endpoints: {', '.join(memory(node.pid) for node in cluster.nodes)}")
    finally:
        cluster.remove()


if __name__ == "__main__":
    main()
