"""The Hugging Face Hub as the stages need it: what a token may do, what a revision stands for, what errors mean."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import httpx2
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tunemill_api.failures import Reason
from tunemill_api.local_files import is_local, local_path
from tunemill_api.plain_text import plain

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import tracing
from tunemill_trainer.storage import local_model

READ_FIELD = "spec.baseModel"
WRITE_FIELD = "spec.publish"
DATASET_FIELD = "spec.dataset"

_TOKEN_FIELDS = {
    READ_FIELD: "spec.baseModel.tokenSecretRef",
    WRITE_FIELD: "spec.publish.tokenSecretRef",
    DATASET_FIELD: "spec.baseModel.tokenSecretRef",
}
_NOT_FOUND = {READ_FIELD: Reason.BASE_MODEL_NOT_FOUND, DATASET_FIELD: Reason.DATASET_NOT_FOUND}
_GATED = {READ_FIELD: Reason.BASE_MODEL_GATED, DATASET_FIELD: Reason.DATASET_GATED}
_LICENSE = ("license", "license_name", "license_link")
_WRITING_ROLES = {"admin", "write", "contributor"}
"""Roles in an organisation whose members may create repositories (https://huggingface.co/docs/hub/organizations-security)."""


@dataclass(frozen=True)
class ModelCommit:
    """What a revision stands for: a commit, and the files in it."""

    id: str
    commit: str
    files: frozenset[str]


class Hub:
    """One Hub, seen with one token.

    Args:
        endpoint: the Hub's URL; empty means huggingface.co.
        token: None asks without one.
    """

    def __init__(self, endpoint: str, token: str | None) -> None:
        # False and not None: without a Secret, a token that lies around on the machine must not be used unseen.
        self._token: str | bool = token or False
        self._endpoint = endpoint.rstrip("/") or None
        self.api = HfApi(endpoint=self._endpoint, token=self._token)

    def check_token(self, field: str) -> None:
        """Raise HubTokenInvalid if there is a token and the Hub does not know it."""
        if self._token:
            with hub_errors(field):
                self.api.whoami()

    def resolve(self, model_id: str, revision: str) -> ModelCommit:
        """Return the commit of a base model's branch, tag or commit, and check that its files may be read.

        Of a folder of this machine it returns what stands for a commit: a digest of its files.

        Raises:
            StageError: BaseModelNotFound, BaseModelGated, HubTokenInvalid or HubUnreachable.
        """
        if is_local(model_id):
            folder = local_path(model_id)
            names = local_model.files_of(folder)
            return ModelCommit(model_id, local_model.revision_of(folder, names), names)
        with hub_errors(READ_FIELD, f"{model_id}@{revision}"):
            # Information is public also where the files are gated.
            self.api.auth_check(model_id)
            info = self.api.model_info(model_id, revision=revision)
        if not _is_commit(info.sha):
            raise StageError(Reason.BASE_MODEL_NOT_FOUND, f"{model_id} has no commit for revision {revision}")
        return ModelCommit(model_id, info.sha, frozenset(sibling.rfilename for sibling in info.siblings or ()))

    @tracing.step("download")
    def download(self, model_id: str, commit: str, patterns: list[str] | None = None) -> Path:
        """Return the folder of a model's files, those that match the patterns, in the cache of HF_HOME."""
        if is_local(model_id):
            return local_path(model_id)
        with hub_errors(READ_FIELD, f"{model_id}@{commit}"):
            folder = snapshot_download(
                model_id, revision=commit, allow_patterns=patterns, endpoint=self._endpoint, token=self._token
            )
        return Path(folder)

    def etag(self, model: ModelCommit, name: str) -> str:
        """Return what the Hub says of the content of a file: the sha256 where the file is kept by LFS or Xet."""
        if is_local(model.id):
            return ""
        with hub_errors(READ_FIELD, f"{model.id}@{model.commit}"):
            url = hf_hub_url(model.id, name, revision=model.commit, endpoint=self._endpoint)
            return self.api.get_hf_file_metadata(url=url, token=self._token).etag or ""

    def resolve_dataset(self, dataset_id: str, revision: str) -> ModelCommit:
        """Return the commit of a data set's branch, tag or commit, and check that its files may be read.

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
        """Return whether everybody may know of a data set. Asks without the token; no answer counts as no."""
        try:
            return not HfApi(endpoint=self._endpoint, token=False).dataset_info(dataset_id).private
        except (HfHubHTTPError, httpx2.HTTPError, OSError):
            return False

    def download_file_of_dataset(self, dataset: ModelCommit, name: str) -> Path:
        """Return where a file of a data set lies, in the cache of HF_HOME."""
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

    def license(self, model_id: str, commit: str) -> dict[str, str]:
        """Return what a model's card says of its license: license, license_name and license_link, where it does."""
        if is_local(model_id):
            local_card = local_model.card_of(local_path(model_id))
            found = {name: local_card.get(name) for name in _LICENSE}
        else:
            with hub_errors(READ_FIELD, f"{model_id}@{commit}"):
                card = self.api.model_info(model_id, revision=commit).card_data
            found = {name: getattr(card, name, None) for name in _LICENSE}
        return {name: plain(value) for name, value in found.items() if isinstance(value, str)}

    def check_writable(self, repository: str) -> None:
        """Check that the token may push to a repository, or create it. Changes nothing on the Hub.

        Raises:
            StageError: CredentialsMissing, HubTokenInvalid, HubWriteDenied or HubUnreachable; InvalidSpec for a folder
                of this machine.
        """
        if is_local(repository):
            check_writable_folder(local_path(repository))
            return
        if not self._token:
            raise StageError(
                Reason.CREDENTIALS_MISSING,
                f"pushing to {repository} needs a Hugging Face token with write access, and there is none; "
                "set spec.publish.tokenSecretRef",
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
        """Return True when the repository is there and may be written to, False when it cannot be seen."""
        try:
            self.api.auth_check(repository, write=True)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return False
        return True


def check_writable_folder(folder: Path) -> None:
    """Check that releases can be written to a folder of this machine, by making it.

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
            f"spec.publish.repository is {folder}, which cannot be written to: {error.strerror}",
            "Set spec.publish.repository to a folder that you may write to, or to owner/name on the Hub.",
        ) from error


def why_denied(who: Mapping[str, Any], repository: str, *, exists: bool) -> str:
    """Return why a token may not push, or an empty string.

    Args:
        who: the answer of the Hub's whoami-v2.
        repository: owner/name.
        exists: whether the Hub already said that this repository is there and writable; else it has to be created.
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
    # The Hub tells the role only to tokens that may know it.
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
    """Tell whether a server names a commit; it becomes a part of paths, and the server may be anybody's."""
    return sha is not None and sha.isascii() and sha.isalnum()


@contextmanager
def hub_errors(field: str, subject: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into a StageError; other errors pass.

    Args:
        field: READ_FIELD, WRITE_FIELD or DATASET_FIELD, the part of the spec that the block acts on.
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
        # A proxy's login page is not JSON; a broken download surfaces as a file that is not in the cache.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StageError(Reason.HUB_UNREACHABLE, f"could not reach the Hub (spec.hub.endpoint): {first}") from error


def _explained(error: HfHubHTTPError, field: str, subject: str) -> StageError | None:
    status = error.response.status_code
    said = (error.server_message or str(error)).splitlines()[0]
    denied = Reason.HUB_WRITE_DENIED
    token = f"the token of {_TOKEN_FIELDS[field]}"
    full = status == 402 or (status == 403 and any(word in said.lower() for word in ("quota", "storage", "payment")))
    cases = (
        (
            isinstance(error, GatedRepoError),
            _GATED.get(field, Reason.BASE_MODEL_GATED),
            f"{subject} is gated, {token} may not read it",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            _NOT_FOUND.get(field, Reason.BASE_MODEL_NOT_FOUND),
            f"{subject} has no such revision",
        ),
        (
            isinstance(error, RepositoryNotFoundError),
            _NOT_FOUND.get(field, denied),
            f"{field} is {subject}, and the Hub has no such repository, or none that {token} may see",
        ),
        (status == 401, Reason.HUB_TOKEN_INVALID, f"the Hub does not accept {token}"),
        (full, Reason.HUB_QUOTA_EXCEEDED, f"the Hub takes no more data for {subject}"),
        (
            status == 403,
            _GATED.get(field, denied),
            f"{token} has no right on {subject}",
        ),
        (
            status in {408, 429} or status >= 500,
            Reason.HUB_UNREACHABLE,
            f"the Hub (spec.hub.endpoint) answered HTTP {status} when asked for {subject or 'the token'}",
        ),
    )
    return next((StageError(reason, f"{message}: {said}") for holds, reason, message in cases if holds), None)
