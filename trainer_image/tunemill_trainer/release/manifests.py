"""Writes serving.yaml: the Kubernetes objects with which vLLM serves a release.

The same flags as in the serving contract, for KServe and for a cluster without it. No object names a location that is
not in the contract: neither the Hub's endpoint nor a namespace.
"""

import re
import shlex
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml
from tunemill_api.local_files import is_local
from tunemill_api.publish import ServingTarget
from typing_extensions import override

from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.release.contract import TEMPLATE, Launch

MANIFESTS = "serving.yaml"
IMAGE = "vllm/vllm-openai:v0.33.0"
TOKEN_SECRET = "hf-token"  # noqa: S105 - the name of a Secret
"""The Secret whose key `token` has the Hub token; needed for private repositories only."""
CLAIM = "models"
"""The PersistentVolumeClaim with the models of a release that is not on the Hub."""

_PORT = 8000
_MODELS = "/models"
_ADAPTERS = "/adapters"
_CACHE = "/cache"
_USER = 1000
_KSERVE_ADAPTERS = "/mnt/lora"
"""Where KServe puts adapters, each in a folder with the adapter's name."""
_LONGEST_NAME = 40
"""KServe adds suffixes to the name, and a label has at most 63 characters."""
_START_MINUTES = 20
Json = dict[str, Any]


def serving_manifests(launch: Launch, served: str, revision: str, call_format: ReplyFormat) -> str:
    """Return serving.yaml.

    Args:
        launch: how the contract starts the release.
        served: the repository or file:// URI that the server loads.
        revision: its commit, tag or branch.
        call_format: the format in which the model writes calls.
    """
    launch = replace(launch, target=ServingTarget.VLLM, parser=call_format.vllm_parser)
    deployment, service = _deployment(launch, served, revision), _service(launch)
    head = "# How to serve this model with vLLM on Kubernetes. Choose one of the parts.\n"
    secret = f"kubectl create secret generic {TOKEN_SECRET} --from-literal=token=…"
    parts = [f"{head}# A private repository needs a token: {secret}\n"]
    if is_local(served) or launch.model.startswith("/"):
        parts.append(f"# Models in folders: copy them into the PersistentVolumeClaim {CLAIM} first.\n")
    # KServe splits a URI at slashes.
    if "/" not in revision:
        parts.append("# 1. KServe\n---\n" + _written(_inference_service(launch, served, revision)))
    parts.append("# 2. Without KServe\n---\n" + _written(deployment) + "---\n" + _written(service))
    if launch.adapter:
        parts.append(_several(launch))
    return "\n".join(parts)


def _written(value: Json) -> str:
    return yaml.dump(value, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True, width=1000)


class _WithoutAliases(yaml.SafeDumper):
    """Writes a value that occurs twice two times, as people do."""

    @override
    def ignore_aliases(self, data: object) -> bool:
        return True


def _name(launch: Launch) -> str:
    """Return the name of the objects: a DNS label."""
    name = re.sub(r"[^a-z0-9]+", "-", launch.name.lower())[:_LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"model-{name}".strip("-")


def _folder(uri: str) -> str:
    """Return the name of a model's folder in the volume."""
    return PurePosixPath(uri).name


def _uri(place: str, revision: str) -> str:
    """Return a model's URI for KServe."""
    if place.startswith("/") or is_local(place):
        return f"pvc://{CLAIM}/{_folder(place)}"
    return f"hf://{place}:{revision}" if revision else f"hf://{place}"


def _inference_service(launch: Launch, served: str, revision: str) -> Json:
    model: Json = {"uri": _uri(served, revision), "name": launch.name}
    flags = launch.chat_flags
    if launch.adapter:
        model = {
            "uri": _uri(launch.model, launch.revision),
            "name": _folder(launch.model) if launch.model.startswith("/") else launch.model,
            "lora": {
                "maxRank": launch.max_rank,
                "adapters": [{"name": launch.name, "uri": _uri(served, revision)}],
            },
        }
        folder = f"{_KSERVE_ADAPTERS}/{launch.name}"
        flags = [
            *("--tokenizer", folder, "--chat-template", f"{folder}/{TEMPLATE}", "--generation-config", folder),
            *flags,
        ]
    main: Json = {
        "name": "main",
        # KServe's own arguments come first.
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(flags)}],
        "resources": _resources(),
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": _name(launch)},
        "spec": {
            "model": model,
            "replicas": 1,
            "router": {"route": {}, "gateway": {}, "scheduler": {}},
            "template": {"containers": [main]},
        },
    }


