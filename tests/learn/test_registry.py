"""A model as a container image in a real registry: pushed, verified, tagged, and what goes wrong on the way."""

import hashlib
import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from learn.registries import PASSWORD, USER, a_registry
from learn.runs import TrainedRun
from tunemill_api.failures import Reason
from tunemill_api.publish import Oci
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster.pki import Authority
from tunemill_trainer.errors import StageError
from tunemill_trainer.release import image
from tunemill_trainer.storage.credentials import RegistryLogin
from tunemill_trainer.storage.registry import RegistryRepository

LOGIN = RegistryLogin(USER, PASSWORD)
REPOSITORY = "team/tools"


def a_model(folder: Path, weights: bytes = bytes(range(256)) * 40_000) -> Path:
    """A folder with the files of a model, one of 10 MB whose size is no multiple of a block."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights + b"end")
    (folder / "provenance.json").write_text("{}")
    return folder


def client(url: str, login: RegistryLogin | None = None, waits: list[float] | None = None) -> RegistryRepository:
    """A client that records its waits between attempts instead of waiting."""
    waits = [] if waits is None else waits
    return RegistryRepository(Oci(registry=url, repository=REPOSITORY), login, waits.append)


def files_of(host: str, reference: str) -> dict[str, bytes]:
    """The files of an image, read from its layers by their digests as a node does."""
    base = f"http://{host}/v2/{REPOSITORY}"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    manifest = httpx2.get(f"{base}/manifests/{reference}", headers=accept).json()
    config = httpx2.get(f"{base}/blobs/{manifest['config']['digest']}").json()
    found = {}
    for layer, diff in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        content = httpx2.get(f"{base}/blobs/{layer['digest']}").content
        assert layer["size"] == len(content)
        assert layer["digest"] == diff == f"sha256:{hashlib.sha256(content).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def an_empty(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def test_an_image_is_tagged_after_it_was_verified(tmp_path: Path):
    """Each file is below /models, without provenance.json. A failed verification does not move the tag."""
    model = a_model(tmp_path / "model")
    built = image.build(model, "tools")
    with a_registry(tmp_path / "registry", login=False) as host:
        repository, seen = client(f"http://{host}"), []

        def refuse(downloaded: Path) -> None:
            seen.append((downloaded / "model.safetensors").read_bytes())
            raise StageError(Reason.PROOF_FAILED, "it differs")

        with pytest.raises(StageError, match="it differs"):
            image.push_verified(built, repository, "v1", an_empty(tmp_path / "one"), refuse)
        assert seen == [(model / "model.safetensors").read_bytes()]
        assert repository.manifest("v1") is None

        image.push_verified(built, repository, "v1", an_empty(tmp_path / "two"), lambda _: None)
        assert repository.manifest("v1") == built.manifest
        expected = {f"models/{name}": (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
        assert files_of(host, built.digest) == expected
        assert image.build(model, "tools").digest == built.digest

        (model / "config.json").write_text('{"changed": true}')
        other = image.build(model, "tools")
        image.push_verified(other, repository, "v1", an_empty(tmp_path / "three"), lambda _: None)
        assert repository.manifest("v1") == other.manifest
        assert repository.manifest(built.digest) == built.manifest


def test_credentials_are_needed_and_sent_over_https_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wrong and missing ones are rejected with the repository's name."""
    authority = Authority.ensure(tmp_path / "pki")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.certificate("ca")))
    with a_registry(tmp_path / "registry", authority) as host:
        client(f"https://{host}", LOGIN).check_writable()
        for login in (None, RegistryLogin(USER, "guessed"), RegistryLogin("mallory", PASSWORD)):
            waits: list[float] = []
            with pytest.raises(StageError, match=f"cannot push to {host}/{REPOSITORY}") as refused:
                client(f"https://{host}", login, waits).check_writable()
            assert refused.value.reason is Reason.REGISTRY_WRITE_DENIED
            assert PASSWORD not in refused.value.message
            assert not waits
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(StageError, match="certificate") as untrusted:
            client(f"https://{host}", LOGIN).check_writable()
        assert untrusted.value.reason is Reason.REGISTRY_UNREACHABLE
    with (
        a_registry(tmp_path / "plain") as host,
        pytest.raises(StageError, match="plain HTTP") as refused,
    ):
        client(f"http://{host}", LOGIN).check_writable()
    assert refused.value.reason is Reason.REGISTRY_WRITE_DENIED


