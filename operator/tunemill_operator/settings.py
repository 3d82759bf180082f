"""The operator's settings: every one is a flag and an environment variable, `--http-port` and `TUNEMILL_HTTP_PORT`."""

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
    """What the platform team decides. The texts are those of `--help`."""

    trainer_image: str = _setting("", "Image of the stages' containers. Required.")
    image_pull_policy: str = _setting(
        "", "Pull policy of that image; empty leaves it to Kubernetes.", "", "Always", "IfNotPresent", "Never"
    )
    image_pull_secrets: tuple[str, ...] = _setting((), "Pull secrets, by comma, in the namespace of each object.")
    stage_user: str = _setting(
        str(USER_ID), "User and group id of stage pods; empty leaves them to the cluster, as OpenShift wants it."
    )
    hub_endpoints: tuple[str, ...] = _setting(
        (), "Hubs, by comma, besides huggingface.co, that users may name without a profile: tokens are sent there."
    )
    instance_metadata: bool = _setting(
        default=False, text="Let stages without credentials use their node's identity from its metadata service (AWS)."
    )
    namespaces: tuple[str, ...] = _setting((), "Namespaces to serve, by comma; empty serves all.")
    no_profiles: bool = _setting(default=False, text="Do without FineTuneProfiles, which belong to no namespace.")
    cluster_name: str = _setting(
        "", "Name of this cluster, for workspaces that several clusters share. It must not change later."
    )
    workers: int = _setting(16, "How many objects are reconciled at the same time.")
    resync_seconds: int = _setting(300, "How often the caches are compared with complete lists.")
    lease_name: str = _setting("tunemill-operator", "Name of the Lease that the leader holds.")
    lease_namespace: str = _setting("default", "Namespace of the Lease.", environment="POD_NAMESPACE")
    identity: str = _setting("", "Who this process is in the Lease; empty takes the host's name and the process id.")
    no_leader_election: bool = _setting(default=False, text="Lead at once: for the only operator of a cluster.")
    progress_url: str = _setting("", "URL at which pods reach the progress endpoint; empty does without progress.")
    progress_port: int = _setting(8443, "Port of the progress endpoint.")
    progress_cert: str = _setting("", "File with the endpoint's certificate as PEM.")
    progress_key: str = _setting("", "File with the endpoint's key as PEM.")
    progress_ca: str = _setting("", "File with the authority that signed the certificate, which pods are to trust.")
    progress_secret: str = _setting(
        "", "In place of the three files: a Secret beside the Lease, for a certificate that the operator makes."
    )
    progress_write_seconds: int = _setting(
        10, "Least seconds between two status writes for one object's progress alone."
    )
    progress_writes_per_second: int = _setting(
        10, "Most status writes in a second for progress alone, for all objects together."
    )
    ca_bundle: str = _setting("", "File with authorities, as PEM, that are trusted beside the public ones.")
    http_proxy: str = _setting("", "Proxy of stages for http, by URL; it is written into pods.")
    https_proxy: str = _setting("", "Proxy of stages for https, by URL; it is written into pods.")
    no_proxy: str = _setting("", "Hosts and domains that stages reach without a proxy, by comma.")
    builder_id: str = _setting(
        "", "URI that names this installation in the provenance of releases; empty takes Tunemill's own."
    )
    http_host: str = _setting("0.0.0.0", "Address of /metrics, /healthz and /readyz.")  # noqa: S104 - scraped
    http_port: int = _setting(8080, "Port of /metrics, /healthz and /readyz; 0 takes a free one.")
    log_format: str = _setting("text", "Form of the log lines.", "text", "json")
    log_level: str = _setting("info", "What is logged.", "debug", "info", "warning", "error")
    kubeconfig: str = _setting("", "Path of a kubeconfig; empty takes the pod's account, else kubectl's usual file.")
    context: str = _setting("", "Context of the kubeconfig; empty takes its current one.")
    pod_name: str = _setting("", "The operator's own pod, labelled while it leads.", environment="POD_NAME")
    pod_namespace: str = _setting("", "The namespace of that pod.", environment="POD_NAMESPACE")

    @property
    def candidate(self) -> str:
        """Who this process is in the Lease."""
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"


class SettingsError(Exception):
    """Settings are missing or do not go together."""


def add_options(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add one option a setting; what the environment says is the default."""
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
    """Return the settings that the options stand for.

    Raises:
        SettingsError: with one sentence that names the flag to change.
    """
    values = {item.name: getattr(arguments, item.name) for item in fields(Settings)}
    for item in fields(Settings):
        if item.type == tuple[str, ...]:
            values[item.name] = tuple(part.strip() for part in values[item.name].split(",") if part.strip())
    settings = Settings(**values)
    if not settings.trainer_image:
        raise SettingsError("--trainer-image is needed: the image whose stages prepare, train, evaluate and publish")
    if settings.workers < 1 or settings.resync_seconds < 1:
        raise SettingsError("--workers and --resync-seconds must be at least 1")
    if settings.stage_user and not re.fullmatch(r"[1-9][0-9]{0,9}", settings.stage_user):
        raise SettingsError(f"--stage-user must be a user id above 0, or empty, got {settings.stage_user!r}")
    if settings.cluster_name and not re.fullmatch(CLUSTER_NAME, settings.cluster_name):
        raise SettingsError(f"--cluster-name must be a DNS label, for example prod-eu, got {settings.cluster_name!r}")
    if settings.progress_write_seconds < 1 or settings.progress_writes_per_second < 1:
        raise SettingsError("--progress-write-seconds and --progress-writes-per-second must be at least 1")
    if settings.builder_id and not re.fullmatch(r"https?://[^\s@]+", settings.builder_id):
        raise SettingsError(f"--builder-id must be a URI of http:// or https://, got {settings.builder_id!r}")
    if settings.progress_url:
        _check_progress(settings)
    for flag, url in (("--http-proxy", settings.http_proxy), ("--https-proxy", settings.https_proxy)):
        if url and not _PROXY.fullmatch(url):
            raise SettingsError(f"{flag} must be a URL of http:// or https:// without credentials, as all pods show it")
    return settings


def _check_progress(settings: Settings) -> None:
    if not settings.progress_url.startswith("https://"):
        raise SettingsError(
            f"--progress-url must begin with https://, got {settings.progress_url!r}: tokens travel there"
        )
    if settings.progress_secret:
        if settings.progress_cert or settings.progress_key or settings.progress_ca:
            raise SettingsError("give either --progress-secret or --progress-cert, --progress-key and --progress-ca")
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
