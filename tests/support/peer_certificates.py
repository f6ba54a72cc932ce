"""Certificates of agents, for tests of the connections between them: made with the ``openssl`` command."""

import subprocess
from pathlib import Path

_REQUEST = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_NAMES = "basicConstraints = CA:FALSE\nsubjectAltName = "


class Authority:
    """Authority: issues certificates for names."""

    def __init__(self, folder: Path) -> None:
        """Make the key and the certificate of the authority."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.ca = folder / "ca.crt"
        self._openssl(*_REQUEST, "-x509", "-days", "2", "-subj", "/CN=agents", "-keyout", "ca.key", "-out", "ca.crt")

    def issue(self, name: str, alternative: str | None = None) -> tuple[Path, Path]:
        """Return a certificate and its key; the name is its subject alternative name, or another one is."""
        (self.folder / "names").write_text(_NAMES + (alternative or f"DNS:{name}"))
        self._openssl(*_REQUEST, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        authority = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.crt")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def settings(self, listen: str, name: str, alternative: str | None = None) -> dict[str, str]:
        """Return the section ``peers`` of an agent with a certificate for this name."""
        certificate, key = self.issue(name, alternative)
        return {"listen": listen, "ca_file": str(self.ca), "cert_file": str(certificate), "key_file": str(key)}

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=True)
