"""The registry of the artifact OCI, which prepare checks and publish pushes to."""

import time

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
    return RegistryRepository(publish.oci, login, lambda seconds: pause(context, seconds))


def pause(context: StageContext, seconds: float) -> None:
    """Wait, unless the pod gets a request to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        context.stop.check()
        time.sleep(min(left, 0.2))
