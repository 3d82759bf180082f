"""Permissions of Hub tokens, checked before any work, and the meaning of the Hub's errors; against a local Hub."""

from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi
from tunemill_api.failures import Reason
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.faults import Fault
from tunemill_dev.hub.local import LocalHub, local_hub
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.hub import READ_FIELD, WRITE_FIELD, Hub, hub_errors

ACCOUNTS = Accounts.model_validate(
    {
        "users": {"alice": {"acme": "write", "readers": "read"}, "bob": {}},
        "tokens": [
            {"value": "alice-writes", "user": "alice", "role": "write"},
            {"value": "alice-reads", "user": "alice", "role": "read"},
            {"value": "bob-writes", "user": "bob", "role": "write"},
            {
                "value": "alice-fine-acme",
                "user": "alice",
                "role": "fineGrained",
                "scopes": [{"entity": "acme", "permissions": ["repo.write"]}],
            },
            {
                "value": "alice-fine-tools",
                "user": "alice",
                "role": "fineGrained",
                "scopes": [{"entity": "acme/tools", "permissions": ["repo.write"]}],
            },
            {
                "value": "alice-fine-reads",
                "user": "alice",
                "role": "fineGrained",
                "scopes": [{"entity": "acme", "permissions": ["repo.content.read"]}],
            },
        ],
    }
)


@pytest.fixture
def server() -> Iterator[LocalHub]:
    """A Hub with the models acme/tools, acme/gated and acme/secret."""
    with local_hub(ACCOUNTS) as running:
        api = HfApi(endpoint=running.url, token="alice-writes")
        api.create_repo("acme/tools")
        api.create_repo("acme/gated")
        api.update_repo_settings("acme/gated", gated="manual")
        api.create_repo("acme/secret", private=True)
        yield running


@pytest.mark.parametrize(
    ("token", "repository"),
    [
        ("alice-writes", "acme/tools"),
        ("alice-writes", "acme/new"),
        ("alice-writes", "alice/new"),
        ("alice-fine-acme", "acme/new"),
        ("alice-fine-tools", "acme/tools"),
    ],
)
def test_a_token_with_permission_passes_and_changes_nothing(server, token, repository):
    """The check creates nothing, so a run that fails later leaves nothing behind."""
    before = len(server.requests)
    Hub(server.url, token).check_writable(repository)
    assert {request.method for request in server.requests[before:]} == {"GET"}


@pytest.mark.parametrize(
    ("token", "repository", "reason", "message"),
    [
        (None, "acme/tools", Reason.CREDENTIALS_MISSING, "spec.publish.tokenSecretRef"),
        ("unknown-token", "acme/tools", Reason.HUB_TOKEN_INVALID, "spec.publish.tokenSecretRef"),
        ("alice-reads", "acme/tools", Reason.HUB_WRITE_DENIED, "token"),
        ("alice-reads", "acme/new", Reason.HUB_WRITE_DENIED, "read token"),
        ("bob-writes", "acme/tools", Reason.HUB_WRITE_DENIED, "acme/tools"),
        ("bob-writes", "acme/new", Reason.HUB_WRITE_DENIED, "not a member of the namespace acme"),
        ("bob-writes", "acme/secret", Reason.HUB_WRITE_DENIED, "the token's namespaces are: bob"),
        ("alice-writes", "readers/new", Reason.HUB_WRITE_DENIED, "has the role read in readers"),
        ("alice-fine-reads", "acme/new", Reason.HUB_WRITE_DENIED, "repo.write"),
        ("alice-fine-tools", "acme/new", Reason.HUB_WRITE_DENIED, "repo.write"),
    ],
)
def test_a_token_without_permission_is_refused(server, token, repository, reason, message):
    """At the start of a run and not at the push, hours of GPU time later."""
    with pytest.raises(StageError) as raised:
        Hub(server.url, token).check_writable(repository)
    assert raised.value.reason is reason
    assert message in raised.value.message
    assert token is None or token not in raised.value.message


