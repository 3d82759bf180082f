"""The certificate of the progress endpoint that the operator generates."""

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
from tunemill_operator.kube.client import Resource
from tunemill_operator.kube.errors import ConflictError, NotFoundError, UnavailableError
from tunemill_operator.progress import certificate
from tunemill_operator.progress.authority import issue_certificate
from tunemill_operator.progress.certificate import NAMES, load_or_create

HOST = f"{'r' * 50}-progress.{'n' * 63}.svc"


class Secrets:
    """One Secret of the API server; raises a pending error before it responds."""

    def __init__(self, *waiting: Exception, data: dict[str, str] | None = None) -> None:
        self.body: dict[str, Any] = {"metadata": {"name": "tls", "resourceVersion": "1"}}
        if data is not None:
            self.body["data"] = data
        self.waiting = list(waiting)
        self.replaced = 0

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Answer."""
        assert (resource.path(namespace, name)) == "/api/v1/namespaces/system/secrets/tls"
        return self.body

    async def replace(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take the body, unless something is waiting."""
        if self.waiting:
            raise self.waiting.pop(0)
        self.replaced += 1
        self.body = body
        return body


def greet(authority: str, host: str, server: ssl.SSLContext) -> str:
    """Do a TLS handshake with the strictest client settings of Python; return the error or ""."""
    client = ssl.create_default_context(cadata=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    greeting = client.wrap_bio(to_client, to_server, server_hostname=host)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (greeting, answering, greeting, answering):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as problem:
            return problem.verify_message
    assert answering.version() == "TLSv1.3"
    return ""


async def test_a_generated_certificate_is_valid_for_its_host_and_ca_only() -> None:
    """Also for hosts longer than a common name. The CA of another installation does not verify it."""
    mine = await load_or_create(Secrets(), "system", "tls", HOST)
    assert greet(mine.authority, HOST, mine.context) == ""
    assert "Hostname mismatch" in greet(mine.authority, "elsewhere.svc", mine.context)
    other = await load_or_create(Secrets(), "system", "tls", HOST)
    assert greet(other.authority, HOST, mine.context) != ""


async def test_the_next_leader_uses_the_same_certificate() -> None:
    """Pods trust the CA they were created with, whichever replica they reach."""
    secrets = Secrets()
    first, second = [await load_or_create(secrets, "system", "tls", HOST) for _ in range(2)]
    assert secrets.replaced == 1
    assert greet(first.authority, HOST, second.context) == ""


async def test_of_two_concurrent_writers_the_first_wins() -> None:
    """The Secret changed between read and write: its new content is used."""
    others = {name: base64.b64encode(part).decode() for name, part in zip(NAMES, issue_certificate(HOST), strict=True)}
    secrets = Secrets(ConflictError("changed", 409))

    async def lose(*_: Any) -> dict[str, Any]:
        secrets.body["data"] = others
        raise ConflictError("changed", 409)

    secrets.replace = lose  # type: ignore[method-assign]
    assert (await load_or_create(secrets, "system", "tls", HOST)).authority.encode() == base64.b64decode(
        others["ca.crt"]
    )


async def test_an_unavailable_api_server_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new leader must not give up because of a short outage."""
    monkeypatch.setattr(certificate, "AGAIN_SECONDS", 0)
    secrets = Secrets(UnavailableError("down"), UnavailableError("down"))
    assert (await load_or_create(secrets, "system", "tls", HOST)).authority
    assert not secrets.waiting


async def test_an_unusable_secret_is_rejected(tmp_path: Path) -> None:
    """The Secret is missing or has other content. The caller adds its name to the message."""
    with pytest.raises(NotFoundError):
        await load_or_create(Secrets(NotFoundError("gone", 404)), "system", "tls", HOST)
    rubbish = dict.fromkeys(NAMES, base64.b64encode(b"rubbish").decode())
    with pytest.raises(OSError, match="PEM"):
        await load_or_create(Secrets(data=rubbish), "system", "tls", HOST)
