"""Progress reports: content, frequency, and that their failures are ignored."""

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tunemill_api.constants import ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import TrainerStatus
from tunemill_dev.played import a_report
from tunemill_trainer.process.progress import Destination, Progress
from tunemill_trainer.stages import supervisor


@dataclass
class Endpoint:
    """The operator's endpoint: the posted bodies and tokens."""

    destination: Destination
    bodies: list[dict] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("pki")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=progress", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@contextmanager
def an_endpoint(folder: Path, certificate: Path, status: int = 200) -> Iterator[Endpoint]:
    """Serve HTTPS inside the block, and respond to every report with a status."""
    token, ca = folder / "token", certificate.with_name("cert.pem")
    token.write_text("first-token\n")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            endpoint.tokens.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            endpoint.arrived.release()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    endpoint = Endpoint(Destination(f"https://127.0.0.1:{server.server_address[1]}/status", token, ca))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_report_follows_kubeflows_protocol(tmp_path: Path, certificate: Path) -> None:
    """The body is valid for the operator's model, and the token is read for each report."""
    with an_endpoint(tmp_path, certificate) as endpoint:
        progress = Progress("train", endpoint.destination, interval_seconds=0)
        progress.report(45.7, 3600.4, {"loss": "0.2347", "current_step": 800})
        assert endpoint.arrived.acquire(timeout=10)
        endpoint.destination.token.write_text("renewed-token")
        progress.report(46)
        progress.close()
    status = TrainerStatus.model_validate(endpoint.bodies[0]["trainerStatus"])
    assert (status.progress_percentage, status.estimated_remaining_seconds) == (45, 3600)
    assert [(metric.name, metric.value) for metric in status.metrics] == [("loss", "0.2347"), ("current_step", "800")]
    assert status.last_updated_time is not None
    assert endpoint.bodies[0]["stage"] == "train", "evaluate reports from the same pod"
    assert endpoint.tokens == ["Bearer first-token", "Bearer renewed-token"]


@pytest.mark.parametrize("status", [200, 503])
def test_the_end_of_train_is_reported_until_evaluate_ends(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Also after a successful post: the operator may have restarted before it stored the report."""
    report = StageReport.model_validate_json(a_report(Stage.TRAIN))
    monkeypatch.setattr(supervisor, "_AGAIN_SECONDS" if status == 503 else "_REPEAT_SECONDS", 0.01)
    ended = threading.Event()
    with an_endpoint(tmp_path, certificate, status) as endpoint:
        monkeypatch.setattr(Destination, "from_environment", lambda: endpoint.destination)
        supervisor._announce(report, ended)
        for _ in range(3):
            assert endpoint.arrived.acquire(timeout=10)
        ended.set()
    assert StageReport.model_validate(endpoint.bodies[-1]["report"]) == report
    assert "trainerStatus" not in endpoint.bodies[-1], "it is no sign of life of evaluate"


def test_of_many_reports_at_least_the_first_and_the_last_are_sent(tmp_path: Path, certificate: Path) -> None:
    """Reports are throttled, but the last one is sent before the interval has passed."""
    with an_endpoint(tmp_path, certificate) as endpoint:
        progress = Progress("train", endpoint.destination, interval_seconds=3600)
        progress.report(0)
        assert endpoint.arrived.acquire(timeout=10)
        for percent in range(1, 100):
            progress.report(percent)
        progress.close()
    assert [body["trainerStatus"]["progressPercentage"] for body in endpoint.bodies] == [0, 99]


@pytest.mark.parametrize("trouble", ["refused", "no token", "wrong authority", "answer 500"])
def test_a_report_that_cannot_be_delivered_is_ignored(
    tmp_path: Path, certificate: Path, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unavailable endpoint causes no exception, does not block, and does not stop later reports."""
    with an_endpoint(tmp_path, certificate, 500 if trouble == "answer 500" else 200) as endpoint:
        url, token, ca = endpoint.destination.url, endpoint.destination.token, endpoint.destination.ca
        if trouble == "refused":
            url = "https://127.0.0.1:1/status"
        elif trouble == "no token":
            token = tmp_path / "gone"
        elif trouble == "wrong authority":
            ca = Path("/etc/hostname")
        progress = Progress("train", Destination(url, token, ca), interval_seconds=0)
        progress.report(1)
        progress.report(2)
        progress.close()
    assert "Traceback" not in capfd.readouterr().err


def test_only_https_gets_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token is never sent without TLS, and outside a cluster there are no reports."""
    for name in (ENV_PROGRESS_URL, ENV_PROGRESS_TOKEN, ENV_PROGRESS_CA):
        monkeypatch.delenv(name, raising=False)
    assert Destination.from_environment() is None
    monkeypatch.setenv(ENV_PROGRESS_TOKEN, str(tmp_path / "token"))
    monkeypatch.setenv(ENV_PROGRESS_CA, str(tmp_path / "ca.crt"))
    monkeypatch.setenv(ENV_PROGRESS_URL, "http://operator/status")
    assert Destination.from_environment() is None
    monkeypatch.setenv(ENV_PROGRESS_URL, "https://operator/status")
    assert Destination.from_environment() == Destination(
        "https://operator/status", tmp_path / "token", tmp_path / "ca.crt"
    )
