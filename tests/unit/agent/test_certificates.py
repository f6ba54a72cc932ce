"""Certificates of agents: the names of nodes in them, and files that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.agent.peers.certificates import client_context, names, server_context
from nfq_enforcer.agent.peers.section import PeersSection
from nfq_enforcer.errors import NfqError
from tests.support.peer_certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("peers") / "ca")


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (None, set()),
        ({}, set()),
        ({"subject": ((("commonName", "n1"),),)}, set()),
        ({"subjectAltName": (("DNS", "n1"), ("IP Address", "10.0.0.1"))}, {"n1"}),
        ({"subjectAltName": (("URI", "nfq-enforcer:N_1"), ("URI", "spiffe://x/n2"), ("email", "n3"))}, {"N_1"}),
    ],
    ids=str,
)
def test_the_names_of_a_certificate_are_its_alternative_names(certificate: Any, expected: set[str]) -> None:
    assert names(certificate) == expected


def test_both_sides_speak_tls_1_3_and_ask_for_a_certificate(authority: Authority) -> None:
    section = PeersSection(**authority.settings("[::1]:9964", "n1"))

    for context in (server_context(section), client_context(section)):
        assert (context.verify_mode.name, context.minimum_version.name) == ("CERT_REQUIRED", "TLSv1_3")
    assert section.listening == ("::1", 9964)


@pytest.mark.parametrize(
    ("changed", "text", "reason"),
    [
        ("ca_file", None, "No such file or directory"),
        ("cert_file", None, "No such file or directory"),
        ("ca_file", "nothing", "no certificate or crl found"),
        ("key_file", "nothing", "no start line"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    changed: str, text: str | None, reason: str, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    section = PeersSection(**authority.settings("[::1]:9964", "n1") | {changed: str(file)})

    with pytest.raises(NfqError) as caught:
        server_context(section)

    assert str(caught.value).startswith(f"peers.{changed.replace('key', 'cert')} ")
    assert reason.lower() in str(caught.value).lower() or changed == "key_file"
