"""Certificates and kubeconfigs. One authority per cluster; keys never leave its state folder."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster.processes import run

_DAYS = "3650"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


@dataclass(frozen=True)
class Authority:
    """A folder with `ca.crt`, `ca.key` and what they signed: `NAME.crt` and `NAME.key`."""

    folder: Path

    @classmethod
    def ensure(cls, folder: Path) -> Authority:
        """The authority in this folder, made when there is none."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = cls(folder)
        if not authority.certificate("ca").exists():
            _openssl(folder, "ca", "/CN=tunemill local cluster", "basicConstraints=critical,CA:TRUE")
        return authority

    def certificate(self, name: str) -> Path:
        """The certificate with this name."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The private key with this name."""
        return self.folder / f"{name}.key"

    def sign(self, name: str, *, user: str, group: str = "", hosts: Iterable[str] = ()) -> None:
        """Make a certificate for a client (its user and group), or with `hosts` for a server as well; once."""
        if self.certificate(name).exists():
            return
        names = [f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts]
        extensions = ["extendedKeyUsage=clientAuth,serverAuth" if names else "extendedKeyUsage=clientAuth"]
        if names:
            extensions.append("subjectAltName=" + ",".join(names))
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        _openssl(
            self.folder,
            name,
            subject,
            *extensions,
            ca=("-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))),
        )

    def kubeconfig(self, name: str, server: str) -> str:
        """A self-contained kubeconfig of the client with this name."""

        def data(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "tunemill",
                    "cluster": {"server": server, "certificate-authority-data": data(self.certificate("ca"))},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": data(self.certificate(name)),
                        "client-key-data": data(self.key(name)),
                    },
                }
            ],
            "contexts": [{"name": "tunemill", "context": {"cluster": "tunemill", "user": name}}],
            "current-context": "tunemill",
        }
        import yaml

        return yaml.safe_dump(document, sort_keys=False)


def _openssl(folder: Path, name: str, subject: str, *extensions: str, ca: tuple[str, ...] = ()) -> None:
    certificate = folder / f"{name}.crt"
    # The certificate appears last and whole, so that its presence means that the key is there too.
    fresh = certificate.with_suffix(".new")
    argv = ["openssl", "req", "-x509", "-days", _DAYS, *_NEW_KEY, "-subj", subject, *ca]
    for extension in extensions:
        argv += ["-addext", extension]
    run(
        [*argv, "-keyout", str(folder / f"{name}.key"), "-out", str(fresh)],
        what=f"Making the certificate {name} failed",
    )
    fresh.rename(certificate)
