"""Volumes and environment variables of stage pods: RunSpec, Secrets, working directories, progress reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tunemill_api import constants, traces
from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.pod_template import PodTemplate, Scratch
from tunemill_api.scalars import ConfigMapKeyRef, SecretKeyRef, SecretRef

from tunemill_operator.engine.objects import FineTune

Manifest = dict[str, Any]
"""A part of an object as JSON."""

ANNOTATION_PROGRESS_CA = f"{constants.GROUP}/progress-ca"
"""On stage pods: CA certificate of the progress endpoint. The pod reads it through the downward API."""

ANNOTATION_CA_BUNDLE = f"{constants.GROUP}/ca-bundle"
"""On stage pods: additional trusted CA certificates. A ConfigMap would be needed in every namespace, or the operator
would need permission to create it there."""

ANNOTATION_SIGSTORE = f"{constants.GROUP}/sigstore"
"""On publish pods that sign without a key: trust configuration of Sigstore, empty for the public instance."""

WORK_DIRECTORY = f"{constants.STAGE_DIRECTORY}/work"
TOKEN_SECONDS = 3600
"""Lifetime of the tokens in seconds. The kubelet renews them."""
USER_VOLUME = "user-"
"""Prefix for names of volumes from spec.podTemplates, which separates them from the operator's volumes."""

_FIELD_OF_VOLUME = {
    "dataset": "spec.dataset.credentialsSecretRef",
    "workspace": "spec.workspace.credentialsSecretRef",
    "manifest-key": "spec.workspace.manifestKeySecretRef",
    "hub-read": "spec.baseModel.tokenSecretRef",
    "hub-write": "spec.publish.tokenSecretRef",
    "signing": "spec.publish.signing.keySecretRef",
    "registry": "spec.publish.oci.secretRef",
    "mlflow": "spec.tracking.mlflow.credentialsSecretRef",
    "wandb": "spec.tracking.wandb.tokenSecretRef",
    "chat-template": "spec.tokenizer.chatTemplate.configMapKeyRef",
    "tools": "spec.tools.configMapKeyRef",
    "models": "spec.compute.modelCache.claimName",
}

SECRETS_OF_WORK = {
    # prepare mounts all Secrets, so that a missing one is found before a GPU is requested.
    "prepare": ("dataset", "workspace", "manifest-key", "hub-read", "hub-write", "registry", "mlflow", "wandb"),
    # The pod that runs for hours on shared GPU nodes has no write access to the Hub.
    "train": ("workspace", "manifest-key", "hub-read", "mlflow", "wandb"),
    # Only publish has the signing key: pods that parse untrusted data and models cannot sign releases.
    "publish": ("workspace", "manifest-key", "hub-read", "hub-write", "signing", "registry"),
}


@dataclass(frozen=True)
class Platform:
    """The operator's settings for stage pods."""

    image: str
    """Default trainer image."""
    image_pull_policy: str = ""
    """Empty means the default of Kubernetes."""
    image_pull_secrets: tuple[str, ...] = ()
    progress_url: str = ""
    """Base URL of the progress endpoint. Empty if there is none."""
    progress_ca: str = ""
    """CA certificate of the endpoint (PEM). Empty if a public CA signed the certificate."""
    listening_since: datetime | None = None
    """When the progress endpoint became available. None if it is not: stages are then not checked for progress."""
    ca_bundle: str = ""
    """Additional CA certificates (PEM) trusted by stages."""
    proxies: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for proxies. Empty if there are none."""
    builder_id: str = ""
    """URI of this installation in the provenance of releases. Empty means the trainer's default."""
    sigstore: str | None = None
    """Trust configuration for keyless signing. Empty means the public instance of Sigstore, None that keyless signing
    is disabled."""
    traces: Mapping[str, str] = field(default_factory=dict)
    """Environment variables with the endpoint for traces. Empty if tracing is disabled."""
    cluster: str = ""
    """Name of the cluster in the references of a workspace. Empty if none is set."""
    hub_endpoints: tuple[str, ...] | None = None
    """Hubs, in addition to the public one, that users may set without a profile. None allows all."""
    instance_metadata: bool = False
    """Whether boto3 may use the identity of the node if the pod has none."""
    run_as_user: int | None = constants.USER_ID
    """User, group and fsGroup of stage pods. None: the cluster chooses, as OpenShift's restricted-v2 requires."""


@dataclass(frozen=True)
class Volume:
    """A volume and its mount path."""

    path: str
    """Mount path. Empty for volumes that are mounted by `user_mounts`."""
    source: Manifest
    read_only: bool = True


