"""Access to the API server: address, certificates and token, from inside the cluster or from a kubeconfig.

Inside the cluster they are the environment and the files of the service account (its token is replaced about every
hour, so it is read for each request). A kubeconfig is read at the start; of its ways to log in, certificates and
tokens are supported, programs (``exec``) are not.
"""

import base64
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nfq_enforcer import input_file
from nfq_enforcer.errors import BadInput, DocumentError
from nfq_enforcer.input_file import SETTINGS_SIZE
from nfq_enforcer.policy import yaml_source

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"  # set in every container of a pod
_TOKEN_SIZE = 64 << 10


class Access(NamedTuple):
    """Access: the address of an API server, and the credentials that it accepts."""

    url: str  # without a slash at its end
    tls: ssl.SSLContext | None  # None: plain HTTP
    token: str = ""
    token_file: Path | None = None  # of a token that is replaced at times
    server_name: str | None = None  # in the server's certificate, if it is not the host of the address

    def headers(self) -> dict[str, str]:
        """Return the headers of a request; raise BadInput if the token cannot be read."""
        token = self.token
        if self.token_file is not None:
            token = input_file.read(self.token_file, _TOKEN_SIZE).decode("ascii", "replace").strip()
        return {"Authorization": f"Bearer {token}"} if token else {}


def in_cluster(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Access:
    """Return the access of a pod by its service account; raise BadInput outside of a cluster."""
    host, port = environment.get(_HOST), environment.get(_PORT)
    if not host or not port:
        raise BadInput(
            f"kubernetes: the variables {_HOST} and {_PORT} are not set, so this is no pod; "
            "allowed outside of a pod: kubernetes.kubeconfig with the path of a kubeconfig"
        )
    address = f"[{host}]" if ":" in host else host
    return Access(f"https://{address}:{port}", _tls(folder / "ca.crt"), token_file=folder / "token")


def from_kubeconfig(path: Path, context: str | None = None) -> Access:
    """Return the access by a context of a kubeconfig, by default its current one; raise BadInput."""
    config = _read(path)
    name = context or config.get("current-context")
    chosen = _named(path, config, "context", name)
    cluster = _named(path, config, "cluster", chosen.get("cluster"))
    user = _named(path, config, "user", chosen.get("user")) if chosen.get("user") else {}
    url = str(cluster.get("server", "")).rstrip("/")
    if not url.startswith(("https://", "http://")):
        raise BadInput(f"{path}: server '{url}' is not an address; allowed: https://HOST:PORT")
    if cluster.get("insecure-skip-tls-verify"):
        raise BadInput(
            f"{path}: insecure-skip-tls-verify is not supported: anyone on the way to the API server could write "
            "policy; allowed: certificate-authority or certificate-authority-data"
        )
    for way in ("exec", "auth-provider", "username"):
        if way in user:
            raise BadInput(f"{path}: {way} of a user is not supported; allowed: a client certificate or a token")
    tls = None
    if url.startswith("https://"):
        authority = _content(path, cluster, "certificate-authority")
        tls = _context(path, authority)
        _load_client(path, tls, _content(path, user, "client-certificate"), _content(path, user, "client-key"))
    token_file = user.get("tokenFile")
    return Access(
        url,
        tls,
        str(user.get("token", "")),
        None if token_file is None else path.parent / str(token_file),
        cluster.get("tls-server-name"),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = yaml_source.decode(input_file.read(path, SETTINGS_SIZE), str(path))
    except DocumentError as error:
        raise BadInput(f"kubernetes.kubeconfig: {error}") from None
    documents = yaml_source.parse(text, str(path))
    if len(documents) != 1 or not isinstance(documents[0].data, dict):
        raise BadInput(f"{path}: not a kubeconfig; allowed: one YAML document with clusters, users and contexts")
    return documents[0].data


def _named(path: Path, config: Mapping[str, Any], kind: str, name: object) -> Mapping[str, Any]:
    """Return the entry of this name in the list of a kind (context, cluster or user)."""
    entries = config.get(f"{kind}s")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(kind), dict):
            found: Mapping[str, Any] = entry[kind]
            return found
    raise BadInput(f"{path}: it has no {kind} '{name}'")


def _content(path: Path, entry: Mapping[str, Any], key: str) -> bytes | None:
    """Return the content of a file that a key names, or of the key itself with ``-data``; paths are relative."""
    data = entry.get(f"{key}-data")
    if data is not None:
        try:
            return base64.b64decode(str(data), validate=True)
        except ValueError:
            raise BadInput(f"{path}: {key}-data is not base64") from None
    return None if entry.get(key) is None else input_file.read(path.parent / str(entry[key]), SETTINGS_SIZE)


def _tls(authority: Path) -> ssl.SSLContext:
    return _context(authority, input_file.read(authority, SETTINGS_SIZE))


def _context(path: Path, authority: bytes | None) -> ssl.SSLContext:
    """Return a context that accepts certificates of this authority, or of the host's authorities without one."""
    if authority is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise BadInput(f"{path}: the certificate of the authority is not valid: {error}") from None


def _load_client(path: Path, tls: ssl.SSLContext, certificate: bytes | None, key: bytes | None) -> None:
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise BadInput(f"{path}: a user needs both client-certificate and client-key, or neither")
    with tempfile.TemporaryDirectory() as folder:  # ssl reads files only; the folder's mode is 0700
        pair = Path(folder, "certificate"), Path(folder, "key")
        for file, content in zip(pair, (certificate, key), strict=True):
            file.write_bytes(content)
        try:
            tls.load_cert_chain(*pair)
        except ssl.SSLError as error:
            raise BadInput(f"{path}: the client certificate or its key is not valid: {error}") from None
