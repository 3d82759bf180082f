"""A cluster with Tunemill installed, S3, a Hub, Secrets and data, for the demo and the end-to-end tests."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tunemill_api.constants import LABEL_FINETUNE, LABEL_STAGE, PLURAL
from tunemill_api.status import FineTuneStatus, Phase

from tunemill_dev.kubectl import CommandError, Kubectl, Object, run

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from types_boto3_s3 import S3Client

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY_ROOT / "crds" / "samples"
CHART = REPOSITORY_ROOT / "charts" / "tunemill"
INSTALL = REPOSITORY_ROOT / "charts" / "install.yaml"

RELEASE, SYSTEM_NAMESPACE = "tunemill", "tunemill-system"
S3_SECRET, HUB_SECRET = "s3", "hf-write"
INSTALL_SECONDS = 180

ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.HELD, Phase.SUSPENDED})
"""Phases that do not change without an edit or a request."""


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server, with its addresses for this machine and for pods."""

    endpoint: str
    """From here."""
    inside: str
    """From the pods; what manifests name."""
    access_key: str
    secret_key: str = field(repr=False)

    def client(self) -> "S3Client":
        """Return a client of boto3."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def make_empty(self, bucket: str) -> None:
        """Create a bucket, or delete all objects of an existing one."""
        client = self.client()
        if bucket not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)
        for key in self.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str) -> list[str]:
        """Return the keys of all objects in a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def put_rows(self, uri: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Upload rows as JSON Lines to an `s3://bucket/key`."""
        self.put(uri, json_lines(rows))

    def put(self, uri: str, text: str) -> None:
        """Upload a text to an `s3://bucket/key`."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.client().put_object(Bucket=bucket, Key=key, Body=text.encode())


@dataclass(frozen=True)
class Hub:
    """A local Hub server, with its addresses for this machine and for pods."""

    endpoint: str
    """From here."""
    inside: str
    """From the pods; what manifests name."""
    owner: str
    """The organisation that the write token may push to."""
    write_token: str = field(repr=False)

    def client(self) -> "HfApi":
        """Return a client of huggingface_hub."""
        # The client reads this when it is imported. With Xet, an upload to a server without Xet hangs.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.write_token)

    def put_model(self, repository: str, folder: Path) -> str:
        """Create or replace a public repository with the files of a folder, and return its commit."""
        client = self.client()
        self.delete(repository)
        client.create_repo(repository, private=False)
        client.upload_folder(repo_id=repository, folder_path=folder)
        return str(client.model_info(repository).sha)

    def delete(self, repository: str) -> None:
        """Delete a repository if it exists."""
        self.client().delete_repo(repository, missing_ok=True)


@dataclass(frozen=True)
class Testbed:
    """The environment of a run. All names are those of `crds/samples/demo.yaml`."""

    __test__ = False  # pytest would collect it as a test class because of its name

    kubectl: Kubectl
    helm_program: Callable[[], str]
    """Returns the path of `helm`. It is built or searched for at its first use, because the demo needs no Helm."""
    helm_options: tuple[str, ...]
    """The options that select the cluster for Helm."""
    store: ObjectStore
    hub: Hub
    operator_image: str
    trainer_image: str
    volumes: Path | None = None
    """The folder for persistent volumes on this machine, which is the node. None if the cluster provisions volumes."""
    registry: str = ""
    """Host and port at which a registry on this machine serves images to the node. Empty if the node is elsewhere."""

    @property
    def helm(self) -> tuple[str, ...]:
        """The helm command with the options that select the cluster."""
        return (self.helm_program(), *self.helm_options)

    def install(self, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        """Install or upgrade the chart and wait until the operator is ready. CommandError if it does not become ready.

        Args:
            values: values of the chart, in addition to the images.
        """
        name, at, digest = self.operator_image.partition("@")
        repository, _, tag = name.rpartition(":")
        chosen = {
            "image": {"repository": name, "digest": digest} if at else {"repository": repository, "tag": tag},
            "trainer": {"image": self.trainer_image},
            "hub": {"endpoints": [self.hub.inside]},
            # The cluster has one node: a second replica would only compete for its cores.
            "replicas": 1,
            **values,
        }
        self._make_restricted(SYSTEM_NAMESPACE)
        where = ("--namespace", SYSTEM_NAMESPACE, "--values", "-")
        # The demo may have installed the manifest before.
        adopting = ("--take-ownership", "--server-side=true", "--force-conflicts")
        options = (*where, *adopting, "--wait", "--timeout", f"{INSTALL_SECONDS}s")
        with self._explaining():
            run((*self.helm, "upgrade", "--install", RELEASE, str(CHART), *options), json.dumps(chosen))

    def install_manifest(self) -> None:
        """Apply `charts/install.yaml` without Helm, and wait until the operator is ready. CommandError if it fails."""
        manifest = with_images(INSTALL.read_text(), self.operator_image, self.trainer_image, self.hub.inside)
        with self._explaining():
            self.kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=manifest)
            where = ("--namespace", SYSTEM_NAMESPACE, "--timeout", f"{INSTALL_SECONDS}s")
            self.kubectl("rollout", "status", f"deployment/{RELEASE}", *where)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Add the reasons why operator pods do not start to the error of a failed installation."""
        try:
            yield
        except CommandError as error:
            reasons = waiting_pods(self.kubectl, SYSTEM_NAMESPACE)
            raise CommandError(f"The operator could not be installed. {reasons} {error}") from error

    def make_namespace(self, name: str) -> None:
        """Create a namespace that enforces the restricted Pod Security Standard, with the Secrets of the samples."""
        self._make_restricted(name)
        self.kubectl.apply(self.s3_secret(name), self.hub_secret(name))

    def _make_restricted(self, namespace: str) -> None:
        metadata = {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def make_claim(self, name: str, namespace: str) -> None:
        """Create a PersistentVolumeClaim of 1 GiB, and a volume for it if the cluster does not provision one."""
        metadata = {"name": name, "namespace": namespace}
        terms: Object = {"accessModes": ["ReadWriteOnce"]}
        claimed: Object = {**terms, "resources": {"requests": {"storage": "1Gi"}}}
        if self.volumes is not None:
            folder = self.volumes / namespace / name
            folder.mkdir(parents=True)
            volume = f"{namespace}-{name}"
            any_node = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}]
            spec: Object = {
                **terms,
                "capacity": {"storage": "1Gi"},
                "claimRef": metadata,
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": any_node}},
            }
            self.kubectl.apply(
                {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec}
            )
            claimed |= {"storageClassName": "", "volumeName": volume}
        self.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claimed})

    def s3_secret(self, namespace: str) -> Object:
        """Return the Secret with the S3 credentials."""
        keys = {"AWS_ACCESS_KEY_ID": self.store.access_key, "AWS_SECRET_ACCESS_KEY": self.store.secret_key}
        return _secret(S3_SECRET, namespace, keys)

    def hub_secret(self, namespace: str) -> Object:
        """Return the Secret with the Hub's write token."""
        return _secret(HUB_SECRET, namespace, {"token": self.hub.write_token})


class NotReachedError(Exception):
    """A run did not reach the expected state. The message contains its current state and the reason."""


@dataclass(frozen=True)
class FineTune:
    """One FunctionCallFineTune in a cluster."""

    kubectl: Kubectl
    name: str
    namespace: str

    @classmethod
    def apply(cls, kubectl: Kubectl, manifest: Object) -> "FineTune":
        """Apply a manifest. CommandError with the API server's message if it is rejected."""
        kubectl.apply(manifest)
        return cls(kubectl, manifest["metadata"]["name"], manifest["metadata"]["namespace"])

    def status(self) -> FineTuneStatus:
        """Return the current status."""
        found = self.kubectl.get(PLURAL, self.name, self.namespace)
        return FineTuneStatus.model_validate((found or {}).get("status", {}))

    def edit(self, spec: Object) -> None:
        """Change fields of the spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", PLURAL, self.name, "--namespace", self.namespace, "--type", "merge", "--patch", patch)

    def delete(self) -> None:
        """Delete the object if it exists, and wait until its Jobs and pods are deleted."""
        self.kubectl(
            *("delete", PLURAL, self.name, "--namespace", self.namespace),
            *("--ignore-not-found", "--cascade=foreground", "--timeout", "120s"),
        )

    def pods(self, stage: str = "") -> list[Object]:
        """Return the pods of one stage, or of all stages."""
        selector = f"{LABEL_FINETUNE}={self.name}" + (f",{LABEL_STAGE}={stage}" if stage else "")
        return self.kubectl.list("pods", self.namespace, selector)

    def follow(
        self,
        until: Callable[[FineTuneStatus], bool],
        seconds: float,
        seen: Callable[[FineTuneStatus], None] = lambda _: None,
    ) -> FineTuneStatus:
        """Watch until the status of the current spec fulfils a condition, and return it.

        Args:
            until: the condition.
            seconds: how long to wait.
            seen: called with every status, and again about once a second.

        Raises:
            NotReachedError: the time has expired.
        """
        deadline = time.monotonic() + seconds
        status = FineTuneStatus()
        with closing(self.kubectl.watch(PLURAL, self.name, self.namespace)) as objects:
            for found in objects:
                status = FineTuneStatus.model_validate(found.get("status", {}))
                seen(status)
                if status.observed_generation == found["metadata"]["generation"] and until(status):
                    return status
                if time.monotonic() > deadline:
                    break
        raise NotReachedError(f"{self.namespace}/{self.name}, after {seconds:.0f} s: {status_line(status)}")

    def reach(self, phase: Phase, seconds: float) -> FineTuneStatus:
        """Watch until the run has ended in a phase, and return its status.

        Raises:
            NotReachedError: it ended in another phase, or not in time.
        """
        status = self.follow(lambda status: status.phase in ENDED, seconds)
        if status.phase != phase:
            raise NotReachedError(f"{self.namespace}/{self.name} ended, but not in {phase}: {status_line(status)}")
        return status


def with_images(manifest: str, operator: str, trainer: str, hub: str) -> str:
    """Return `charts/install.yaml` with other images, one replica, and an allowed Hub.

    Args:
        manifest: the content of the file.
        operator: the reference of the operator image.
        trainer: the reference of the trainer image.
        hub: the URL of the Hub for pods.
    """
    # Only the Deployment is parsed, because the CRDs would take seconds.
    documents = manifest.split("\n---\n")
    (place,) = (at for at, text in enumerate(documents) if "\nkind: Deployment\n" in text)
    deployment = yaml.safe_load(documents[place])
    # The cluster has one node: a second replica would only compete for its cores.
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = operator
    chosen = {"--trainer-image": trainer, "--hub-endpoints": hub}
    others = [flag for flag in container["args"] if flag.partition("=")[0] not in chosen]
    container["args"] = [*others, *(f"{name}={value}" for name, value in chosen.items())]
    documents[place] = yaml.safe_dump(deployment)
    return "\n---\n".join(documents)


def status_line(status: FineTuneStatus) -> str:
    """Return the phase of a run and the reasons why it does not continue."""
    if status.failure:
        failure = status.failure
        return f"{status.phase} in {failure.stage}, {failure.reason}: {failure.message.rstrip('.')}. {failure.remedy}"
    messages = [each.message for each in status.conditions if each.type in {"Stalled", "Reconciling"} and each.message]
    return f"{status.phase or 'not seen by the operator yet'}. {' '.join(messages)}"


def waiting_pods(kubectl: Kubectl, namespace: str) -> str:
    """Return one sentence for each waiting container of a namespace with its reason; empty if all containers run."""
    pods = kubectl.list("pods", namespace)
    containers = [each for pod in pods for each in pod["status"].get("containerStatuses", [])]
    waiting = [(each["image"], each["state"]["waiting"]) for each in containers if "waiting" in each["state"]]
    reasons = [f"{image} is in {why['reason']}: {why.get('message', '')}." for image, why in waiting]
    return " ".join(dict.fromkeys(reasons))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as JSON Lines."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def sample(name: str) -> Object:
    """Return a manifest of `crds/samples/`, by its file's name without `.yaml`."""
    manifest: Object = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text())
    return manifest


def save_diagnostics(kubectl: Kubectl, namespace: str, folder: Path) -> None:
    """Write objects, events and pod logs of a namespace into a folder, to analyze a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = {
        "finetunes.txt": ("describe", PLURAL, "--namespace", namespace),
        "jobs.txt": ("describe", "jobs,pods", "--namespace", namespace),
        "events.txt": ("get", "events", "--namespace", namespace, "--sort-by", ".lastTimestamp"),
        "operator.log": ("logs", "--namespace", SYSTEM_NAMESPACE, f"deployment/{RELEASE}", "--tail", "2000"),
    }
    for pod in kubectl.list("pods", namespace):
        name = pod["metadata"]["name"]
        questions[f"{name}.log"] = ("logs", "--namespace", namespace, name, "--all-containers", "--prefix")
    for file, question in questions.items():
        try:
            answer = kubectl(*question)
        except CommandError as error:  # a pod that never started has no log; save the rest anyway
            answer = f"{error}\n"
        (folder / file).write_text(answer)


def _secret(name: str, namespace: str, values: dict[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
