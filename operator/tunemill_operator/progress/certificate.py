"""The certificate of the progress endpoint: from three files, or created by the operator and stored in a Secret.

Pods get the CA certificate when they are created, and do not trust another one later. Therefore all replicas, and all
later processes, need the same certificate.
"""

import asyncio
import base64
import logging
import ssl
import tempfile
from pathlib import Path
from typing import Any, Protocol

from tunemill_operator.kube.client import SECRETS, Resource
from tunemill_operator.kube.errors import ConflictError, UnavailableError

log = logging.getLogger(__name__)

NAMES = ("tls.crt", "tls.key", "ca.crt")
"""Keys of the Secret, as in those of cert-manager."""
AGAIN_SECONDS = 1.0


class Certificate:
    """A certificate with its private key and CA certificate, from three files."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        self._files = (certificate, key, authority)
        self.authority = ""
        """CA certificate for the pods (PEM)."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the files if they have changed, such as those of a mounted Secret after a renewal.

        Raises:
            OSError: a file cannot be read, or the key does not match the certificate.
        """
        state = tuple(file.stat().st_mtime_ns for file in self._files)
        if state != self._loaded:
            certificate, key, authority = self._files
            self.context.load_cert_chain(certificate, key)
            self.authority = authority.read_text(encoding="utf-8")
            self._loaded = state


class Secrets(Protocol):
    """Reads and replaces Secrets."""

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Return an object."""

    async def replace(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace an object if it has not changed."""


async def load_or_create(secrets: Secrets, namespace: str, name: str, host: str) -> Certificate:
    """Return the certificate in a Secret. Create it if the Secret is empty.

    Args:
        secrets: client for the Secret.
        namespace: namespace of the Secret.
        name: name of the Secret, which must exist.
        host: host name of a new certificate: that of the progress endpoint's URL.

    Raises:
        KubeError: the Secret does not exist, or access is denied.
        OSError: the Secret contains something else.
    """
    while True:
        try:
            secret = await secrets.get(SECRETS, namespace, name)
            if not all(secret.get("data", {}).get(item) for item in NAMES):
                data = {item: base64.b64encode(value).decode() for item, value in _made(host).items()}
                secret = await secrets.replace(SECRETS, namespace, {**secret, "data": data})
                log.info("created a certificate for %s in the Secret %s", host, name)
            break
        except ConflictError:  # the previous leader was faster
            continue
        except UnavailableError as error:
            log.warning("the certificate could not be read, retrying: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)
    with tempfile.TemporaryDirectory() as folder:  # ssl can read a key from a file only
        for item in NAMES:
            (Path(folder) / item).write_bytes(base64.b64decode(secret["data"][item]))
        return Certificate(*(Path(folder) / item for item in NAMES))


def _made(host: str) -> dict[str, bytes]:
    # Imported here, because cryptography is needed only once per installation.
    from tunemill_operator.progress import authority

    return dict(zip(NAMES, authority.issue_certificate(host), strict=True))
