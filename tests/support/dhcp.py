"""A real DHCP server on a node's link to an endpoint (dnsmasq, which also advertises a router), and clients."""

from scapy.layers.dhcp import BOOTP, DHCP

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import find_command
from nfq_enforcer.lab.process import LabProcess
from nfq_enforcer.lab.topology import UPLINK
from tests.support.labs import run_in
from tests.support.namespaces import link_socket, received

_CLIENT = {4: "dhclient", 6: "dhclient6"}
_FIRST = {4: b"DHCPDISCOVER(", 6: b"DHCPSOLICIT("}  # in the server's log
_LEASE = {4: b"DHCPACK(", 6: b"DHCPREPLY("}


class DhcpServer:
    """DHCP server of a node for one endpoint, to which it leases the endpoint's own addresses."""

    def __init__(self, lab: Lab, node: str, endpoint: str) -> None:
        """Give the node's interface the prefixes without routes: the lab's routes stay."""
        self._lab, self._endpoint = lab, endpoint
        self._interface = f"veth-{endpoint}"
        self._log = lab.network.state / "dnsmasq.log"
        self._leases = lab.network.state / "dnsmasq.leases"
        self._process = LabProcess(lab.network, node, "dnsmasq", self._log, lab.network.state / "dnsmasq.pid")
        self._addresses = {family: lab.address(endpoint, family) for family in (4, 6)}
        for family, bits in ((4, 24), (6, 64)):
            command = (
                "ip",
                "address",
                "add",
                f"{self.address(family)}/{bits}",
                "dev",
                self._interface,
                "noprefixroute",
            )
            run_in(lab, node, *command, *(["nodad"] if family == 6 else []))

    def start(self) -> None:
        """Start, or restart, without leases; return when the server listens."""
        self._process.stop()
        v4, v6 = self._addresses[4], self._addresses[6]
        self._leases.unlink(missing_ok=True)
        self._process.start(
            [
                *(find_command("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"),
                *("--user=root", "--port=0", f"--interface={self._interface}", "--bind-dynamic", "--no-ping"),
                *("--dhcp-authoritative", f"--dhcp-leasefile={self._leases}", "--enable-ra"),
                *(f"--dhcp-range={v4},{v4},255.255.255.0,2m", f"--dhcp-range={v6},{v6},64,2m"),
            ]
        )
        self._process.wait_until(lambda: b"sockets bound" in self._log.read_bytes())

    def stop(self) -> None:
        self._process.stop()

    def address(self, family: int) -> str:
        return str(self._addresses[family] + 100)

    def renew(self, timeout: float) -> bool:
        """Renew the endpoint's IPv4 lease by unicast; tell whether the server acknowledges it."""
        with link_socket(self._lab, self._endpoint, UPLINK, 4, 68) as client:
            device = run_in(self._lab, self._endpoint, "cat", f"/sys/class/net/{UPLINK}/address")
            hardware = bytes.fromhex(device.strip().replace(":", ""))
            request = BOOTP(ciaddr=str(self._addresses[4]), chaddr=hardware, xid=7)
            client.sendto(bytes(request / DHCP(options=[("message-type", "request"), "end"])), (self.address(4), 67))
            return (
                received(client, timeout, lambda data: BOOTP(data)[DHCP].options[0] == ("message-type", 5)) is not None
            )

    def lease(self, family: int) -> int:
        """Have the endpoint lease its address; return the number of its first messages."""
        state, name = self._lab.network.state, _CLIENT[family]
        files = {kind: state / f"{name}.{kind}" for kind in ("leases", "pid", "log", "lab-pid")}
        files["leases"].unlink(missing_ok=True)
        client = LabProcess(self._lab.network, self._endpoint, name, files["log"], files["lab-pid"])
        options = ["-1", "-d", "-sf", "/bin/true", "-lf", str(files["leases"]), "-pf", str(files["pid"])]
        client.start([find_command("dhclient"), f"-{family}", *options, UPLINK])
        try:
            client.wait_until(lambda: _LEASE[family] in self._log.read_bytes())
        finally:
            client.stop()
        return self._log.read_bytes().count(_FIRST[family])
