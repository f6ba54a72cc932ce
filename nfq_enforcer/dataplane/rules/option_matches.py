"""Matches of packets by their IP options, as text, for each IP version.

Only a worker can read whether options contain a stamp, and whether it is valid. The kernel can tell packets without any
options, and packets with nothing but a stamp in its usual place.
"""

from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN

# IPv4: a header of more than 5 words. IPv6: a Destination Options header, also after other extension headers.
_OPTIONS = {4: ("u32", '--u32 "0x0>>0x18&0xf=0x6:0xf"'), 6: ("ipv6header", "--header dst --soft")}
WITH_OPTIONS = {version: f"-m {module} {match}" for version, (module, match) in _OPTIONS.items()}
WITHOUT_OPTIONS = {version: f"-m {module} ! {match}" for version, (module, match) in _OPTIONS.items()}

# One unsigned stamp of a cluster identity and no other option, as one-way datagrams from other nodes have it
# (``core.wire.stamp``). IPv4: in a header of 7 words. IPv6: in a Destination Options header with PadN, right before
# TCP, UDP, ICMPv6 or SCTP.
_IDENTITIES = f"{CLUSTER_MIN:#x}:{CLUSTER_MAX:#x}"
ONLY_STAMP = {
    4: f'-m u32 --u32 "0x0>>0x18&0xf=0x7&&0x14=0x9e081000&&0x18={_IDENTITIES}"',
    6: '-m u32 --u32 "0x4>>0x8&0xff=0x3c&&0x28>>0x18=0x6,0x11,0x3a,0x84&&0x28&0xffffff=0x11e06&&0x2c>>0x10=0x1000'
    f'&&0x2e={_IDENTITIES}&&0x32=0x1040000&&0x34=0x0"',
}