@contextmanager
def cutting(host: str, *, after: int, times: int) -> Iterator[str]:
    """Forward connections to a registry, and cut the first ones that send more than `after` bytes."""
    name, port = host.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    left = [times]

    def hand_on(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        sent = 0
        try:
            while data := source.recv(65536):
                sent += len(data)
                if limit is not None and sent > limit and left[0]:
                    left[0] -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((name, int(port)))
            for pair in ((near, far, after), (far, near, None)):
                threading.Thread(target=hand_on, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_an_interrupted_upload_is_retried(tmp_path: Path):
    """Layers that were uploaded before are kept."""
    built = image.build(a_model(tmp_path / "model"), "tools")
    waits: list[float] = []
    with a_registry(tmp_path / "registry", login=False) as host, cutting(host, after=3_000_000, times=2) as cut:
        repository = client(f"http://{cut}", waits=waits)
        image.push_verified(built, repository, "v1", an_empty(tmp_path / "into"), lambda _: None)
        assert waits == [1.0, 2.0]
        assert client(f"http://{host}").manifest("v1") == built.manifest
        assert len(files_of(host, "v1")["models/model.safetensors"]) == 10_240_003


def test_an_unavailable_registry_is_a_retryable_failure(tmp_path: Path):
    """After all waits, with the name of the repository."""
    waits: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(StageError, match=f"127.0.0.1:{port}/{REPOSITORY}") as failed:
        client(f"http://127.0.0.1:{port}", waits=waits).check_writable()
    assert failed.value.reason is Reason.REGISTRY_UNREACHABLE
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


@pytest.mark.parametrize(
    ("status", "reason", "attempts"),
    [
        (404, Reason.REGISTRY_WRITE_DENIED, 1),
        (403, Reason.REGISTRY_WRITE_DENIED, 1),
        (503, Reason.REGISTRY_UNREACHABLE, 7),
        (429, Reason.REGISTRY_UNREACHABLE, 7),
    ],
)
def test_the_status_of_a_registry_decides_about_a_retry(status: int, reason: Reason, attempts: int):
    """ECR returns 404 for a missing repository, and creates none; only overload is worth another attempt."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            body = json.dumps({"errors": [{"code": "NAME_UNKNOWN"}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StageError) as failed:
            client(f"http://127.0.0.1:{server.server_port}").check_writable()
    finally:
        server.shutdown()
        server.server_close()
    assert failed.value.reason is reason
    assert len(requests) == attempts


def test_a_trained_model_is_published_as_an_image(extended_run: TrainedRun, tmp_path: Path):
    """Its digest is in the facts and in provenance.json; nothing is pushed twice, and a moved tag is restored."""
    with a_registry(tmp_path / "registry", login=False) as host:
        run = extended_run.changed(
            evaluation={"gates": [{"metric": "exact_match", "min": "0.2"}]},
            publish={
                "repository": "acme/packed",
                "artifacts": ["Adapter", "OCI"],
                "tag": "v1",
                "oci": {"registry": f"http://{host}", "repository": REPOSITORY},
            },
        )
        assert run.stage(Stage.EVALUATE).code == 0
        ended = run.stage(Stage.PUBLISH)
        assert ended.code == 0, ended.log
        assert ended.report is not None
        assert ended.report.published is not None
        name, _, digest = ended.report.published.oci.partition("@")
        assert name == f"{host}/{REPOSITORY}"
        files = files_of(host, "v1")
        assert files == files_of(host, digest)
        assert {"models/config.json", "models/model.safetensors", "models/chat_template.jinja"} <= files.keys()
        assert f'image: {{reference: "{name}:v1"}}' in files["models/README.md"].decode()
        stated = Path(run.api.hf_hub_download("acme/packed", "provenance.json", local_dir=tmp_path)).read_text()
        assert digest.replace(":", "%3A") in stated
        assert host not in stated
        again = run.stage(Stage.PUBLISH)
        assert again.report is not None
        assert not again.report.executed
        other = image.build(a_model(tmp_path / "other"), "other")
        image.push_verified(other, client(f"http://{host}"), "v1", an_empty(tmp_path / "into"), lambda _: None)
        back = run.stage(Stage.PUBLISH)
        assert back.report is not None
        assert back.report.published == ended.report.published
        assert files_of(host, "v1") == files