def test_a_revision_is_resolved_to_a_commit(server):
    """Branches move, so the run uses the commit."""
    info = HfApi(endpoint=server.url, token="alice-writes").model_info("acme/tools")
    found = Hub(server.url, None).model("acme/tools").resolve("main")
    assert found.commit == info.sha
    assert found.files == {sibling.rfilename for sibling in info.siblings}


@pytest.mark.parametrize(
    ("token", "model", "revision", "reason"),
    [
        (None, "acme/absent", "main", Reason.BASE_MODEL_NOT_FOUND),
        (None, "acme/secret", "main", Reason.BASE_MODEL_NOT_FOUND),
        (None, "acme/tools", "v9", Reason.BASE_MODEL_NOT_FOUND),
        (None, "acme/gated", "main", Reason.BASE_MODEL_GATED),
        ("bob-writes", "acme/gated", "main", Reason.BASE_MODEL_GATED),
        ("unknown-token", "acme/tools", "main", Reason.HUB_TOKEN_INVALID),
    ],
)
def test_an_inaccessible_base_model_has_a_reason(server, token, model, revision, reason):
    """Missing, private or gated: distinguished as far as the Hub does."""
    with pytest.raises(StageError) as raised:
        Hub(server.url, token).model(model).resolve(revision)
    assert raised.value.reason is reason
    assert model in raised.value.message or reason is Reason.HUB_TOKEN_INVALID


def test_a_read_token_is_checked_separately(server):
    """An invalid token must not look like a missing model."""
    Hub(server.url, None).check_token(READ_FIELD)
    Hub(server.url, "bob-writes").check_token(READ_FIELD)
    with pytest.raises(StageError) as raised:
        Hub(server.url, "unknown-token").check_token(READ_FIELD)
    assert "spec.baseModel.tokenSecretRef" in raised.value.message


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 503}, Reason.HUB_UNREACHABLE),
        ({"status": 429}, Reason.HUB_UNREACHABLE),
        ({"drop_connection": True}, Reason.HUB_UNREACHABLE),
        ({"status": 403, "message": "Private storage quota exceeded"}, Reason.HUB_QUOTA_EXCEEDED),
        ({"status": 403, "message": "Forbidden"}, Reason.HUB_WRITE_DENIED),
        ({"status": 401, "message": "Invalid credentials in Authorization header"}, Reason.HUB_TOKEN_INVALID),
    ],
)
def test_errors_of_the_hub_have_reasons(server, fault, reason):
    """Transient errors are retried, permanent ones are reported to the user."""
    server.fail(Fault(path="whoami", times=-1, **fault))
    with pytest.raises(StageError) as raised, hub_errors(WRITE_FIELD, "acme/tools"):
        HfApi(endpoint=server.url, token="alice-writes").whoami()
    assert raised.value.reason is reason


def test_an_unreachable_hub_is_reported():
    """The message has the field with the Hub's address."""
    with pytest.raises(StageError) as raised:
        Hub("http://127.0.0.1:9", "alice-writes").check_writable("acme/tools")
    assert raised.value.reason is Reason.HUB_UNREACHABLE
    assert "spec.hub.endpoint" in raised.value.message


def test_a_public_data_set_is_recognized(server):
    """By a request without the token, which may see more. Without a response, the data set counts as private."""
    api = HfApi(endpoint=server.url, token="alice-writes")
    api.create_repo("acme/calls", repo_type="dataset")
    api.create_repo("acme/patients", repo_type="dataset", private=True)
    hub = Hub(server.url, "alice-reads")
    assert hub.is_public_dataset("acme/calls")
    assert not hub.is_public_dataset("acme/patients")
    assert not hub.is_public_dataset("acme/nothing")
    assert not Hub("http://127.0.0.1:9", None).is_public_dataset("acme/calls")
