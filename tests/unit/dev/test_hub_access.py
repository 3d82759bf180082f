"""Permissions on the local Hub, tested with the real client."""

from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from pydantic import ValidationError
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.local import LocalHub, local_hub

WRITER, READER, STRANGER = "token-of-alice-write", "token-of-alice-read", "token-of-mallory"
ONE_REPO, ONE_ORG, NO_GATED = "token-for-one-repo", "token-for-one-org", "token-without-gated"


def accounts() -> Accounts:
    """Alice writes to acme and reads beta; Bob is in no organisation; tokens of every role."""
    fine = {"user": "alice", "role": "fineGrained", "read_gated_repos": True}
    write = ["repo.content.read", "repo.write"]
    return Accounts.model_validate(
        {
            "users": {"alice": {"acme": "write", "beta": "read"}, "mallory": {}, "bob": {"beta": "admin"}},
            "tokens": [
                {"value": WRITER, "user": "alice", "role": "write", "name": "laptop"},
                {"value": READER, "user": "alice", "role": "read"},
                {"value": STRANGER, "user": "mallory", "role": "write"},
                {"value": "token-of-bob", "user": "bob", "role": "write"},
                {"value": ONE_REPO, **fine, "scopes": [{"entity": "acme/tools", "permissions": write}]},
                {"value": ONE_ORG, **fine, "scopes": [{"entity": "acme", "permissions": write}]},
                {"value": NO_GATED, **fine, "read_gated_repos": False},
            ],
        }
    )


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A server with these accounts and no content."""
    with local_hub(accounts()) as running:
        yield running


def client(hub: LocalHub, token: str | bool) -> HfApi:
    """The real client, with this token."""
    return HfApi(endpoint=hub.url, token=token)


def refusal(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The status of the Hub's refusal."""
    return error.value.response.status_code


def gated_repository(hub: LocalHub) -> HfApi:
    """Bob's beta/base, whose files need permission."""
    bob = client(hub, "token-of-bob")
    bob.create_repo("beta/base")
    bob.update_repo_settings("beta/base", gated="manual")
    bob.upload_file(repo_id="beta/base", path_or_fileobj=b"{}", path_in_repo="config.json")
    return bob


@pytest.mark.parametrize(("token", "role"), [(WRITER, "write"), (READER, "read")])
def test_whoami_names_the_role_of_a_classic_token_and_the_organisations(hub: LocalHub, token: str, role: str) -> None:
    """A preflight check can find out where the token may write."""
    answer = client(hub, token).whoami()
    assert answer["name"] == "alice"
    assert {org["name"]: org["roleInOrg"] for org in answer["orgs"]} == {"acme": "write", "beta": "read"}
    assert answer["auth"]["accessToken"]["role"] == role
    assert "fineGrained" not in answer["auth"]["accessToken"]


def test_whoami_lists_the_scopes_of_a_fine_grained_token(hub: LocalHub) -> None:
    """The scopes come as entity and permissions, with the kind of entity, as on the real Hub."""
    access = client(hub, ONE_REPO).whoami()["auth"]["accessToken"]
    assert access["role"] == "fineGrained"
    assert access["fineGrained"]["canReadGatedRepos"] is True
    [scope] = access["fineGrained"]["scoped"]
    assert (scope["entity"]["type"], scope["entity"]["name"]) == ("model", "acme/tools")
    assert scope["permissions"] == ["repo.content.read", "repo.write"]
    [scope] = client(hub, ONE_ORG).whoami()["auth"]["accessToken"]["fineGrained"]["scoped"]
    assert (scope["entity"]["type"], scope["entity"]["name"]) == ("org", "acme")


