"""Endpoints and connections to metadata services are refused, so that a stage cannot use the node's credentials."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any

import pytest
from tunemill_api.failures import Reason
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import addresses
from tunemill_trainer.storage import s3

METADATA = [
    "169.254.169.254",
    "169.254.0.1",
    "2852039166",  # 169.254.169.254 as one number
    "0xa9.0xfe.0xa9.0xfe",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "168.63.129.16",
]


@pytest.mark.parametrize("host", METADATA)
def test_an_endpoint_at_a_metadata_service_is_refused(host: str) -> None:
    """In every notation of the address; the message has the field, the host and the address."""
    with pytest.raises(StageError) as refused:
        addresses.check(f"http://{host}:80/latest/meta-data", "spec.dataset.endpoint")
    assert refused.value.reason is Reason.INVALID_SPEC
    assert "spec.dataset.endpoint resolves to " in refused.value.message
    assert f"(host {host.strip('[]')})" in refused.value.message
    assert "change spec.dataset.endpoint" in refused.value.message


def test_a_host_is_refused_for_any_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name is resolved, and all its addresses are checked."""
    records = {"public.example": ["192.0.2.1", "2001:db8::1"], "rebound.example": ["192.0.2.1", "169.254.169.254"]}

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in records:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in records[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for endpoint in ("", "https://public.example/x", "https://unknown.example"):
        addresses.check(endpoint, "spec.hub.endpoint")
    with pytest.raises(StageError, match=r"spec.hub.endpoint resolves to 169.254.169.254 \(host rebound.example\)"):
        addresses.check("https://rebound.example", "spec.hub.endpoint")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "[::1]", "[fd00::1]", "169.253.255.255"])
def test_private_addresses_are_allowed(host: str) -> None:
    """Self-hosted S3 servers and Hubs have such addresses."""
    addresses.check(f"http://{host}:9000", "spec.workspace.endpoint")


CONNECT = """
import sys
from tunemill_trainer.process import addresses
addresses.guard()
try:
    sys.audit("socket.connect", None, (sys.argv[1], 80))
except addresses.RefusedAddressError:
    print("refused")
else:
    print("let through")
"""
"""Announces a connection as every Python socket does, and makes none: tests reach no metadata service."""


@pytest.mark.parametrize(
    ("address", "environment", "outcome"),
    [
        ("169.254.169.254", {"AWS_EC2_METADATA_DISABLED": "true"}, "refused"),
        ("169.254.169.254", {}, "let through"),
        ("169.254.1.1", {}, "refused"),
        ("100.100.100.200", {}, "refused"),
        ("169.254.170.23", {"AWS_EC2_METADATA_DISABLED": "true"}, "refused"),
        (
            "169.254.170.23",
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"},
            "let through",
        ),
        ("169.254.170.2", {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}, "let through"),
        ("127.0.0.1", {}, "let through"),
    ],
)
def test_no_connection_reaches_a_metadata_service(address: str, environment: dict[str, str], outcome: str) -> None:
    """Neither by a redirect nor by a changed DNS record. The agents of pod identities stay reachable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address], env=kept | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == outcome


class _Metadata(BaseHTTPRequestHandler):
    """The metadata service of a node with a role."""

    seen: list[str]

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_PUT(self) -> None:
        """Give a session token."""
        self._reply("token")

    def do_GET(self) -> None:
        """Give the role's name, its credentials, or whatever S3 would answer."""
        credentials = (
            '{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIANODEROLE00000000","SecretAccessKey":"s",'
            '"Token":"t","Expiration":"2099-01-01T00:00:00Z","LastUpdated":"2020-01-01T00:00:00Z"}'
        )
        by_role = "security-credentials/node-role" in self.path
        self._reply(credentials if by_role else "node-role")

    def _reply(self, text: str) -> None:
        self.seen.append(self.path + self.headers.get("Authorization", ""))
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[str]]]:
    """The URL of a metadata service, and the requests that it received."""
    seen: list[str] = []
    handler = type("Handler", (_Metadata,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_the_identity_of_the_node_signs_no_request(
    metadata: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Without a Secret and an identity of the pod there are no credentials; the script 21_imds.py of the review."""
    url, seen = metadata
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StageError) as refused, s3.s3_errors("s3://platform-private/state.json"):
        s3.client(url, "eu-central-1", None).get_object(Bucket="platform-private", Key="state.json")
    assert refused.value.reason is Reason.CREDENTIALS_MISSING
    assert seen == []


def test_every_connection_of_the_process_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's sockets raise an audit event for every connection, whichever library opens it."""
    addresses.guard()
    monkeypatch.setattr(addresses, "REFUSED", (ip_network("127.0.0.2/32"),))
    with socket.socket() as client, pytest.raises(addresses.RefusedAddressError, match="is link-local or"):
        client.connect(("127.0.0.2", 9))
