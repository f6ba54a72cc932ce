"""Virtual services of IPVS, from the kernel's table."""

from pathlib import Path

import pytest

from nfq_enforcer.dataplane import ipvs

HEAD = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, False),
        ("", False),
        (HEAD, False),
        (f"{HEAD}TCP  0A60000A:0050 rr \n  -> 0A4E0002:0050      Masq    1      0          0         \n", True),
        (f"{HEAD}UDP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 rr \n", True),
    ],
    ids=["no IPVS", "empty", "no service", "IPv4", "IPv6"],
)
def test_a_host_has_services_if_the_table_has_one(
    text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "ip_vs"
    monkeypatch.setattr(ipvs, "_TABLE", table)
    if text is not None:
        table.write_text(text)

    assert ipvs.has_services() is expected
