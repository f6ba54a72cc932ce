"""Start of Envoy: a reason for which it cannot run is one sentence."""

import asyncio
from pathlib import Path

import pytest

from nfq_enforcer.proxy.envoy import EnvoyError
from nfq_enforcer.proxy.proxy import Proxy


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    proxy = Proxy(tmp_path / "file" / "proxy", 20_000, 64_931, lambda slot: slot, print)

    with pytest.raises(EnvoyError, match=r"Envoy cannot run with its files in .*file/proxy: Not a directory"):
        asyncio.run(proxy.start())