def _deployment(launch: Launch, served: str, revision: str) -> Json:
    downloaded = bool(launch.adapter) and not is_local(served)
    name, launch = _name(launch), _in_container(launch, downloaded=downloaded)
    label = {"app.kubernetes.io/name": name}
    volumes: list[Json] = [{"name": "cache", "emptyDir": {}}]
    mounts: list[Json] = [{"name": "cache", "mountPath": _CACHE}]
    if downloaded:
        volumes.append({"name": "adapters", "emptyDir": {}})
        mounts.append({"name": "adapters", "mountPath": _ADAPTERS})
    if is_local(served) or launch.model.startswith("/"):
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}})
        mounts.append({"name": "models", "mountPath": _MODELS, "readOnly": True})
    token = {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": TOKEN_SECRET, "key": "token", "optional": True}},
    }
    # As another user than root: torch asks for a name and vLLM for a home.
    user = {"USER": "vllm", "HOME": _CACHE, "HF_HOME": _CACHE}
    environment = [token, *({"name": name, "value": value} for name, value in user.items())]
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10}
    container = {
        "name": "vllm",
        "image": IMAGE,
        "command": ["vllm", "serve"],
        "args": [word for group in launch.flags() for word in group],
        "env": environment,
        "ports": [{"name": "http", "containerPort": _PORT}],
        "startupProbe": {**health, "failureThreshold": 6 * _START_MINUTES},
        "readinessProbe": dict(health),
        "livenessProbe": {**health, "timeoutSeconds": 10, "failureThreshold": 6},
        "resources": _resources(),
        "securityContext": restricted,
        "volumeMounts": [*mounts, {"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108 - in a pod
    }
    pod: Json = {
        # With the variables of a Service that is called vllm, vLLM would take another port.
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER},
        **({"initContainers": [_download(container, served, revision, launch.adapter)]} if downloaded else {}),
        "containers": [container],
        "volumes": [*volumes, {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": label},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # a second pod would wait for a second GPU
            "selector": {"matchLabels": label},
            "template": {"metadata": {"labels": label}, "spec": pod},
        },
    }


def _download(server: Json, served: str, revision: str, folder: str) -> Json:
    """Return the container that downloads the adapter before the server starts, in the same image."""
    shared = {name: server[name] for name in ("image", "env", "securityContext")}
    return {
        "name": "download",
        **shared,
        "command": ["hf", "download", served, "--revision", revision, "--local-dir", folder],
        "volumeMounts": [mount for mount in server["volumeMounts"] if mount["mountPath"] in (_CACHE, _ADAPTERS)],
    }


def _in_container(launch: Launch, *, downloaded: bool) -> Launch:
    """Return how vLLM is started in a container, where folders are at other places."""
    if launch.adapter:
        folder = f"{_ADAPTERS if downloaded else _MODELS}/{launch.name}"
        launch = replace(launch, adapter=folder)
    if launch.model.startswith("/"):
        # The folder of a full model's release has the name of its digest.
        launch = replace(launch, model=f"{_MODELS}/{_folder(launch.model) if launch.adapter else launch.name}")
    return launch


def _service(launch: Launch) -> Json:
    label = {"app.kubernetes.io/name": _name(launch)}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _name(launch), "labels": label},
        "spec": {"selector": label, "ports": [{"name": "http", "port": _PORT, "targetPort": "http"}]},
    }


def _resources() -> Json:
    return {"limits": {"nvidia.com/gpu": "1"}}


def _several(launch: Launch) -> str:
    """Return a comment with the command for two adapters."""
    groups = [
        [*group, "OTHER=./OTHER", "--max-loras", "2"] if "--lora-modules" in group else group
        for group in replace(launch, adapter=f"./{launch.name}").flags()
    ]
    lines = ("vllm serve " + " \\\n    ".join(map(shlex.join, groups))).splitlines()
    comment = "".join(f"#   {line}\n" for line in lines)
    return (
        "# 3. Several adapters of this base model on one server. They share this tokenizer and chat template, and\n"
        f"# --max-lora-rank must fit the largest:\n{comment}"
    )
