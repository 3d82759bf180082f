"""S3 and a Hub with certificates of a private CA, with a real TLS server in front of both."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from learn.training import World, a_world, run_spec, run_stage
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base


@contextmanager
def behind_tls(url: str, context: ssl.SSLContext) -> Iterator[str]:
    """Terminate TLS connections and forward them to a plain HTTP server; yields the new URL."""
    target = (urlsplit(url).hostname, urlsplit(url).port)
    listener = socket.create_server(("127.0.0.1", 0))

    def hand_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while part := source.recv(1 << 16):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one of them has hung up
            return

    def serve(raw: socket.socket) -> None:
        try:
            outside = context.wrap_socket(raw, server_side=True)
        except OSError:  # the client does not trust us
            raw.close()
            return
        with outside, socket.create_connection(target) as inside:
            answering = threading.Thread(target=hand_on, args=(inside, outside), daemon=True)
            answering.start()
            hand_on(outside, inside)
            answering.join()

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=serve, args=(raw,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"https://localhost:{listener.getsockname()[1]}"
    finally:
        listener.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[World, Path]]:
    """A world with rows whose services use TLS, and the CA certificate."""
    authority = Authority.ensure(tmp_path / "pki")
    authority.sign("server", user="services", hosts=["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("server"), authority.key("server"))
    with a_world(tmp_path / "world", cached_base("gemma2", steps=0)) as plain:
        lines = "".join(json.dumps(row) + "\n" for row in rows(60))
        plain.s3().put_object(Bucket=plain.bucket, Key="calls.jsonl", Body=lines.encode())
        with behind_tls(plain.s3_url, context) as s3_url, behind_tls(plain.hub_url, context) as hub_url:
            yield replace(plain, s3_url=s3_url, hub_url=hub_url), authority.certificate("ca")


def test_a_stage_trusts_the_configured_ca_certificates(site: tuple[World, Path], tmp_path: Path) -> None:
    """Prepare reads data from S3, checks permissions on the Hub, downloads from it, and commits its output."""
    world, authority = site
    run = run_spec(world.spec(), None)
    ended = run_stage(
        Stage.PREPARE, world, run, tmp_path / "prepare", environment={"TUNEMILL_CA_BUNDLE": str(authority)}
    )
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.executed


def test_an_untrusted_certificate_is_reported(site: tuple[World, Path], tmp_path: Path) -> None:
    """The platform team can see which certificate is missing."""
    world, _ = site
    ended = run_stage(Stage.PREPARE, world, run_spec(world.spec(), None), tmp_path / "prepare")
    assert ended.report is not None
    assert ended.report.failure is not None
    assert ended.report.failure.reason in {Reason.S3_UNREACHABLE, Reason.HUB_UNREACHABLE}
    assert "certificate" in ended.report.failure.message.lower()


def test_a_bundle_without_a_certificate_is_rejected(site: tuple[World, Path], tmp_path: Path) -> None:
    """With the name of the variable."""
    world, _ = site
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("rubbish")
    run = run_spec(world.spec(), None)
    ended = run_stage(Stage.PREPARE, world, run, tmp_path / "prepare", environment={"TUNEMILL_CA_BUNDLE": str(bundle)})
    assert ended.report is not None
    assert ended.report.failure is not None
    assert "$TUNEMILL_CA_BUNDLE" in ended.report.failure.message
