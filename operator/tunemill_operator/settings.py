"""The operator's settings. Each is a flag and an environment variable: `--http-port` and `TUNEMILL_HTTP_PORT`."""

import argparse
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from tunemill_api.constants import USER_ID
from tunemill_api.run_spec import CLUSTER_NAME

PREFIX: Final = "TUNEMILL_"
_PROXY: Final = re.compile(r"https?://[^/@\s]+/?")


def _setting(default: Any, text: str, *choices: str, environment: str = "") -> Any:  # noqa: ANN401 - a dataclass field
    return field(default=default, metadata={"help": text, "choices": choices, "environment": environment})


@dataclass(frozen=True)
class Settings:
    """Settings of the operator. The texts are shown by `--help`."""

    trainer_image: str = _setting("", "Default trainer image. Required.")
    image_pull_policy: str = _setting(
        "", "Pull policy of the trainer image. Empty: the default of Kubernetes.", "", "Always", "IfNotPresent", "Never"
    )
    image_pull_secrets: tuple[str, ...] = _setting((), "Image pull Secrets in each object's namespace, by comma.")
    stage_user: str = _setting(
        str(USER_ID), "User and group ID of stage pods. Empty: the cluster chooses, as OpenShift requires."
    )
    hub_endpoints: tuple[str, ...] = _setting(
        (), "URLs of Hubs, besides huggingface.co, that users may set without a profile, comma-separated."
    )
    instance_metadata: bool = _setting(
        default=False, text="Let stages without credentials use the identity of their node (AWS metadata service)."
    )
    namespaces: tuple[str, ...] = _setting((), "Namespaces to watch, comma-separated. Empty: all.")
    no_profiles: bool = _setting(default=False, text="Do not use FineTuneProfiles, which are cluster-scoped.")
    cluster_name: str = _setting(
        "", "Name of this cluster, if several clusters share a workspace. Do not change it later."
    )
    workers: int = _setting(16, "Number of concurrent reconciles.")
    resync_seconds: int = _setting(300, "Seconds between comparisons of the caches with complete lists.")
    lease_name: str = _setting("tunemill-operator", "Name of the Lease that the leader holds.")
    lease_namespace: str = _setting("default", "Namespace of the Lease.", environment="POD_NAMESPACE")
    identity: str = _setting("", "Identity of this process in the Lease. Empty: host name and process ID.")
    no_leader_election: bool = _setting(default=False, text="Lead without a Lease. Only for a single operator process.")
    progress_url: str = _setting("", "URL of the progress endpoint for pods. Empty: no progress reports.")
    progress_port: int = _setting(8443, "Port of the progress endpoint.")
    progress_cert: str = _setting("", "File with the certificate of the progress endpoint (PEM).")
    progress_key: str = _setting("", "File with the private key of the progress endpoint (PEM).")
    progress_ca: str = _setting("", "File with the CA certificate of the progress endpoint (PEM).")
    progress_secret: str = _setting(
        "", "Secret for a certificate that the operator creates, instead of the three files."
    )
    progress_write_seconds: int = _setting(
        10, "Minimum seconds between two status writes for progress alone, per object."
    )
    progress_writes_per_second: int = _setting(10, "Maximum status writes per second for progress alone.")
    ca_bundle: str = _setting("", "File with additional trusted CA certificates (PEM).")
    http_proxy: str = _setting("", "URL of the stages' proxy for http. It is visible in pods.")
    https_proxy: str = _setting("", "URL of the stages' proxy for https. It is visible in pods.")
    no_proxy: str = _setting("", "Hosts and domains without a proxy, comma-separated.")
    builder_id: str = _setting(
        "", "URI of this installation in the provenance of releases. Empty: the default of Tunemill."
    )
    sigstore: str = _setting(
        "",
        "Keyless signing of releases: `public` for the public instance of Sigstore, or a file with the trust "
        "configuration of a private one. Empty: disabled.",
    )
    http_host: str = _setting("0.0.0.0", "Address of /metrics, /healthz and /readyz.")  # noqa: S104 - scraped
    http_port: int = _setting(8080, "Port of /metrics, /healthz and /readyz. 0: a free port.")
    log_format: str = _setting("text", "Log format.", "text", "json")
    log_level: str = _setting("info", "Log level.", "debug", "info", "warning", "error")
    kubeconfig: str = _setting("", "Path of a kubeconfig. Empty: the pod's account, else the default kubeconfig.")
    context: str = _setting("", "Context of the kubeconfig. Empty: the current context.")
    pod_name: str = _setting("", "Name of the operator's pod, labelled while it leads.", environment="POD_NAME")
    pod_namespace: str = _setting("", "Namespace of the operator's pod.", environment="POD_NAMESPACE")

    @property
    def candidate(self) -> str:
        """Identity of this process in the Lease."""
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"


