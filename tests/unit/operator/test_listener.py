"""The progress endpoint under load: connections of strangers are cheap and delay no one else (finding H3)."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from property.builders import at, text
from tunemill_api.constants import LABEL_FINETUNE, PROGRESS_AUDIENCE
from tunemill_operator.engine.objects import pod_of
from tunemill_operator.engine.volumes import progress_path
from tunemill_operator.progress import server as progress_server
from tunemill_operator.progress.auth import (
    POD_UID,
    REVIEWS_PER_CLIENT,
    BusyError,
    NotAuthenticatedError,
    ReportAuthenticator,
)
from tunemill_operator.progress.authority import issue_certificate
from tunemill_operator.progress.board import LONGEST_ETA_SECONDS, Board
from tunemill_operator.progress.certificate import NAMES, Certificate
from tunemill_operator.progress.server import application
from tunemill_operator.runtime import listener
from tunemill_operator.runtime.listener import listening

Jump = Callable[..., Any]
REPORT = '{"trainerStatus":{"progressPercentage":4}}'
STRANGER, OTHER = "127.0.0.2", "127.0.0.3"
HELLO_BEGUN = b"\x16\x03\x01\x02"


class Reviewer:
    """Accepts the token `valid` as that of the pod."""

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        """Judge a token."""
        status = {"authenticated": True, "audiences": [audience], "user": {"extra": {POD_UID: ["pod"]}}}
        return status if token == "valid" else {}


class Pods:
    """Returns the pod."""

    def get(self, uid: str) -> Any:
        """Return the pod."""
        metadata = {"namespace": "team-a", "name": "pod", "uid": uid, "resourceVersion": "1"}
        metadata |= {"creationTimestamp": text(at(0)), "labels": {LABEL_FINETUNE: "support"}}
        return pod_of({"metadata": metadata, "status": {"phase": "Running"}})


class Queue:
    """Accepts keys."""

    def add(self, key: tuple[str, str]) -> None:
        """Do nothing."""


@dataclass
class Endpoint:
    """A progress endpoint that listens."""

    port: int
    context: ssl.SSLContext

    async def connect(self, address: str, *, tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection from an address of this machine."""
        names = {"ssl": self.context, "server_hostname": "localhost"} if tls else {}
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0), **names)

    async def report(self, address: str = "127.0.0.1", body: str = REPORT, token: str = "valid") -> int:
        """Report progress; return the HTTP status."""
        reader, writer = await self.connect(address)
        writer.write(request(body, token))
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        writer.transport.abort()
        return status


def request(body: str, token: str = "valid", length: int | None = None, header: str = "") -> bytes:
    """Return a request."""
    lines = [f"POST {progress_path('team-a', 'support')} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}"]
    lines += [header] if header else []
    lines += [f"Content-Length: {len(body) if length is None else length}", "", body]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def an_endpoint(folder: Path) -> AsyncIterator[Endpoint]:
    """Serve the progress endpoint with TLS."""
    for name, content in zip(NAMES, issue_certificate("localhost"), strict=True):
        (folder / name).write_bytes(content)
    certificate = Certificate(*(folder / name for name in NAMES))
    app = application(ReportAuthenticator(Reviewer(), Pods()), Board(Queue()), lambda _: None)
    async with listening(app, "127.0.0.1", 0, certificate.context) as port:
        yield Endpoint(port, ssl.create_default_context(cafile=str(folder / "ca.crt")))


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Wait until the server has closed a connection; return what it sent before."""
    async with asyncio.timeout(60):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_a_report_is_accepted(tmp_path: Path) -> None:
    """The endpoint works."""
    async with an_endpoint(tmp_path) as endpoint:
        assert await endpoint.report() == 200
        assert await endpoint.report(token="forged") == 401


async def test_half_open_connections_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections and unfinished handshakes (03_server.py)."""
    complete = b"\x16\x03\x01\x00\x04\x01\x00\x00\x00"
    async with an_endpoint(tmp_path) as endpoint:
        with monkeypatch.context() as short:
            short.setattr(listener, "HANDSHAKE_SECONDS", 0.3)
            for said in (b"", HELLO_BEGUN, complete):
                reader, writer = await endpoint.connect(STRANGER, tls=False)
                writer.write(said)
                await closed(reader)
        assert await endpoint.report() == 200


async def test_a_connection_without_tls_is_closed_at_once(tmp_path: Path) -> None:
    """Before any memory is allocated for it."""
    async with an_endpoint(tmp_path) as endpoint:
        reader, writer = await endpoint.connect(STRANGER, tls=False)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await closed(reader) == b""


