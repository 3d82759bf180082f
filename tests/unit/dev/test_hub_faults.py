"""Injected failures: how the real client handles a slow, busy, failing or unreachable Hub."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from pydantic import ValidationError
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.faults import Fault
from tunemill_dev.hub.local import LocalHub, local_hub

TOKEN, ADMIN = "token-of-alice", "token-of-the-test"
ACCOUNTS = Accounts.model_validate({
    "users": {"alice": {}}, "tokens": [{"value": TOKEN, "user": "alice", "role": "write"}],
})  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A server with one repository, alice/tools."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with local_hub(ACCOUNTS, admin_token=ADMIN) as running:
        client(running).create_repo("alice/tools")
        yield running


def client(hub: LocalHub) -> HfApi:
    """The real client, as alice."""
    return HfApi(endpoint=hub.url, token=TOKEN)


def push(hub: LocalHub, path: str = "a.txt", content: bytes = b"a") -> None:
    """Uploads one file."""
    client(hub).upload_file(repo_id="alice/tools", path_in_repo=path, path_or_fileobj=content)


def statuses(hub: LocalHub, method: str, part: str) -> list[int]:
    """The statuses of the requests of this kind, in order."""
    return [seen.status for seen in hub.requests if seen.method == method and part in seen.path]


@pytest.mark.parametrize("status", [429, 503])
def test_a_commit_fails_once_with_too_many_requests(hub: LocalHub, status: int) -> None:
    """The client does not retry a commit. The second attempt succeeds."""
    hub.fail(Fault(method="POST", path="/commit/", status=status, headers={"Retry-After": "1"}))
    with pytest.raises(HfHubHTTPError) as error:
        push(hub)
    assert error.value.response.status_code == status
    assert error.value.response.headers["Retry-After"] == "1"
    push(hub)
    assert statuses(hub, "POST", "/commit/") == [status, 200]


def test_a_failed_upload_is_retried_by_the_client(hub: LocalHub) -> None:
    """A storage error during a push costs one retry."""
    hub.fail(Fault(method="PUT", path="^/_lfs/", status=500))
    push(hub, "w.safetensors", b"weights")
    assert statuses(hub, "PUT", "/_lfs/") == [500, 200]


def test_an_interrupted_download_resumes(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a broken connection, the client requests only the rest of the file."""
    # The client counts what it has in chunks of 10 MB; smaller ones keep the file of this test small.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000_000)
    content = bytes(range(256)) * 40_000
    push(hub, "w.bin", content)
    hub.fail(Fault(method="GET", path="/resolve/", drop_after_bytes=6_000_000))
    got = client(hub).hf_hub_download("alice/tools", "w.bin", cache_dir=tmp_path)
    assert Path(got).read_bytes() == content
    assert statuses(hub, "GET", "/resolve/") == [200, 206]


def test_a_dropped_connection_has_no_response(hub: LocalHub) -> None:
    """Such a request is recorded with status 0."""
    hub.fail(Fault(path="whoami", drop_connection=True))
    with pytest.raises(Exception, match="disconnected"):
        client(hub).whoami()
    assert statuses(hub, "GET", "whoami") == [0]


def test_a_fault_can_select_the_exception_of_the_client(hub: LocalHub) -> None:
    """Error code and message are in the Hub's headers."""
    hub.fail(Fault(path="auth-check", status=403, error_code="GatedRepo", message="ask first", times=-1))
    for _ in range(2):
        with pytest.raises(GatedRepoError, match="ask first"):
            client(hub).auth_check("alice/tools")


def test_a_slow_response_succeeds(hub: LocalHub) -> None:
    """A fault with a delay and no status only delays."""
    hub.fail(Fault(path="whoami", delay_seconds=0.2))
    begin = time.monotonic()
    assert client(hub).whoami()["name"] == "alice"
    assert time.monotonic() - begin >= 0.2


def test_only_the_admin_can_access_faults_and_requests_over_http(hub: LocalHub) -> None:
    """The demo adds a fault, finds it in the recorded requests, and clears the rest."""
    admin = {"Authorization": f"Bearer {ADMIN}"}
    faults, requests = f"{hub.url}/_local/faults", f"{hub.url}/_local/requests"
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
        assert get_session().get(requests, headers=headers).status_code == 403
        assert get_session().post(faults, headers=headers, json={"path": "."}).status_code == 403
    added = get_session().post(faults, headers=admin, json={"path": "whoami", "status": 418, "times": 3})
    assert added.status_code == 201
    with pytest.raises(HfHubHTTPError):
        client(hub).whoami()
    assert get_session().get(requests, headers=admin).json()[-1] == {
        "method": "GET", "path": "/api/whoami-v2", "status": 418, "user": "",
    }  # fmt: skip
    assert get_session().delete(faults, headers=admin).status_code == 200
    assert client(hub).whoami()["name"] == "alice"


def test_without_an_admin_token_faults_are_not_accessible() -> None:
    """An empty token is not accepted."""
    with local_hub(ACCOUNTS) as hub:
        for headers in ({}, {"Authorization": "Bearer"}):
            assert get_session().get(f"{hub.url}/_local/requests", headers=headers).status_code == 403


@pytest.mark.parametrize("wrong", [{"path": "("}, {"path": ".", "status": 200}, {"path": ".", "tims": 1}])
def test_an_invalid_fault_is_rejected(wrong: dict[str, object]) -> None:
    """A typo must not make a test pass because no fault occurred."""
    with pytest.raises(ValidationError):
        Fault.model_validate(wrong)
