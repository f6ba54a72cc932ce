"""Access to the API server: by the service account of a pod, or by a kubeconfig; mistakes are named."""

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.errors import BadInput
from nfq_enforcer.workloads.kubernetes.access import Access, from_kubeconfig, in_cluster
from tests.support.redis_servers import Certificates

INSIDE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls") / "certificates")


def write(
    folder: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **fields: Any
) -> Path:
    config = {
        "clusters": [{"name": "c", "cluster": cluster or {"server": "http://192.0.2.1:8080"}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **fields,
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_pod_has_the_access_of_its_service_account(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(certificates.ca.read_bytes())
    token = tmp_path / "token"
    token.write_text("first\n")

    access = in_cluster(INSIDE, tmp_path)

    assert access.url == "https://10.96.0.1:443"
    assert access.headers() == {"Authorization": "Bearer first"}
    token.write_text("second")  # the kubelet replaces it
    assert access.headers() == {"Authorization": "Bearer second"}
    assert isinstance(access.tls, ssl.SSLContext)
    assert access.tls.verify_mode is ssl.CERT_REQUIRED
    assert in_cluster({**INSIDE, "KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path).url == "https://[fd00::1]:443"


def test_outside_of_a_pod_a_kubeconfig_is_asked_for() -> None:
    with pytest.raises(BadInput, match=r"KUBERNETES_SERVICE_HOST.* are not set.*kubernetes\.kubeconfig"):
        in_cluster({})


def test_a_missing_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="token"):
        Access("https://192.0.2.1", None, token_file=tmp_path / "token").headers()


def test_a_kubeconfig_has_files_or_data(certificates: Certificates, tmp_path: Path) -> None:
    certificate, key = certificates.of("client")
    files = {
        "server": "https://192.0.2.1:6443/",
        "certificate-authority": str(certificates.ca),
        "tls-server-name": "api",
    }
    data = {
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
    }

    access = from_kubeconfig(write(tmp_path, files, data))

    assert (access.url, access.server_name, access.headers()) == ("https://192.0.2.1:6443", "api", {})
    assert access.tls is not None


def test_a_token_may_be_in_the_kubeconfig_or_in_a_file_beside_it(tmp_path: Path) -> None:
    assert from_kubeconfig(write(tmp_path, user={"token": "t"})).headers() == {"Authorization": "Bearer t"}
    (tmp_path / "secret").write_text("f")
    assert from_kubeconfig(write(tmp_path, user={"tokenFile": "secret"})).headers() == {"Authorization": "Bearer f"}


def test_a_context_is_chosen_by_its_name(tmp_path: Path) -> None:
    contexts = [{"name": name, "context": {"cluster": "c"}} for name in ("x", "other")]

    assert from_kubeconfig(write(tmp_path, contexts=contexts), "other").url == "http://192.0.2.1:8080"


@pytest.mark.parametrize(
    ("cluster", "user", "fields", "message"),
    [
        ({"server": "192.0.2.1"}, {}, {}, "server '192.0.2.1' is not an address; allowed: https://HOST:PORT"),
        (
            {"server": "https://h", "insecure-skip-tls-verify": True},
            *({}, {}),
            "insecure-skip-tls-verify is not supported: .*; allowed: certificate-authority",
        ),
        (
            None,
            {"exec": {"command": "aws"}},
            {},
            "exec of a user is not supported; allowed: a client certificate or a ",
        ),
        (None, {}, {"current-context": "z"}, "it has no context 'z'"),
        (None, {}, {"clusters": None}, "it has no cluster 'c'"),
        (
            {"server": "https://h", "certificate-authority-data": "=?"},
            {},
            {},
            "certificate-authority-data is not base64",
        ),
        (
            {"server": "https://h", "certificate-authority-data": "aGk="},
            {},
            {},
            "the certificate of the authority is not",
        ),
        ({"server": "https://h", "certificate-authority": "gone"}, {}, {}, "gone"),
        (
            {"server": "https://h"},
            {"client-key-data": "aGk="},
            {},
            "a user needs both client-certificate and client-key",
        ),
        (
            {"server": "https://h"},
            {"client-key-data": "aGk=", "client-certificate-data": "aGk="},
            *({}, "the client certificate or its key is not valid"),
        ),
    ],
)
def test_a_mistake_in_a_kubeconfig_is_named(
    cluster: dict[str, Any] | None, user: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        from_kubeconfig(write(tmp_path, cluster, user, **fields))


@pytest.mark.parametrize("text", ["", "- a list", "a: 1\n---\nb: 2"])
def test_other_files_are_no_kubeconfig(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(text)

    with pytest.raises(BadInput, match="not a kubeconfig"):
        from_kubeconfig(path)


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"kubernetes\.kubeconfig: .*config.*[Nn]o such file"):
        from_kubeconfig(tmp_path / "config")
