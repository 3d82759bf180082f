"""Converts the operator's settings to settings for stage pods, and sets up the trusted CA certificates."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunemill_api import traces, trust

from tunemill_operator.engine.volumes import Platform
from tunemill_operator.progress.certificate import Certificate
from tunemill_operator.settings import Settings, SettingsError

CA_BUNDLE_BYTES = 24 * 1024
"""Maximum size of the bundle. It is stored in an annotation of every stage pod, of which all together may have 256
KiB."""
SIGSTORE_BYTES = 20 * 1024
"""Maximum size of the trust configuration of Sigstore. It is stored in an annotation of publish pods."""
PUBLIC_SIGSTORE = "public"
"""Value of `--sigstore` for the public instance."""


def platform_of(settings: Settings, certificate: Certificate | None) -> Platform:
    """Return the current settings for stage pods.

    Args:
        settings: the operator's settings.
        certificate: certificate of the progress endpoint; None if there is no endpoint.

    Raises:
        SettingsError: the certificates in `--ca-bundle`, or the file of `--sigstore`, cannot be used.
        OSError: the CA certificate cannot be read.
    """
    proxies = {
        "HTTP_PROXY": settings.http_proxy,
        "HTTPS_PROXY": settings.https_proxy,
        "NO_PROXY": settings.no_proxy,
    }
    return Platform(
        image=settings.trainer_image,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
        progress_url=settings.progress_url.rstrip("/") if certificate else "",
        progress_ca=certificate.authority if certificate else "",
        ca_bundle=_ca_bundle(settings.ca_bundle),
        proxies={name: value for name, value in proxies.items() if value},
        builder_id=settings.builder_id,
        sigstore=_sigstore(settings.sigstore),
        traces=traces.endpoints(os.environ),
        cluster=settings.cluster_name,
        hub_endpoints=settings.hub_endpoints,
        instance_metadata=settings.instance_metadata,
        run_as_user=int(settings.stage_user) if settings.stage_user else None,
    )


@contextlib.contextmanager
def trusting(ca_bundle: str) -> Iterator[None]:
    """Make this process trust the CA certificates in a file, in addition to the public ones, while the context lasts.

    Raises:
        SettingsError: the certificates cannot be used.
    """
    if not ca_bundle:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            trust.trust(Path(ca_bundle), Path(folder))
        except (OSError, ValueError) as error:
            raise _unusable(ca_bundle, error) from error
        yield


def _ca_bundle(path: str) -> str:
    if not path:
        return ""
    try:
        text = trust.without_public_certificates(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    if len(text) > CA_BUNDLE_BYTES:
        raise SettingsError(
            f"--ca-bundle: the CA certificates in {path}, without public ones, have {len(text)} bytes, but at most "
            f"{CA_BUNDLE_BYTES} fit into a pod: keep only those for S3, the Hub and proxies"
        )
    return text


def _sigstore(setting: str) -> str | None:
    """Return the trust configuration for keyless signing as one line; empty for the public instance."""
    if not setting:
        return None
    if setting == PUBLIC_SIGSTORE:
        return ""
    try:
        config = json.loads(Path(setting).read_text(encoding="utf-8"))
        missing = [part for part in ("trustedRoot", "signingConfig") if not config.get(part)]
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(f"--sigstore: {setting} cannot be used: {error}") from error
    if missing:
        raise SettingsError(f"--sigstore: expected a ClientTrustConfig in {setting}, found none: it lacks {missing[0]}")
    text = json.dumps(config, separators=(",", ":"))
    if len(text) > SIGSTORE_BYTES:
        raise SettingsError(
            f"--sigstore: {setting} has {len(text)} bytes without white space, but at most {SIGSTORE_BYTES} fit into "
            "a pod: keep only the certificates and keys that are in use"
        )
    return text


def _unusable(path: str, error: Exception) -> SettingsError:
    return SettingsError(f"--ca-bundle: {path} cannot be used: {error}")
