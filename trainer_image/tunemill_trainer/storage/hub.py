"""Access to the Hugging Face Hub: permissions of tokens, models and data sets, and the meaning of errors."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import httpx2
from huggingface_hub import HfApi, HfFileMetadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from tunemill_api.failures import Reason
from tunemill_api.local_files import is_local, local_path

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import tracing
from tunemill_trainer.storage.local_model import LICENSE_FIELDS, LocalModel, license_of
from tunemill_trainer.storage.models import ModelCommit, ModelReader

READ_FIELD = "spec.baseModel"
ADAPTER_FIELD = "spec.baseModel.adapter"
WRITE_FIELD = "spec.publish"
DATASET_FIELD = "spec.dataset"

_TOKEN_FIELDS = {
    READ_FIELD: "spec.baseModel.tokenSecretRef",
    ADAPTER_FIELD: "spec.baseModel.tokenSecretRef",
    WRITE_FIELD: "spec.publish.tokenSecretRef",
    DATASET_FIELD: "spec.baseModel.tokenSecretRef",
}
_NOT_FOUND = {
    READ_FIELD: Reason.BASE_MODEL_NOT_FOUND,
    ADAPTER_FIELD: Reason.BASE_MODEL_NOT_FOUND,
    DATASET_FIELD: Reason.DATASET_NOT_FOUND,
}
_GATED = {
    READ_FIELD: Reason.BASE_MODEL_GATED,
    ADAPTER_FIELD: Reason.BASE_MODEL_GATED,
    DATASET_FIELD: Reason.DATASET_GATED,
}
_WRITING_ROLES = {"admin", "write", "contributor"}
"""Organization roles that may create repositories (https://huggingface.co/docs/hub/organizations-security)."""


class Hub:
    """A Hub, accessed with one token.

    Args:
        endpoint: the Hub's URL; empty means huggingface.co.
        token: the token; None sends none.
    """

    def __init__(self, endpoint: str, token: str | None) -> None:
        # False instead of None, with which huggingface_hub would use a token that is stored on the machine.
        self._token: str | bool = token or False
        self._endpoint = endpoint.rstrip("/") or None
        self.api = HfApi(endpoint=self._endpoint, token=self._token)

    def check_token(self, field: str) -> None:
        """Raise HubTokenInvalid if there is a token and the Hub does not accept it."""
        if self._token:
            with hub_errors(field):
                self.api.whoami()

    def model(self, model_id: str, field: str = READ_FIELD) -> ModelReader:
        """Return the reader of a model or adapter: a repository on this Hub, or a local folder for a file:// URI.

        Args:
            model_id: the repository or the URI.
            field: READ_FIELD or ADAPTER_FIELD, for messages.
        """
        if is_local(model_id):
            return LocalModel(model_id, field)
        return HubModel(self.api, model_id, self._endpoint, self._token, field)

    def resolve_dataset(self, dataset_id: str, revision: str) -> ModelCommit:
        """Return the commit of a data set's branch, tag or commit, and check that its files are readable.

        Raises:
            StageError: DatasetNotFound, DatasetGated, HubTokenInvalid or HubUnreachable.
        """
        with hub_errors(DATASET_FIELD, f"{dataset_id}@{revision}"):
            self.api.auth_check(dataset_id, repo_type="dataset")
            info = self.api.dataset_info(dataset_id, revision=revision)
        if not _is_commit(info.sha):
            raise StageError(Reason.DATASET_NOT_FOUND, f"{dataset_id} has no commit for revision {revision}")
        return ModelCommit(dataset_id, info.sha, frozenset(sibling.rfilename for sibling in info.siblings or ()))

    def is_public_dataset(self, dataset_id: str) -> bool:
        """Return whether a data set is public, by a request without token. False if the request fails."""
        try:
            return not HfApi(endpoint=self._endpoint, token=False).dataset_info(dataset_id).private
        except (HfHubHTTPError, httpx2.HTTPError, OSError):
            return False

    def download_file_of_dataset(self, dataset: ModelCommit, name: str) -> Path:
        """Download a file of a data set into the cache of HF_HOME, and return its path."""
        with hub_errors(DATASET_FIELD, f"{dataset.id}@{dataset.commit}"):
            path = hf_hub_download(
                dataset.id,
                name,
                repo_type="dataset",
                revision=dataset.commit,
                endpoint=self._endpoint,
                token=self._token,
            )
        return Path(path)

    def check_writable(self, repository: str) -> None:
        """Check that the token may push to a repository, or create it, without changing anything on the Hub.

        Raises:
            StageError: CredentialsMissing, HubTokenInvalid, HubWriteDenied or HubUnreachable; InvalidSpec for a local
                folder that is not writable.
        """
        if is_local(repository):
            check_writable_folder(local_path(repository))
            return
        if not self._token:
            raise StageError(
                Reason.CREDENTIALS_MISSING,
                f"expected a Hugging Face token with write access for {repository}, found none; set "
                "spec.publish.tokenSecretRef",
            )
        with hub_errors(WRITE_FIELD, repository):
            who = self.api.whoami()
            exists = self._may_write(repository)
        denial = why_denied(who, repository, exists=exists)
        if denial:
            raise StageError(
                Reason.HUB_WRITE_DENIED, f"cannot push to {repository} (spec.publish.repository): {denial}"
            )

    def _may_write(self, repository: str) -> bool:
        """Return whether the repository exists and is writable; False if it does not exist or is not visible."""
        try:
            self.api.auth_check(repository, write=True)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return False
        return True


class HubModel:
    """A base model on the Hub. Implements `ModelReader`.

    Args:
        api: the client.
        model_id: owner/name.
        endpoint: the Hub's URL; None means huggingface.co.
        token: the token; False sends none.
        field: READ_FIELD or ADAPTER_FIELD.
    """

    def __init__(self, api: HfApi, model_id: str, endpoint: str | None, token: str | bool, field: str) -> None:
        self._api, self._id, self._endpoint, self._token, self._field = api, model_id, endpoint, token, field

    def resolve(self, revision: str) -> ModelCommit:
        """See ModelReader."""
        with hub_errors(self._field, f"{self._id}@{revision}"):
            # The model's metadata is public even if its files are gated, so check the access first.
            self._api.auth_check(self._id)
            info = self._api.model_info(self._id, revision=revision)
        if not _is_commit(info.sha):
            raise StageError(Reason.BASE_MODEL_NOT_FOUND, f"{self._id} has no commit for revision {revision}")
        return ModelCommit(self._id, info.sha, frozenset(sibling.rfilename for sibling in info.siblings or ()))

    @tracing.step("download")
    def download(self, commit: str, patterns: list[str] | None = None) -> Path:
        """See ModelReader. The folder is in the cache of HF_HOME."""
        with hub_errors(self._field, f"{self._id}@{commit}"):
            folder = snapshot_download(
                self._id, revision=commit, allow_patterns=patterns, endpoint=self._endpoint, token=self._token
            )
        return Path(folder)

    def etag(self, commit: str, name: str) -> str:
        """See ModelReader."""
        return self._metadata(commit, name).etag or ""

    def size(self, commit: str, name: str) -> int:
        """See ModelReader."""
        return self._metadata(commit, name).size or 0

    def shapes(self, commit: str, name: str) -> dict[str, tuple[int, ...]]:
        """See ModelReader. Only the header is downloaded, of at most 25 MB."""
        with hub_errors(self._field, f"{self._id}@{commit}"):
            try:
                header = self._api.parse_safetensors_file_metadata(self._id, name, revision=commit)
            except SafetensorsParsingError as error:
                raise ValueError(f"{name} is not a safetensors file: {error}") from error
        return {tensor: tuple(info.shape) for tensor, info in header.tensors.items()}

    def _metadata(self, commit: str, name: str) -> HfFileMetadata:
        with hub_errors(self._field, f"{self._id}@{commit}"):
            url = hf_hub_url(self._id, name, revision=commit, endpoint=self._endpoint)
            return self._api.get_hf_file_metadata(url=url, token=self._token)

    def license(self, commit: str) -> dict[str, str]:
        """See ModelReader."""
        with hub_errors(self._field, f"{self._id}@{commit}"):
            card = self._api.model_info(self._id, revision=commit).card_data
        return license_of({name: getattr(card, name, None) for name in LICENSE_FIELDS})


def check_writable_folder(folder: Path) -> None:
    """Check that a local folder for releases is writable, by creating it.

    Raises:
        StageError: InvalidSpec.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StageError(
            Reason.INVALID_SPEC,
            f"cannot write to the folder of spec.publish.repository, {folder}: {error.strerror}",
            "Set spec.publish.repository to a writable folder, or to owner/name on the Hub.",
        ) from error


def why_denied(who: Mapping[str, Any], repository: str, *, exists: bool) -> str:
    """Return why a token may not push; empty if it may.

    Args:
        who: the response of the Hub's whoami-v2.
        repository: owner/name.
        exists: whether the repository exists and is writable; otherwise it has to be created.
    """
    namespace, user = repository.split("/", 1)[0], str(who["name"])
    access: Mapping[str, Any] = who.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        return f"the token of {user} in spec.publish.tokenSecretRef is a read token"
    roles = {str(org["name"]): org.get("roleInOrg") for org in who.get("orgs", [])}
    if exists:
        return ""
    if namespace != user and namespace not in roles:
        known = ", ".join([user, *sorted(roles)])
        return f"{user} is not a member of the namespace {namespace}; the token's namespaces are: {known}"
    # The response has the role only for tokens with the permission to read it.
    if namespace != user and (roles[namespace] or "write") not in _WRITING_ROLES:
        return f"{user} has the role {roles[namespace]} in {namespace}, which may not create repositories"
    if access.get("role") == "fineGrained" and not _may_create(access.get("fineGrained", {}), namespace):
        return (
            f"creating {repository} needs write permission (repo.write) on all repositories of {namespace}, which the "
            f"fine-grained token of {user} does not have"
        )
    return ""


def _may_create(scopes: Mapping[str, Any], namespace: str) -> bool:
    granted = [scope["permissions"] for scope in scopes.get("scoped", []) if scope["entity"].get("name") == namespace]
    return any("repo.write" in permissions for permissions in [*granted, scopes.get("global", [])])


def _is_commit(sha: str | None) -> TypeGuard[str]:
    """Return whether a server's value is a commit id. It is used in paths, and the server may be untrusted."""
    return sha is not None and sha.isascii() and sha.isalnum()


@contextmanager
def hub_errors(field: str, subject: str = "") -> Iterator[None]:
    """Convert exceptions of huggingface_hub inside the block to a StageError; other exceptions pass.

    Args:
        field: READ_FIELD, ADAPTER_FIELD, WRITE_FIELD or DATASET_FIELD, the part of the spec that the block is about.
        subject: the repository, for the message.

    Raises:
        StageError: HubTokenInvalid, HubWriteDenied, BaseModelGated, BaseModelNotFound, DatasetGated, DatasetNotFound,
            HubQuotaExceeded or HubUnreachable.
    """
    try:
        yield
    except HfHubHTTPError as error:
        explained = _explained(error, field, subject)
        if explained is None:
            raise
        raise explained from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        # JSONDecodeError: a proxy's login page, for example. LocalEntryNotFoundError: a failed download.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StageError(Reason.HUB_UNREACHABLE, f"cannot reach the Hub (spec.hub.endpoint): {first}") from error


def _explained(error: HfHubHTTPError, field: str, subject: str) -> StageError | None:
    status = error.response.status_code
    detail = (error.server_message or str(error)).splitlines()[0]
    denied = Reason.HUB_WRITE_DENIED
    token = f"the token of {_TOKEN_FIELDS[field]}"
    full = status == 402 or (status == 403 and any(word in detail.lower() for word in ("quota", "storage", "payment")))
    cases = (
        (
            isinstance(error, GatedRepoError),
            _GATED.get(field, Reason.BASE_MODEL_GATED),
            f"{subject} is gated, and {token} may not read it",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            _NOT_FOUND.get(field, Reason.BASE_MODEL_NOT_FOUND),
            f"the revision of {subject} does not exist",
        ),
        (
            isinstance(error, RepositoryNotFoundError),
            _NOT_FOUND.get(field, denied),
            f"the repository {subject} of {field} does not exist on the Hub, or is not visible to {token}",
        ),
        (status == 401, Reason.HUB_TOKEN_INVALID, f"the Hub does not accept {token}"),
        (full, Reason.HUB_QUOTA_EXCEEDED, f"the Hub's storage quota for {subject} is exceeded"),
        (
            status == 403,
            _GATED.get(field, denied),
            f"{token} has no permission for {subject}",
        ),
        (
            status in {408, 429} or status >= 500,
            Reason.HUB_UNREACHABLE,
            f"the Hub (spec.hub.endpoint) returned HTTP {status} for {subject or 'the token'}",
        ),
    )
    return next((StageError(reason, f"{message}: {detail}") for holds, reason, message in cases if holds), None)
