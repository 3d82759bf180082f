"""Provides a testbed on the local cluster, which is created if needed, or on an existing cluster."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import yaml

from tunemill_dev.cluster import addons, up
from tunemill_dev.cluster.console import say, step
from tunemill_dev.kubectl import CommandError, Kubectl
from tunemill_dev.testbed import CHART, REPOSITORY_ROOT, Hub, ObjectStore, Testbed, waiting_pods

ENV_REGISTRY, ENV_TAG = "REGISTRY", "TAG"
IMAGES = {
    "tunemill-operator": "docker build -f operator/Dockerfile",
    "tunemill-trainer": "docker build -f trainer_image/Dockerfile",
    "tunemill-hub": "docker build -f dev/hub/Dockerfile --build-arg BASE_IMAGE=python:3.12-slim",
    "versitygw": "docker pull versity/versitygw",
}
"""The images that an existing cluster must be able to pull, and the commands that provide them."""
ROLLOUT_SECONDS = 120


@contextmanager
def local(name: str) -> Iterator[Testbed]:
    """Start the local cluster of this name if it does not run, and update its images. It keeps running afterwards."""
    cluster = up(name)
    with step("operator image"):
        operator = cluster.build_image(
            "tunemill-operator", REPOSITORY_ROOT, REPOSITORY_ROOT / "operator" / "Dockerfile"
        )
    with step("trainer image"):
        trainer = cluster.build_image(
            "tunemill-trainer", REPOSITORY_ROOT, REPOSITORY_ROOT / "trainer_image" / "Dockerfile"
        )
    s3, hub = cluster.s3, cluster.hub
    options = ("--kubeconfig", str(cluster.kubeconfig))
    yield Testbed(
        kubectl=Kubectl(str(cluster.kubectl), options),
        helm=(str(cluster.helm), *options),
        store=ObjectStore(s3.host_url, s3.cluster_url, s3.access_key, s3.secret_key),
        hub=Hub(hub.host_url, hub.cluster_url, hub.organisation, hub.write_token),
        operator_image=operator,
        trainer_image=trainer,
        volumes=cluster.volumes,
    )


@contextmanager
def attached(context: str) -> Iterator[Testbed]:
    """Use the cluster of a kubectl context. Nothing is built; S3 and Hub are reached through port forwards.

    The images come from the registry in the variable REGISTRY, or must already be loaded on the cluster's nodes.

    Raises:
        CommandError: kubectl or helm is missing, or the cluster cannot run the images; the message lists them.
    """
    kubectl = Kubectl("kubectl", ("--context", context))
    with step(f"cluster of context {context}"):
        kubectl("version")
    images = _images()
    say(f"  The cluster needs these images. Load them, or set {ENV_REGISTRY}=registry.example.com/team and {ENV_TAG}:")
    for name, reference in images.items():
        say(f"    {reference:<44} {IMAGES[name]} …")
    credentials = _credentials(kubectl)
    with step("S3 and Hub"):
        manifests = addons.services(credentials, s3_image=images["versitygw"], hub_image=images["tunemill-hub"])
        kubectl("apply", "--filename", "-", stdin=manifests)
        for name in ("s3", "hub"):
            _wait_for_rollout(kubectl, name)
    with ExitStack() as forwards:
        s3 = forwards.enter_context(kubectl.forward(addons.NAMESPACE, "s3", 7070))
        hub = forwards.enter_context(kubectl.forward(addons.NAMESPACE, "hub", 8080))
        yield Testbed(
            kubectl=kubectl,
            helm=("helm", "--kube-context", context),
            store=ObjectStore(
                f"http://{s3}",
                f"http://s3.{addons.NAMESPACE}:7070",
                credentials.s3_access_key,
                credentials.s3_secret_key,
            ),
            hub=Hub(
                f"http://{hub}",
                f"http://hub.{addons.NAMESPACE}:8080",
                addons.HUB_ORGANISATION,
                credentials.hub_write_token,
            ),
            operator_image=images["tunemill-operator"],
            trainer_image=images["tunemill-trainer"],
        )


def _credentials(kubectl: Kubectl) -> addons.Credentials:
    """Return the existing credentials of S3 and Hub in the cluster, or new ones."""
    s3, hub = kubectl.secret("s3-root", addons.NAMESPACE), kubectl.secret("hub-accounts", addons.NAMESPACE)
    if s3 is None or hub is None:
        return addons.Credentials()
    tokens = {token["name"]: token["value"] for token in json.loads(hub["accounts.json"])["tokens"]}
    return addons.Credentials(
        s3_access_key=s3["AWS_ACCESS_KEY_ID"],
        s3_secret_key=s3["AWS_SECRET_ACCESS_KEY"],
        hub_admin_token=hub["admin-token"],
        hub_write_token=tokens["write"],
        hub_read_token=tokens["read"],
        hub_scoped_token=tokens["scoped"],
    )


def _images() -> dict[str, str]:
    """Return the references of all required images, by name."""
    tag = os.environ.get(ENV_TAG) or yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    registry = os.environ.get(ENV_REGISTRY, "").rstrip("/")
    return {name: f"{registry}/{name}:{tag}" if registry else f"{name}:{tag}" for name in IMAGES}


def _wait_for_rollout(kubectl: Kubectl, name: str) -> None:
    where = ("--namespace", addons.NAMESPACE, "--timeout", f"{ROLLOUT_SECONDS}s")
    try:
        kubectl("rollout", "status", f"deployment/{name}", *where)
    except CommandError as error:
        reasons = waiting_pods(kubectl, addons.NAMESPACE) or str(error)
        raise CommandError(f"{name} was not ready within {ROLLOUT_SECONDS} s: {reasons}") from error
