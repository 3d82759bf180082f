"""A cluster with all that Tunemill needs: chart, S3, Hub, secrets and data; for the demo and the end-to-end tests."""

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
"""Phases in which nothing goes on until somebody changes something."""


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server, as this machine and as the pods reach it."""

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
        """Make a bucket, or delete everything that an existing one holds."""
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
    """A local Hub server, as this machine and as the pods reach it."""

    endpoint: str
    """From here."""
    inside: str
    """From the pods; what manifests name."""
    owner: str
    """The organisation that the write token may push to."""
    write_token: str = field(repr=False)

    def client(self) -> "HfApi":
        """Return the Hub's own client."""
        # Read when the client is first imported: a server without Xet makes an upload with it hang.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.write_token)

    def put_model(self, repository: str, folder: Path) -> str:
        """Make a public repository with what the folder holds, in place of an older one, and return its commit."""
        client = self.client()
        self.delete(repository)
        client.create_repo(repository, private=False)
        client.upload_folder(repo_id=repository, folder_path=folder)
        return str(client.model_info(repository).sha)

    def delete(self, repository: str) -> None:
        """Delete a repository, if it is there."""
        self.client().delete_repo(repository, missing_ok=True)


@dataclass(frozen=True)
class Testbed:
    """What a run needs around it. Everything is named as in `crds/samples/demo.yaml`."""

    __test__ = False  # not a class of tests, whatever its name makes pytest think

    kubectl: Kubectl
    helm_program: Callable[[], str]
    """Returns the program `helm`, which is built or looked for when it is first needed: the demo needs none."""
    helm_options: tuple[str, ...]
    """Which cluster, for Helm."""
    store: ObjectStore
    hub: Hub
    operator_image: str
    trainer_image: str
    volumes: Path | None = None
    """Where this machine, which is the node, keeps persistent volumes; None where the cluster provides them itself."""

    @property
    def helm(self) -> tuple[str, ...]:
        """The program with the options that choose the cluster."""
        return (self.helm_program(), *self.helm_options)

    def install(self, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        """Install the chart or bring it up to date, and wait until the operator is ready; CommandError when it is not.

        Args:
            values: of the chart, besides the images.
        """
        name, at, digest = self.operator_image.partition("@")
        repository, _, tag = name.rpartition(":")
        chosen = {
            "image": {"repository": name, "digest": digest} if at else {"repository": repository, "tag": tag},
            "trainer": {"image": self.trainer_image},
            "hub": {"endpoints": [self.hub.inside]},
            # One node: a second replica could only compete for its cores.
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
        """Apply `charts/install.yaml`, which needs no Helm, and wait until the operator is ready; else CommandError."""
        manifest = with_images(INSTALL.read_text(), self.operator_image, self.trainer_image, self.hub.inside)
        with self._explaining():
            self.kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=manifest)
            where = ("--namespace", SYSTEM_NAMESPACE, "--timeout", f"{INSTALL_SECONDS}s")
            self.kubectl("rollout", "status", f"deployment/{RELEASE}", *where)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Add to a failed installation why pods of the operator do not start."""
        try:
            yield
        except CommandError as error:
            reasons = waiting_pods(self.kubectl, SYSTEM_NAMESPACE)
            raise CommandError(f"The operator could not be installed. {reasons} {error}") from error

    def make_namespace(self, name: str) -> None:
        """Make a namespace with the strictest Pod Security and with the secrets that the samples name."""
        self._make_restricted(name)
        self.kubectl.apply(self.s3_secret(name), self.hub_secret(name))

    def _make_restricted(self, namespace: str) -> None:
        metadata = {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def make_claim(self, name: str, namespace: str) -> None:
        """Make a PersistentVolumeClaim of a GiB, and its volume where nothing else provides one."""
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
        """Return the Secret with the credentials of S3."""
        keys = {"AWS_ACCESS_KEY_ID": self.store.access_key, "AWS_SECRET_ACCESS_KEY": self.store.secret_key}
        return _secret(S3_SECRET, namespace, keys)

    def hub_secret(self, namespace: str) -> Object:
        """Return the Secret with the Hub's write token."""
        return _secret(HUB_SECRET, namespace, {"token": self.hub.write_token})


class NotReachedError(Exception):
    """A run did not get where it was expected; the message says where it is instead, and why."""


@dataclass(frozen=True)
class FineTune:
    """One FunctionCallFineTune in a cluster."""

    kubectl: Kubectl
    name: str
    namespace: str

    @classmethod
    def apply(cls, kubectl: Kubectl, manifest: Object) -> "FineTune":
        """Apply a manifest; CommandError with the API server's words when it is refused."""
        kubectl.apply(manifest)
        return cls(kubectl, manifest["metadata"]["name"], manifest["metadata"]["namespace"])

    def status(self) -> FineTuneStatus:
        """Return what the operator says now."""
        found = self.kubectl.get(PLURAL, self.name, self.namespace)
        return FineTuneStatus.model_validate((found or {}).get("status", {}))

    def edit(self, spec: Object) -> None:
        """Change fields of the spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", PLURAL, self.name, "--namespace", self.namespace, "--type", "merge", "--patch", patch)

    def delete(self) -> None:
        """Delete the object, if it is there, and wait until its Jobs and pods are gone too."""
        self.kubectl(
            *("delete", PLURAL, self.name, "--namespace", self.namespace),
            *("--ignore-not-found", "--cascade=foreground", "--timeout", "120s"),
        )

    def pods(self, stage: str = "") -> list[Object]:
        """Return its pods, of one stage or of all."""
        selector = f"{LABEL_FINETUNE}={self.name}" + (f",{LABEL_STAGE}={stage}" if stage else "")
        return self.kubectl.list("pods", self.namespace, selector)

    def follow(
        self,
        until: Callable[[FineTuneStatus], bool],
        seconds: float,
        seen: Callable[[FineTuneStatus], None] = lambda _: None,
    ) -> FineTuneStatus:
        """Watch until the status, as an answer to the present spec, is as wished, and return it.

        Args:
            until: whether it is as wished.
            seconds: how long to wait.
            seen: told of every status on the way, and again about once a second.

        Raises:
            NotReachedError: the time is over.
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
        raise NotReachedError(f"{self.namespace}/{self.name}, after {seconds:.0f} s: {in_words(status)}")

    def reach(self, phase: Phase, seconds: float) -> FineTuneStatus:
        """Watch until the run has ended, and return its status.

        Raises:
            NotReachedError: it ended in another phase, or not in time.
        """
        status = self.follow(lambda status: status.phase in ENDED, seconds)
        if status.phase != phase:
            raise NotReachedError(f"{self.namespace}/{self.name} ended, but not in {phase}: {in_words(status)}")
        return status


def with_images(manifest: str, operator: str, trainer: str, hub: str) -> str:
    """Return `charts/install.yaml` with other images, one replica, and a Hub that runs may name.

    Args:
        manifest: the file's text.
        operator: reference of the operator's image.
        trainer: reference of the stages' image.
        hub: URL of the Hub, as pods reach it.
    """
    # The CRDs would take seconds to parse, so only the Deployment is.
    documents = manifest.split("\n---\n")
    (place,) = (at for at, text in enumerate(documents) if "\nkind: Deployment\n" in text)
    deployment = yaml.safe_load(documents[place])
    # One node: a second replica could only compete for its cores.
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = operator
    chosen = {"--trainer-image": trainer, "--hub-endpoints": hub}
    others = [flag for flag in container["args"] if flag.partition("=")[0] not in chosen]
    container["args"] = [*others, *(f"{name}={value}" for name, value in chosen.items())]
    documents[place] = yaml.safe_dump(deployment)
    return "\n---\n".join(documents)


def in_words(status: FineTuneStatus) -> str:
    """Return where a run is, and what stands in its way."""
    if status.failure:
        failure = status.failure
        return f"{status.phase} in {failure.stage}, {failure.reason}: {failure.message.rstrip('.')}. {failure.remedy}"
    told = [each.message for each in status.conditions if each.type in {"Stalled", "Reconciling"} and each.message]
    return f"{status.phase or 'not seen by the operator yet'}. {' '.join(told)}"


def waiting_pods(kubectl: Kubectl, namespace: str) -> str:
    """Return why the containers of a namespace that do not run do not, one sentence each; empty when all run."""
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
    """Write what explains a failure into a folder: objects, events, and the logs of all pods concerned."""
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
        except CommandError as error:  # a pod that never started has no log; what there is must be saved all the same
            answer = f"{error}\n"
        (folder / file).write_text(answer)


def _secret(name: str, namespace: str, values: dict[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