class SettingsError(Exception):
    """A setting is missing or invalid, or two settings conflict."""


def add_options(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add one option per setting. Environment variables set the defaults."""
    for item in fields(Settings):
        flag, variable = f"--{item.name.replace('_', '-')}", f"{PREFIX}{item.name.upper()}"
        fallback = environment.get(item.metadata["environment"], "")
        text = f"{item.metadata['help']} [${variable}]"
        if item.type is bool:
            chosen = environment.get(variable, "").lower() in {"1", "true", "yes"}
            parser.add_argument(flag, action="store_true", default=chosen, help=text)
            continue
        parser.add_argument(
            flag,
            default=environment.get(variable, fallback or _as_text(item)),
            type=int if item.type is int else str,
            choices=item.metadata["choices"] or None,
            help=text,
            metavar=item.name.split("_")[-1].upper(),
        )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings from the parsed options.

    Raises:
        SettingsError: a setting is missing or invalid. The message names the flag.
    """
    values = {item.name: getattr(arguments, item.name) for item in fields(Settings)}
    for item in fields(Settings):
        if item.type == tuple[str, ...]:
            values[item.name] = tuple(part.strip() for part in values[item.name].split(",") if part.strip())
    settings = Settings(**values)
    if not settings.trainer_image:
        raise SettingsError("--trainer-image is required: the image of the stages")
    if settings.workers < 1 or settings.resync_seconds < 1:
        raise SettingsError("--workers and --resync-seconds must be at least 1")
    if settings.stage_user and not re.fullmatch(r"[1-9][0-9]{0,9}", settings.stage_user):
        raise SettingsError(f"--stage-user must be a user ID above 0, or empty, got {settings.stage_user!r}")
    if settings.cluster_name and not re.fullmatch(CLUSTER_NAME, settings.cluster_name):
        raise SettingsError(f"--cluster-name must be a DNS label, for example prod-eu, got {settings.cluster_name!r}")
    if settings.progress_write_seconds < 1 or settings.progress_writes_per_second < 1:
        raise SettingsError("--progress-write-seconds and --progress-writes-per-second must be at least 1")
    if settings.builder_id and not re.fullmatch(r"https?://[^\s@]+", settings.builder_id):
        raise SettingsError(f"--builder-id must be an http:// or https:// URI, got {settings.builder_id!r}")
    if settings.progress_url:
        _check_progress(settings)
    for flag, url in (("--http-proxy", settings.http_proxy), ("--https-proxy", settings.https_proxy)):
        if url and not _PROXY.fullmatch(url):
            raise SettingsError(f"{flag} must be an http:// or https:// URL without credentials, as pods show it")
    return settings


def _check_progress(settings: Settings) -> None:
    if not settings.progress_url.startswith("https://"):
        raise SettingsError(
            f"--progress-url must start with https://, got {settings.progress_url!r}: it receives tokens"
        )
    if settings.progress_secret:
        if settings.progress_cert or settings.progress_key or settings.progress_ca:
            raise SettingsError("set either --progress-secret or --progress-cert, --progress-key and --progress-ca")
        return
    for flag, path in (
        ("--progress-cert", settings.progress_cert),
        ("--progress-key", settings.progress_key),
        ("--progress-ca", settings.progress_ca),
    ):
        if not path or not Path(path).is_file():
            raise SettingsError(
                f"with --progress-url and no --progress-secret, {flag} must name a readable PEM file, got {path!r}"
            )


def _as_text(item: "Field[Any]") -> str:
    return ",".join(item.default) if isinstance(item.default, tuple) else str(item.default)
