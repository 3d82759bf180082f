"""Provides a testbed on the local cluster, which is created if needed, or on an existing cluster."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from tunemill_dev.cluster import addons, binaries, running, up
from tunemill_dev.cluster.console import step
from tunemill_dev.context_images import ENV_REGISTRY, existing_images, provide_images
from tunemill_dev.kubectl import CommandError, Kubectl
from tunemill_dev.testbed import REPOSITORY_ROOT, Hub, ObjectStore, Testbed, waiting_pods

ENV_TAG = "TAG"
ROLLOUT_SECONDS = 120


OPERATOR, TRAINER = "tunemill-operator", "tunemill-trainer"
"""The names of the images."""


@contextmanager
def local(name: str, built: Mapping[str, str] | None = None) -> Iterator[Testbed]:
    """Start the local cluster of this name if it does not run, and update its images. It keeps running afterwards.

    Args:
        name: the name of the cluster.
        built: the images, by name, that another process has built for the running cluster; None builds them.
    """
    if built is None:
        cluster = up(name)
        built = {}
        for image, folder in ((OPERATOR, "operator"), (TRAINER, "trainer_image")):
            with step(f"{image} image"):
                built[image] = cluster.build_image(image, REPOSITORY_ROOT, REPOSITORY_ROOT / folder / "Dockerfile")
    else:
        cluster = running(name)
    s3, hub = cluster.s3, cluster.hub
    options = ("--kubeconfig", str(cluster.kubeconfig))
    yield Testbed(
        kubectl=Kubectl(str(cluster.kubectl), options),
        helm_program=lambda: str(binaries.ensure([binaries.HELM])[binaries.HELM.name] / "helm"),
        helm_options=options,
        store=ObjectStore(s3.host_url, s3.cluster_url, s3.access_key, s3.secret_key),
        hub=Hub(hub.host_url, hub.cluster_url, hub.organisation, hub.write_token),
        operator_image=built[OPERATOR],
        trainer_image=built[TRAINER],
        volumes=cluster.volumes,
        registry=cluster.registry,
    )


@contextmanager
def attached(context: str, built: Mapping[str, str] | None = None) -> Iterator[Testbed]:
    """Use the cluster of a kubectl context. Its S3 and Hub servers are reached through port forwards.

    The images are built with Docker and loaded into the nodes of kind, k3d, minikube and Docker Desktop. If the
    variable REGISTRY is set, they are pushed there instead. If TAG is set, nothing is built: the cluster already has,
    or pulls, images with this tag.

    Args:
        context: the context.
        built: the images, by name, of a process that has prepared the cluster; None prepares it.

    Raises:
        CommandError: kubectl or Docker is missing, or the cluster cannot run the images; the message says which.
    """
    kubectl = _kubectl(context)
    with step(f"cluster of context {context}"):
        kubectl("version")
    credentials = _credentials(kubectl)
    if built is None:
        built = images_for(context)
        with step("S3 and Hub"):
            manifests = addons.services(credentials, s3_image=built["versitygw"], hub_image=built["tunemill-hub"])
            kubectl("apply", "--filename", "-", stdin=manifests)
            for name in ("s3", "hub"):
                _wait_for_rollout(kubectl, name)
    with ExitStack() as forwards:
        s3 = forwards.enter_context(kubectl.forward(addons.NAMESPACE, "s3", 7070))
        hub = forwards.enter_context(kubectl.forward(addons.NAMESPACE, "hub", 8080))
        yield Testbed(
            kubectl=kubectl,
            helm_program=lambda: "helm",
            helm_options=("--kube-context", context),
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
            operator_image=built[OPERATOR],
            trainer_image=built[TRAINER],
        )


def images_for(context: str) -> dict[str, str]:
    """Return the image references for the cluster of a context, by name. They are built unless TAG is set."""
    registry, tag = os.environ.get(ENV_REGISTRY, "").rstrip("/"), os.environ.get(ENV_TAG, "")
    return existing_images(registry, tag) if tag else provide_images(_kubectl(context), context, registry)


def _kubectl(context: str) -> Kubectl:
    return Kubectl("kubectl", ("--context", context))


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


def _wait_for_rollout(kubectl: Kubectl, name: str) -> None:
    where = ("--namespace", addons.NAMESPACE, "--timeout", f"{ROLLOUT_SECONDS}s")
    try:
        kubectl("rollout", "status", f"deployment/{name}", *where)
    except CommandError as error:
        reasons = waiting_pods(kubectl, addons.NAMESPACE) or str(error)
        raise CommandError(f"{name} was not ready within {ROLLOUT_SECONDS} s: {reasons}") from error