def volumes_of(spec: FineTuneSpec, label: str, platform: Platform) -> dict[str, Volume]:
    """Return the volumes of the pod with the stage label `label`, by name."""
    template = spec.pod_templates.of(label)
    shared_memory = {"emptyDir": {"medium": "Memory", "sizeLimit": template.shared_memory}}
    volumes = {
        "run-spec": Volume(
            constants.RUN_SPEC_PATH.rpartition("/")[0],
            {"downwardAPI": {"items": [_from_annotation("run.json", constants.ANNOTATION_RUN_SPEC)]}},
        ),
        "work": Volume(WORK_DIRECTORY, _scratch_source(template.scratch), read_only=False),
        "tmp": Volume("/tmp", {"emptyDir": {}}, read_only=False),  # noqa: S108 - the pod's own
        "shm": Volume("/dev/shm", shared_memory, read_only=False),  # noqa: S108
    }
    for name, ref in secrets_of(spec).items():
        if name in SECRETS_OF_WORK[label]:
            file = {"signing": "key.pem", "registry": "config.json"}.get(name, "token")
            volumes[name] = Volume(f"{constants.SECRETS_DIRECTORY}/{name}", {"secret": _secret_source(ref, file)})
    if label == "prepare":
        volumes |= {name: _config_volume(ref, path) for name, (ref, path) in config_maps_of(spec).items()}
    if claim := model_claim(spec, label):
        source = {"persistentVolumeClaim": {"claimName": claim}}
        volumes["models"] = Volume(constants.MODEL_CACHE_PATH, source, read_only=False)
    if platform.ca_bundle:
        folder, _, file = constants.CA_BUNDLE_PATH.rpartition("/")
        volumes["authorities"] = Volume(
            folder, {"downwardAPI": {"items": [_from_annotation(file, ANNOTATION_CA_BUNDLE)]}}
        )
    if platform.progress_url:
        volumes["progress"] = _progress_volume(platform)
    if sigstore_config(spec, label, platform) is not None:
        volumes["sigstore"] = _sigstore_volume()
    return volumes | _user_volumes(template)


def secrets_of(spec: FineTuneSpec) -> dict[str, SecretRef | SecretKeyRef]:
    """Return all Secrets in the spec by the name of their volume."""
    mlflow, wandb = (spec.tracking.mlflow, spec.tracking.wandb) if spec.tracking else (None, None)
    refs = {
        "dataset": spec.dataset.credentials_secret_ref,
        "workspace": effective_workspace(spec).credentials_secret_ref,
        "manifest-key": spec.workspace.manifest_key_secret_ref,
        "hub-read": spec.base_model.token_secret_ref,
        "hub-write": spec.publish.token_secret_ref,
        "signing": spec.publish.signing.key_secret_ref if spec.publish.signing else None,
        "registry": spec.publish.oci.secret_ref if spec.publish.oci else None,
        "mlflow": mlflow.credentials_secret_ref if mlflow else None,
        "wandb": wandb.token_secret_ref if wandb else None,
    }
    return {name: ref for name, ref in refs.items() if ref is not None}


def sigstore_config(spec: FineTuneSpec, label: str, platform: Platform) -> str | None:
    """Return the trust configuration with which the pod signs without a key. None if it does not."""
    return platform.sigstore if label == "publish" and spec.publish.signs_keyless else None


def model_claim(spec: FineTuneSpec, label: str) -> str:
    """Return the PersistentVolumeClaim of the model cache. Empty if there is none, or if the pod loads no model."""
    return "" if label == "prepare" else spec.compute.model_cache.claim_name


def config_maps_of(spec: FineTuneSpec) -> dict[str, tuple[ConfigMapKeyRef, str]]:
    """Return the ConfigMaps that prepare reads, with the path of the file, by the name of their volume."""
    refs = {
        "chat-template": (spec.tokenizer.chat_template, constants.CHAT_TEMPLATE_PATH),
        "tools": (spec.tools, constants.TOOLS_PATH),
    }
    return {name: (source.config_map_key_ref, path) for name, (source, path) in refs.items() if source is not None}


def field_of(spec: FineTuneSpec, volume: str) -> str:
    """Return the field of the spec that a volume comes from. Empty for the operator's own volumes."""
    if volume.startswith(USER_VOLUME):
        return f"spec.podTemplates.{_stage_with(spec, volume)}.volumes"
    if volume == "workspace" and not spec.workspace.uri:
        volume = "dataset"
    return _FIELD_OF_VOLUME.get(volume, "")


def user_mounts(template: PodTemplate) -> list[Manifest]:
    """Return the volume mounts of the template."""
    return [{**dump(mount), "name": f"{USER_VOLUME}{mount.name}"} for mount in template.volume_mounts]


