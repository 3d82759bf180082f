"""The certificate of the progress endpoint: from three files, or made here and kept in a Secret of the operator's own.

Pods get the authority when they are made and trust no other until they end. So all replicas, and all that ever follow,
have to prove themselves with one certificate: it cannot live in a process.
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
"""The keys of the Secret; cert-manager uses the same."""
AGAIN_SECONDS = 1.0


class Certificate:
    """What the endpoint proves itself with, from three files."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        self._files = (certificate, key, authority)
        self.authority = ""
        """Whom pods are to trust, as PEM."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the files if they have changed, as those of a mounted Secret do when it is renewed.

        Raises:
            OSError: when they cannot be read or do not belong together.
        """
        state = tuple(file.stat().st_mtime_ns for file in self._files)
        if state != self._loaded:
            certificate, key, authority = self._files
            self.context.load_cert_chain(certificate, key)
            self.authority = authority.read_text(encoding="utf-8")
            self._loaded = state


class Secrets(Protocol):
    """Reads and replaces objects of the API server."""

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Return an object."""

    async def replace(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace an object, provided that nobody has changed it."""


async def load_or_create(secrets: Secrets, namespace: str, name: str, host: str) -> Certificate:
    """Return the certificate that a Secret holds; make it if the Secret is empty.

    Args:
        secrets: where the Secret is.
        namespace: the Secret's.
        name: the Secret's; it has to be there.
        host: whom a new certificate is for: the host of the URL at which pods report.

    Raises:
        KubeError: when the Secret is missing, or must not be read or written.
        OSError: when the Secret holds something else.
    """
    while True:
        try:
            secret = await secrets.get(SECRETS, namespace, name)
            if not all(secret.get("data", {}).get(item) for item in NAMES):
                data = {item: base64.b64encode(value).decode() for item, value in _made(host).items()}
                secret = await secrets.replace(SECRETS, namespace, {**secret, "data": data})
                log.info("made a certificate for %s; it is kept in Secret %s", host, name)
            break
        except ConflictError:  # whoever led until now was faster
            continue
        except UnavailableError as error:
            log.warning("the certificate could not be read, trying again: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads a key from nowhere but a file
        for item in NAMES:
            (Path(folder) / item).write_bytes(base64.b64decode(secret["data"][item]))
        return Certificate(*(Path(folder) / item for item in NAMES))


def _made(host: str) -> dict[str, bytes]:
    # cryptography is needed once in the life of an installation.
    from tunemill_operator.progress import authority

    return dict(zip(NAMES, authority.issue_certificate(host), strict=True))
