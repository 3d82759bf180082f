"""The registry of the artifact OCI, which prepare checks and publish pushes to."""

from tunemill_api.publish import Artifact

from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.storage.registry import RegistryRepository


def open_registry(context: StageContext) -> RegistryRepository | None:
    """Return the repository of spec.publish.oci; None if the artifact OCI is not published.

    Raises:
        StageError: CredentialsMissing, when the Secret has none for the registry.
    """
    publish = context.spec.publish
    if publish.oci is None or Artifact.OCI not in publish.artifacts:
        return None
    login = context.credentials.registry_login(publish.oci.registry.partition("://")[2])
    return RegistryRepository(publish.oci, login, context.stop.pause)
