"""The certificate of the progress endpoint that the operator makes itself."""

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
    """One Secret of the API server; raises what is waiting before it answers."""

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
    """Let the strictest client that Python has greet the server; return why it would not, or ""."""
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


async def test_a_made_certificate_convinces_who_knows_its_authority_of_its_host_alone() -> None:
    """Also where the host is longer than a common name may be; another installation's authority knows it not."""
    mine = await load_or_create(Secrets(), "system", "tls", HOST)
    assert greet(mine.authority, HOST, mine.context) == ""
    assert "Hostname mismatch" in greet(mine.authority, "elsewhere.svc", mine.context)
    other = await load_or_create(Secrets(), "system", "tls", HOST)
    assert greet(other.authority, HOST, mine.context) != ""


async def test_whoever_leads_next_proves_itself_with_the_same_certificate() -> None:
    """Pods trust the authority that they were made with, whichever replica they meet."""
    secrets = Secrets()
    first, second = [await load_or_create(secrets, "system", "tls", HOST) for _ in range(2)]
    assert secrets.replaced == 1
    assert greet(first.authority, HOST, second.context) == ""


async def test_of_two_that_make_one_at_once_the_faster_wins() -> None:
    """The Secret has changed between reading and writing: what it holds by then is taken."""
    others = {name: base64.b64encode(part).decode() for name, part in zip(NAMES, issue_certificate(HOST), strict=True)}
    secrets = Secrets(ConflictError("changed", 409))

    async def lose(*_: Any) -> dict[str, Any]:
        secrets.body["data"] = others
        raise ConflictError("changed", 409)

    secrets.replace = lose  # type: ignore[method-assign]
    assert (await load_or_create(secrets, "system", "tls", HOST)).authority.encode() == base64.b64decode(
        others["ca.crt"]
    )


async def test_an_api_server_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new leader must not give up for a moment without one."""
    monkeypatch.setattr(certificate, "AGAIN_SECONDS", 0)
    secrets = Secrets(UnavailableError("down"), UnavailableError("down"))
    assert (await load_or_create(secrets, "system", "tls", HOST)).authority
    assert not secrets.waiting


async def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A Secret that is gone or holds something else: who calls says which one."""
    with pytest.raises(NotFoundError):
        await load_or_create(Secrets(NotFoundError("gone", 404)), "system", "tls", HOST)
    rubbish = dict.fromkeys(NAMES, base64.b64encode(b"rubbish").decode())
    with pytest.raises(OSError, match="PEM"):
        await load_or_create(Secrets(data=rubbish), "system", "tls", HOST)