async def test_endless_headers_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection is closed too (03_slowloris.py)."""
    monkeypatch.setitem(listener._HTTP, "keepalive_timeout", 0.3)
    async with an_endpoint(tmp_path) as endpoint:
        for said in (b"", b"POST / HTTP/1.1\r\nX: "):
            reader, writer = await endpoint.connect(STRANGER)
            writer.write(said)
            await closed(reader)


async def test_an_endless_body_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a pod that may report; READ_SECONDS was not used."""
    monkeypatch.setattr(progress_server, "READ_SECONDS", 0.3)
    async with an_endpoint(tmp_path) as endpoint:
        reader, writer = await endpoint.connect(STRANGER)
        writer.write(request("{", length=1000))
        assert (await closed(reader)).startswith(b"HTTP/1.1 408")


async def test_large_headers_and_bodies_are_refused(tmp_path: Path) -> None:
    """The connection is closed, and the rest is not read."""
    async with an_endpoint(tmp_path) as endpoint:
        for sent, status in (
            (request(REPORT, header=f"X: {'y' * 10_000}"), 400),
            (request(REPORT, header="\r\n".join(f"X{number}: y" for number in range(200))), 400),
            (request("", length=10**9) + b"{" * 100_000, 413),
            (request("", token="forged", length=10**9), 401),
        ):
            reader, writer = await endpoint.connect(STRANGER)
            writer.write(sent)
            assert int((await closed(reader))[9:12]) == status


async def test_connections_per_address_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ones are closed; other addresses are served, and closing a connection frees its slot."""
    monkeypatch.setattr(listener, "CONNECTIONS_PER_CLIENT", 3)
    monkeypatch.setitem(listener._HTTP, "keepalive_timeout", 3600.0)  # however slow the test is
    async with an_endpoint(tmp_path) as endpoint:
        held = [await endpoint.connect(STRANGER) for _ in range(3)]
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await endpoint.report(STRANGER)
        assert await endpoint.report(OTHER) == 200
        held[0][1].write(request(REPORT, token="forged"))
        assert (await held[0][0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        held[1][1].transport.abort()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await endpoint.report(STRANGER) == 200
                    break
                except (OSError, asyncio.IncompleteReadError):
                    await asyncio.sleep(0.01)


async def test_a_full_endpoint_closes_idle_connections_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest connection of the address with the most is closed; of many idle ones, the oldest."""
    monkeypatch.setattr(listener, "CONNECTIONS", 8)
    async with an_endpoint(tmp_path) as endpoint:
        silent = [await endpoint.connect(OTHER, tls=False) for _ in range(8)]
        assert await endpoint.report() == 200
        await closed(silent[0][0])
        busy = [await endpoint.connect(STRANGER) for _ in range(20)]
        for _ in range(3):
            assert await endpoint.report() == 200
        await closed(silent[1][0])
        await closed(busy[0][0])


def test_token_reviews_per_address_are_limited(jump: Jump) -> None:
    """A client with thousands of forged tokens has to retry; the token of another client is reviewed at once."""

    class SlowReviewer(Reviewer):
        async def review_token(self, token: str, audience: str) -> dict[str, Any]:
            await asyncio.sleep(1)
            return await super().review_token(token, PROGRESS_AUDIENCE)

    async def story() -> None:
        gatekeeper, key, clock = (
            ReportAuthenticator(SlowReviewer(), Pods()),
            ("team-a", "support"),
            asyncio.get_running_loop(),
        )
        forged = [asyncio.ensure_future(gatekeeper.pod_of(f"Bearer {number}", key, STRANGER)) for number in range(1000)]
        await asyncio.sleep(0)
        begun = clock.time()
        assert await gatekeeper.pod_of("Bearer valid", key, OTHER) == "pod"
        assert clock.time() - begun <= 1
        answers = [type(answer) for answer in await asyncio.gather(*forged, return_exceptions=True)]
        assert answers.count(NotAuthenticatedError) == REVIEWS_PER_CLIENT
        assert answers.count(BusyError) == 1000 - REVIEWS_PER_CLIENT
        with pytest.raises(NotAuthenticatedError):
            await gatekeeper.pod_of("Bearer again", key, STRANGER)

    jump(story())


async def test_an_unrepresentable_remaining_time_is_rejected(tmp_path: Path) -> None:
    """The API server rejected the status, and no limit of the run was enforced (26_limits.py)."""
    async with an_endpoint(tmp_path) as endpoint:
        for eta, status in ((60, 200), (LONGEST_ETA_SECONDS, 200), (10**18, 400), (10**31, 400)):
            body = f'{{"trainerStatus":{{"progressPercentage":1,"estimatedRemainingSeconds":{eta}}}}}'
            assert await endpoint.report(body=body) == status


async def test_a_port_in_use_has_a_specific_error() -> None:
    """The message names the setting."""
    async with listening(web.Application(), "127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"):
            async with listening(web.Application(), "127.0.0.1", port):
                pass