def dump(part: Any) -> Any:  # noqa: ANN401 - any part of the API, or None
    """Return a part of the spec as JSON, without absent fields."""
    return None if part is None else part.model_dump(mode="json", by_alias=True, exclude_none=True)


def _user_volumes(template: PodTemplate) -> dict[str, Volume]:
    sources = {volume.name: dump(volume) for volume in template.volumes}
    return {
        f"{USER_VOLUME}{name}": Volume("", {kind: value for kind, value in source.items() if kind != "name"})
        for name, source in sources.items()
    }


def _stage_with(spec: FineTuneSpec, volume: str) -> str:
    """Return the first stage whose template has the volume."""
    templates = {stage: spec.pod_templates.of(stage) for stage in SECRETS_OF_WORK}
    return next((stage for stage, template in templates.items() if volume in _user_volumes(template)), "*")


def _scratch_source(scratch: Scratch | None) -> Manifest:
    if scratch is None:
        return {"emptyDir": {}}
    if not scratch.storage_class_name:
        return {"emptyDir": {"sizeLimit": scratch.size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": scratch.storage_class_name,
        "resources": {"requests": {"storage": scratch.size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _config_volume(ref: ConfigMapKeyRef, path: str) -> Volume:
    folder, _, file = path.rpartition("/")
    return Volume(folder, {"configMap": {"name": ref.name, "items": [{"key": ref.key, "path": file}]}})


def _secret_source(ref: SecretRef | SecretKeyRef, file: str) -> Manifest:
    """Return the source of a Secret volume. `file` is the file name for a SecretKeyRef."""
    source: Manifest = {"secretName": ref.name, "defaultMode": 0o440}
    if isinstance(ref, SecretKeyRef):
        source["items"] = [{"key": ref.key, "path": file}]
    return source


def _token(audience: str, file: str) -> Manifest:
    """Return the source of a ServiceAccount token in a projected volume."""
    return {"serviceAccountToken": {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": file}}


def _sigstore_volume() -> Volume:
    config = {"downwardAPI": {"items": [_from_annotation("trust-config.json", ANNOTATION_SIGSTORE)]}}
    sources = [_token(constants.SIGSTORE_AUDIENCE, "token"), config]
    path = f"{constants.SECRETS_DIRECTORY}/sigstore"
    return Volume(path, {"projected": {"defaultMode": 0o440, "sources": sources}})


def _progress_volume(platform: Platform) -> Volume:
    path, _, token = constants.PROGRESS_TOKEN_PATH.rpartition("/")
    sources = [_token(constants.PROGRESS_AUDIENCE, token)]
    if platform.progress_ca:
        ca = constants.PROGRESS_CA_PATH.rpartition("/")[2]
        sources.append({"downwardAPI": {"items": [_from_annotation(ca, ANNOTATION_PROGRESS_CA)]}})
    return Volume(path, {"projected": {"defaultMode": 0o440, "sources": sources}})


def progress_env(finetune: FineTune, platform: Platform) -> dict[str, str]:
    """Return the environment variables for progress reports."""
    if not platform.progress_url:
        return {}
    path = progress_path(finetune.meta.namespace, finetune.meta.name)
    env = {
        constants.ENV_PROGRESS_URL: f"{platform.progress_url}{path}",
        constants.ENV_PROGRESS_TOKEN: constants.PROGRESS_TOKEN_PATH,
    }
    if platform.progress_ca:
        env[constants.ENV_PROGRESS_CA] = constants.PROGRESS_CA_PATH
    return env


def network_env(platform: Platform) -> dict[str, str]:
    """Return the environment variables for proxies, trusted CA certificates and node identity."""
    trusted = {constants.ENV_CA_BUNDLE: constants.CA_BUNDLE_PATH} if platform.ca_bundle else {}
    # IRSA and EKS Pod Identity do not use the metadata service, and Google's libraries ignore this variable.
    stage_key = {} if platform.instance_metadata else {"AWS_EC2_METADATA_DISABLED": "true"}
    return {**platform.proxies, **trusted, **stage_key}


def traces_env(finetune: FineTune, run_id: str, platform: Platform) -> dict[str, str]:
    """Return the environment variables for traces: the endpoint and the parent span."""
    if not platform.traces:
        return {}
    return {**platform.traces, traces.ENV_TRACEPARENT: traces.SpanRef.of_run(finetune.meta.uid, run_id).traceparent}


def progress_path(namespace: str, name: str) -> str:
    """Return the URL path for progress reports, in the form of Kubeflow's status protocol (KEP-2779)."""
    return f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{name}/status"


def _from_annotation(path: str, annotation: str) -> Manifest:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
