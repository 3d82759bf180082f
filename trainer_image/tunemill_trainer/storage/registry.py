"""A repository in an OCI registry: pushes and reads blobs and manifests, with retries of transient errors."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import requests
from dxf import DXF, DXFBase
from dxf.exceptions import DXFAuthInsecureError, DXFUnauthorizedError
from tunemill_api.failures import Reason
from tunemill_api.publish import Oci

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.credentials import RegistryLogin

_FIELD = "spec.publish.oci"
_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 20
_EMPTY = b"{}"

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RegistryRepository:
    """A repository in a registry. All methods raise StageError: RegistryWriteDenied or RegistryUnreachable."""

    def __init__(self, target: Oci, login: RegistryLogin | None, pause: Callable[[float], None]) -> None:
        """Create the client object. It sends no request.

        Args:
            target: registry and repository.
            login: sent over HTTPS only; None asks for access without credentials.
            pause: waits for a number of seconds; an exception that it raises ends the push.
        """
        parts = urlsplit(target.registry)
        self.name = f"{parts.netloc}/{target.repository}"
        self._pause = pause

        def authenticate(client: DXFBase, response: requests.Response) -> None:
            user, password = (login.user, login.password) if login else (None, None)
            client.authenticate(user, password, response=response)

        self._client = DXF(
            parts.netloc, target.repository, authenticate, insecure=parts.scheme == "http", timeout=_TIMEOUT_SECONDS
        )

    def check_writable(self) -> None:
        """Check the permission to push, with a blob of two bytes that nothing refers to."""
        self.push_blob(digest_of(_EMPTY), lambda: _EMPTY, again=True)

    def push_blob(self, digest: str, content: Callable[[], Any], *, again: bool = False) -> None:
        """Push a blob, unless the repository has it.

        Args:
            digest: sha256:… of the blob.
            content: returns the blob for each attempt: bytes, or an object with `read` and a length.
            again: whether it is pushed even if the repository has it.
        """
        self._call(
            lambda: self._client.push_blob(data=content(), digest=digest, check_exists=not again),
            # A login that expires during an upload leaves a part of the blob in the registry.
            transient=frozenset({400}),
        )

    def blob(self, digest: str) -> Iterator[bytes]:
        """Yield the content of a blob. The digest is checked after the last part."""
        yield from self._call(lambda: cast("Iterable[bytes]", self._client.pull_blob(digest, chunk_size=_CHUNK)))

    def put_manifest(self, reference: str, manifest: bytes) -> None:
        """Store a manifest under a tag or under its digest. A tag moves to it."""
        self._call(lambda: self._client.set_manifest(reference, manifest.decode()))

    def manifest(self, reference: str) -> bytes | None:
        """Return the manifest of a tag or digest; None if there is none."""

        def read() -> bytes | None:
            try:
                text, _ = self._client.get_manifest_and_response(reference)
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code == 404:
                    return None
                raise
            return text.encode()

        return self._call(read)

    def _call(self, call: Callable[[], _T], transient: frozenset[int] = frozenset()) -> _T:
        waits = iter(_WAITS_SECONDS)
        with _errors(self.name):
            while True:
                try:
                    return call()
                except requests.RequestException as error:
                    wait = next(waits, None)
                    if wait is None or not _is_transient(error, transient):
                        raise
                    _log.warning("registry request failed, retrying in %.0f s: %s", wait, error)
                    self._pause(wait)


def digest_of(content: bytes) -> str:
    """Return the digest of a blob or manifest, as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _is_transient(error: requests.RequestException, more: frozenset[int]) -> bool:
    if isinstance(error, requests.exceptions.SSLError):
        return False
    if error.response is None:
        return True
    status = error.response.status_code
    return status in {408, 425, 429} | more or status >= 500


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn errors of the client into StageErrors."""
    try:
        yield
    except DXFAuthInsecureError as error:
        raise StageError(
            Reason.REGISTRY_WRITE_DENIED,
            f"the registry of {name} asks for credentials over plain HTTP, over which none are sent",
            f"Set {_FIELD}.registry to an https:// URL.",
        ) from error
    except DXFUnauthorizedError as error:
        raise _denied(name, "the registry does not accept the credentials") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            raise _denied(name, "the credentials may not push to this repository") from error
        if status == 404:
            raise _denied(name, "the registry has no such repository, and creates none when it is pushed to") from error
        raise _unreachable(name, f"HTTP status {status}") from error
    except requests.RequestException as error:
        raise _unreachable(name, f"{type(error).__name__}: {error}") from error


def _denied(name: str, why: str) -> StageError:
    return StageError(Reason.REGISTRY_WRITE_DENIED, f"cannot push to {name} ({_FIELD}): {why}")


def _unreachable(name: str, why: str) -> StageError:
    return StageError(Reason.REGISTRY_UNREACHABLE, f"the registry of {name} ({_FIELD}) fails: {why}")