def test_an_unknown_token_is_refused_everywhere(hub: LocalHub) -> None:
    """A revoked token gives 401 even for public content, and is not mistaken for a missing repository."""
    client(hub, WRITER).create_repo("acme/tools")
    revoked = client(hub, "token-that-was-revoked")
    for call in (revoked.whoami, lambda: revoked.model_info("acme/tools")):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert refusal(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


def test_a_private_repository_is_not_found_for_others(hub: LocalHub) -> None:
    """401 without a token, 404 for other users, both RepositoryNotFoundError; members see it."""
    client(hub, WRITER).create_repo("acme/tools", private=True)
    assert client(hub, READER).model_info("acme/tools").private is True
    for token, status in ((False, 401), (STRANGER, 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            client(hub, token).model_info("acme/tools")
        assert refusal(error) == status


def test_a_private_repository_can_be_made_public(hub: LocalHub) -> None:
    """Visibility can change after creation."""
    client(hub, WRITER).create_repo("acme/tools", private=True)
    client(hub, WRITER).update_repo_settings("acme/tools", private=False)
    assert client(hub, False).model_info("acme/tools").private is False


def test_a_gated_repository_shows_metadata_but_not_files(hub: LocalHub, tmp_path: object) -> None:
    """Files give 401 without a token, 403 to a user who is not on the access list."""
    gated_repository(hub)
    assert client(hub, False).model_info("beta/base").gated == "manual"
    for token, status in ((False, 401), (STRANGER, 403)):
        for ask in ("auth_check", "hf_hub_download"):
            extra = {"filename": "config.json", "cache_dir": tmp_path} if ask == "hf_hub_download" else {}
            with pytest.raises(GatedRepoError) as error:
                getattr(client(hub, token), ask)("beta/base", **extra)
            assert refusal(error) == status


def test_granting_access_opens_a_gated_repository_to_one_user(hub: LocalHub) -> None:
    """The access list is per user; a fine-grained token also needs its own permission for gated repositories."""
    gated_repository(hub).grant_access("beta/base", "mallory")
    client(hub, STRANGER).auth_check("beta/base")
    bob = client(hub, "token-of-bob")
    bob.create_repo("bob/base")
    bob.update_repo_settings("bob/base", gated="auto")
    bob.grant_access("bob/base", "alice")
    client(hub, ONE_REPO).auth_check("bob/base")
    with pytest.raises(GatedRepoError, match="enable access to public gated repositories"):
        client(hub, NO_GATED).auth_check("bob/base")


def test_a_read_token_can_neither_create_nor_push(hub: LocalHub) -> None:
    """The message says that the token is the reason."""
    client(hub, WRITER).create_repo("acme/tools")
    reader = client(hub, READER)
    with pytest.raises(HfHubHTTPError, match="must use a write token") as error:
        reader.create_repo("acme/other")
    assert refusal(error) == 403
    with pytest.raises(HfHubHTTPError, match="must use a write token") as error:
        reader.upload_file(repo_id="acme/tools", path_or_fileobj=b"x", path_in_repo="x.txt")
    assert refusal(error) == 403


@pytest.mark.parametrize("namespace", ["mallory", "beta", "nowhere"])
def test_a_foreign_namespace_is_forbidden(hub: LocalHub, namespace: str) -> None:
    """Another user, an organisation with role read, and a missing organisation all give 403."""
    with pytest.raises(HfHubHTTPError, match=f'under the namespace "{namespace}"') as error:
        client(hub, WRITER).create_repo(f"{namespace}/tools")
    assert refusal(error) == 403


def test_a_token_for_one_repository_pushes_only_there(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot create the repository, as on the real Hub; `exist_ok` works when it is there."""
    # huggingface_hub 2.4.0 ignores HfApi's endpoint in just this case, and looks at HF_ENDPOINT alone.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    with pytest.raises(HfHubHTTPError) as error:
        client(hub, ONE_REPO).create_repo("acme/tools", exist_ok=True)
    assert refusal(error) == 403
    client(hub, WRITER).create_repo("acme/tools")
    client(hub, WRITER).create_repo("acme/other")
    client(hub, ONE_REPO).create_repo("acme/tools", exist_ok=True)
    client(hub, ONE_REPO).auth_check("acme/tools", write=True)
    with pytest.raises(HfHubHTTPError) as error:
        client(hub, ONE_REPO).auth_check("acme/other", write=True)
    assert refusal(error) == 403


def test_a_token_for_an_organisation_creates_only_there(hub: LocalHub) -> None:
    """The scope of the token limits the permissions of its user."""
    client(hub, ONE_ORG).create_repo("acme/tools", private=True)
    with pytest.raises(HfHubHTTPError) as error:
        client(hub, ONE_ORG).create_repo("alice/tools")
    assert refusal(error) == 403
    with pytest.raises(RepositoryNotFoundError):
        client(hub, NO_GATED).model_info("acme/tools")


def test_only_writers_can_delete(hub: LocalHub) -> None:
    """Afterwards the name is available again."""
    client(hub, WRITER).create_repo("acme/tools")
    with pytest.raises(HfHubHTTPError) as error:
        client(hub, STRANGER).delete_repo("acme/tools")
    assert refusal(error) == 403
    client(hub, WRITER).delete_repo("acme/tools")
    assert not client(hub, WRITER).repo_exists("acme/tools")
    client(hub, WRITER).create_repo("acme/tools")


def test_creating_twice_is_a_conflict_unless_allowed(hub: LocalHub) -> None:
    """409, with the address that `exist_ok` needs."""
    client(hub, WRITER).create_repo("acme/tools")
    with pytest.raises(HfHubHTTPError) as error:
        client(hub, WRITER).create_repo("acme/tools")
    assert refusal(error) == 409
    assert client(hub, WRITER).create_repo("acme/tools", exist_ok=True).repo_id == "acme/tools"


def test_a_token_of_an_unknown_user_is_rejected_when_accounts_are_read() -> None:
    """A mistake in the accounts file is named, without showing the token."""
    with pytest.raises(ValidationError, match="names user 'eve', who is not in users"):
        Accounts.model_validate({"users": {}, "tokens": [{"value": "abcdefgh", "user": "eve", "role": "read"}]})
