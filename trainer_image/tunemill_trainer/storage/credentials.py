"""The credentials of the pod: one mounted folder per purpose. Their values are in no log, message or repr."""

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from tunemill_api.constants import SECRETS_DIRECTORY
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.manifest_keys import ManifestKeyError, ManifestKeys

ENV_SECRETS_DIRECTORY = "TUNEMILL_SECRETS_DIR"
"""The environment variable with the path of the folders, if it is not `constants.SECRETS_DIRECTORY`."""

S3Purpose = Literal["dataset", "workspace"]
HubPurpose = Literal["hub-read", "hub-write"]

_FIELDS = {
    "dataset": "spec.dataset.credentialsSecretRef",
    "workspace": "spec.workspace.credentialsSecretRef",
    "manifest-key": "spec.workspace.manifestKeySecretRef",
    "hub-read": "spec.baseModel.tokenSecretRef",
    "hub-write": "spec.publish.tokenSecretRef",
    "signing": "spec.publish.signing.keySecretRef",
    "registry": "spec.publish.oci.secretRef",
    "mlflow": "spec.tracking.mlflow.credentialsSecretRef",
    "wandb": "spec.tracking.wandb.tokenSecretRef",
}

_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "token",
    "key.pem",
    "key",
    "previous-key",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
"""The files with secret values. Other keys of a Secret, such as a region, are not secret."""


@dataclass(frozen=True)
class S3Credentials:
    """An access key. Its repr does not contain the values."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RegistryLogin:
    """User and password for a container registry. Its repr does not contain the values."""

    user: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """The mounted Secrets.

    Attributes:
        directory: has one folder per purpose. A missing folder means that the spec names no Secret.
    """

    directory: Path

    @classmethod
    def from_environment(cls) -> Self:
        """Return the credentials of this pod or machine."""
        return cls(Path(os.environ.get(ENV_SECRETS_DIRECTORY, SECRETS_DIRECTORY)))

    def s3(self, purpose: S3Purpose) -> S3Credentials | None:
        """Return the access key for a purpose; None means the default credential chain of boto3 (pod identity).

        Raises:
            StageError: CredentialsMissing, when the Secret lacks a key.
        """
        folder = self.directory / purpose
        if not folder.is_dir():
            return None
        token = folder / "AWS_SESSION_TOKEN"
        return S3Credentials(
            self._read(purpose, "AWS_ACCESS_KEY_ID"),
            self._read(purpose, "AWS_SECRET_ACCESS_KEY"),
            self._read(purpose, token.name) if token.exists() else None,
        )

    def hub_token(self, purpose: HubPurpose) -> str | None:
        """Return the Hub token for a purpose. Without a Secret, the variable HF_TOKEN, which only local runs have.

        Raises:
            StageError: CredentialsMissing, when the Secret lacks the token.
        """
        if not (self.directory / purpose).is_dir():
            return os.environ.get("HF_TOKEN") or None
        return self._read(purpose, "token")

    def signing_key(self) -> str:
        """Return the private key that signs releases, as PEM.

        Raises:
            StageError: CredentialsMissing, when it is missing.
        """
        return self._read("signing", "key.pem")

    def registry_login(self, host: str) -> RegistryLogin | None:
        """Return the credentials of a registry; None when the spec names no Secret.

        Args:
            host: the registry's host, with the port if it has one.

        Raises:
            StageError: CredentialsMissing, when the Secret has none for this registry.
        """
        if not (self.directory / "registry").is_dir():
            return None
        found = _logins(self._read("registry", "config.json"))
        if host not in found:
            names = ", ".join(sorted(found)) or "none"
            raise StageError(
                Reason.CREDENTIALS_MISSING,
                f"expected user and password for {host} in the Secret of {_FIELDS['registry']}, found {names}",
                "Create the Secret with `kubectl create secret docker-registry NAME --docker-server HOST …`.",
            )
        return found[host]

    def mlflow_variables(self) -> dict[str, str]:
        """Return the variables with the credentials of the MLflow server; empty when the spec names no Secret.

        Raises:
            StageError: CredentialsMissing, when the Secret has neither a token nor a user with a password.
        """
        folder = self.directory / "mlflow"
        if not folder.is_dir():
            return {}
        names = ["MLFLOW_TRACKING_TOKEN"]
        if not (folder / names[0]).exists():
            names = ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
        return {name: self._read("mlflow", name) for name in names}

    def wandb_key(self) -> str | None:
        """Return the API key of Weights & Biases. Without a Secret, the variable WANDB_API_KEY of a local run.

        Raises:
            StageError: CredentialsMissing, when the Secret lacks it.
        """
        if not (self.directory / "wandb").is_dir():
            return os.environ.get("WANDB_API_KEY") or None
        return self._read("wandb", "token")

    def manifest_keys(self) -> ManifestKeys | None:
        """Return the keys that sign manifests; None when the spec names no Secret.

        Raises:
            StageError: CredentialsMissing, when the Secret has no usable key.
        """
        purpose = "manifest-key"
        folder = self.directory / purpose
        if not folder.is_dir():
            return None
        texts = [
            self._read(purpose, name) if (folder / name).exists() else "" for name in ("previous-key", "trusted-before")
        ]
        try:
            return ManifestKeys.read(self._read(purpose, "key"), *texts)
        except ManifestKeyError as error:
            raise StageError(
                Reason.CREDENTIALS_MISSING, f"the Secret of {_FIELDS[purpose]} cannot be used: {error}"
            ) from error

    def values(self) -> list[str]:
        """Return all secret values, for redaction."""
        paths = [path for name in _SECRETS for path in self.directory.glob(f"*/{name}") if path.is_file()]
        registry = self.directory / "registry" / "config.json"
        text = registry.read_text(encoding="utf-8", errors="replace") if registry.is_file() else ""
        return [
            *(path.read_text(encoding="utf-8", errors="replace").strip() for path in paths),
            *(login.password for login in _logins(text).values()),
        ]

    def _read(self, purpose: str, name: str) -> str:
        path = self.directory / purpose / name
        # Values created with `--from-file` or an editor often end in a newline, which servers reject.
        value = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not value:
            raise StageError(
                Reason.CREDENTIALS_MISSING,
                f"expected the key {name} in the Secret of {_FIELDS[purpose]}, found it empty or missing",
            )
        return value


def _logins(text: str) -> dict[str, RegistryLogin]:
    """Return the credentials in a Docker configuration by registry; without those that cannot be parsed."""
    try:
        auths = json.loads(text)["auths"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    found = {}
    for server, entry in auths:
        try:
            joined = base64.b64decode(entry["auth"]).decode() if entry.get("auth") else ""
            user, _, password = joined.partition(":")
            login = RegistryLogin(entry.get("username") or user, entry.get("password") or password)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if login.user and login.password:
            # The Docker client writes some servers as URLs: https://index.docker.io/v1/.
            found[server.removeprefix("https://").removeprefix("http://").partition("/")[0]] = login
    return found
