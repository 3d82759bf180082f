"""Images for the cluster of a kubectl context: built with Docker and loaded into the cluster's nodes, or pushed.

kind, k3d, minikube and Docker Desktop run on this machine, each with its own command to load an image. Any other
cluster pulls from a registry.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tunemill_dev.cluster.console import step
from tunemill_dev.kubectl import CommandError, Kubectl, Object, run
from tunemill_dev.testbed import REPOSITORY_ROOT

ENV_REGISTRY = "REGISTRY"
ARCHITECTURES = ("amd64", "arm64")
_GO_MOD = REPOSITORY_ROOT / "dev" / "cluster" / "modules" / "programs" / "go.mod"
_KIND_NODE = re.compile(r"kind://[^/]+/(?P<cluster>[^/]+)/")
_K3D_NODE = re.compile(r"k3d-(?P<cluster>.+)-(?:server|agent)-\d+")


class Engine(StrEnum):
    """A program that runs a Kubernetes on this machine."""

    KIND = "kind"
    K3D = "k3d"
    MINIKUBE = "minikube"
    DOCKER_DESKTOP = "Docker Desktop"


@dataclass(frozen=True)
class LocalEngine:
    """The engine of a cluster, and the cluster's name there."""

    engine: Engine
    cluster: str

    def load_commands(self, references: Iterable[str]) -> list[tuple[str, ...]]:
        """Return the commands that load images of Docker into the cluster's nodes."""
        references = tuple(references)
        match self.engine:
            case Engine.KIND:
                return [("kind", "load", "docker-image", "--name", self.cluster, *references)]
            case Engine.K3D:
                return [("k3d", "image", "import", "--cluster", self.cluster, *references)]
            case Engine.MINIKUBE:
                load = ("minikube", "--profile", self.cluster, "image", "load", "--daemon=true")
                return [(*load, reference) for reference in references]
            case Engine.DOCKER_DESKTOP:  # its nodes share Docker's image store
                return []


@dataclass(frozen=True)
class Image:
    """An image that a testbed needs, and how it is built."""

    name: str
    dockerfile: Path | None = None
    """None: the image is `base` as it is."""
    base: str = ""
    """The argument BASE_IMAGE; empty uses the Dockerfile's default."""

    def build_command(self, platforms: str, *options: str) -> tuple[str, ...]:
        """Return the command that builds it from the root of the repository, or from standard input.

        Args:
            platforms: such as `linux/amd64`, or several with commas.
            options: further options, such as `--load`.
        """
        # A provenance makes an index of the image, which `kind load` cannot import.
        command = ("docker", "buildx", "build", "--platform", platforms, "--provenance=false", *options)
        if self.dockerfile is None:
            return (*command, "-")
        argument = ("--build-arg", f"BASE_IMAGE={self.base}") if self.base else ()
        return (*command, *argument, "--file", str(self.dockerfile), str(REPOSITORY_ROOT))

    @property
    def stdin(self) -> str:
        """The Dockerfile, where it is given on standard input."""
        return "" if self.dockerfile else f"FROM {self.base}\n"


def needed_images() -> tuple[Image, ...]:
    """Return the images that a testbed needs in the cluster of a context."""
    version = re.search(r"^\s*github\.com/versity/versitygw (v\S+)", _GO_MOD.read_text(), re.MULTILINE)
    assert version, _GO_MOD
    return (
        Image("tunemill-operator", REPOSITORY_ROOT / "operator" / "Dockerfile"),
        Image("tunemill-trainer", REPOSITORY_ROOT / "trainer_image" / "Dockerfile"),
        Image("tunemill-hub", REPOSITORY_ROOT / "dev" / "hub" / "Dockerfile", base="python:3.12-slim"),
        Image("versitygw", base=f"versity/versitygw:{version[1]}"),
    )


def existing_images(registry: str, tag: str) -> dict[str, str]:
    """Return references with a tag, by the images' names, for images that the cluster has or pulls from a registry."""
    return {
        image.name: f"{registry}/{image.name}:{tag}" if registry else f"{image.name}:{tag}" for image in needed_images()
    }


def provide_images(kubectl: Kubectl, context: str, registry: str) -> dict[str, str]:
    """Build the images that a testbed needs, bring them into the cluster, and return their references by name.

    Args:
        kubectl: of the cluster.
        context: its name.
        registry: where images are pushed to, such as `registry.example.com/team`; empty loads them into the nodes.

    Raises:
        CommandError: Docker or the engine's command is missing, or the cluster's nodes get no images from this machine.
    """
    nodes = kubectl.list("nodes", "")
    architectures = node_architectures(nodes)
    if registry:
        _check_docker()
        return {image.name: _pushed(image, architectures, registry.rstrip("/")) for image in needed_images()}
    local = recognise(context, nodes)
    if local is None:
        raise CommandError(
            f"The cluster of context {context} is not one of kind, k3d, minikube or Docker Desktop, so images cannot "
            f"be loaded into its nodes. Name a registry that its nodes pull from and that you may push to: "
            f"make demo CONTEXT={context} {ENV_REGISTRY}=registry.example.com/team"
        )
    if len(architectures) > 1:
        raise CommandError(
            f"The nodes of context {context} have different processors ({', '.join(architectures)}), and Docker loads "
            f"images of one. Name a registry: make demo CONTEXT={context} {ENV_REGISTRY}=registry.example.com/team"
        )
    _check_docker()
    references = {image.name: _built(image, architectures[0]) for image in needed_images()}
    with step(f"images loaded into {local.engine} ({local.cluster})"):
        for command in local.load_commands(references.values()):
            _load(local, command)
    return references


def recognise(context: str, nodes: list[Object]) -> LocalEngine | None:
    """Return the engine that runs a cluster on this machine, or None for any other cluster.

    The nodes decide, because a context can be renamed; the name of the context only tells Docker Desktop's own kind
    cluster from others.
    """
    for node in nodes:
        name, labels = node["metadata"]["name"], node["metadata"].get("labels", {})
        found = _KIND_NODE.match(node.get("spec", {}).get("providerID", ""))
        if name == "docker-desktop" or (found and context == "docker-desktop"):
            return LocalEngine(Engine.DOCKER_DESKTOP, "docker-desktop")
        if found:
            return LocalEngine(Engine.KIND, found["cluster"])
        if profile := labels.get("minikube.k8s.io/name"):
            return LocalEngine(Engine.MINIKUBE, profile)
        if found := _K3D_NODE.fullmatch(name):
            return LocalEngine(Engine.K3D, found["cluster"])
    return None


def node_architectures(nodes: list[Object]) -> tuple[str, ...]:
    """Return the processors of the nodes, sorted.

    Raises:
        CommandError: there is no node, or the images cannot be built for one of them.
    """
    found = sorted({node["status"]["nodeInfo"]["architecture"] for node in nodes})
    if not found:
        raise CommandError("The cluster has no node.")
    if unknown := set(found) - set(ARCHITECTURES):
        raise CommandError(
            f"The images are built for {' and '.join(ARCHITECTURES)}; the cluster has nodes with "
            f"{', '.join(sorted(unknown))}."
        )
    return tuple(found)


def _check_docker() -> None:
    remedy = f"Install and start Docker with buildx, or set TAG and {ENV_REGISTRY} to use images that exist."
    for command in (("docker", "version"), ("docker", "buildx", "version")):
        try:
            run(command)
        except CommandError as error:
            raise CommandError(f"Docker cannot build the images: {error}\n{remedy}") from error


def _built(image: Image, architecture: str) -> str:
    """Build an image into Docker's store and return its reference.

    The tag is of its content: the same files give the same reference, so a Deployment rolls when something changed.
    """
    moving = f"{image.name}:build"
    with step(f"image {image.name} ({architecture})"):
        run(image.build_command(f"linux/{architecture}", "--load", "--tag", moving), image.stdin)
        digest = run(("docker", "image", "inspect", "--format", "{{.Id}}", moving)).strip().removeprefix("sha256:")
        reference = f"{image.name}:{digest[:12]}"
        run(("docker", "image", "tag", moving, reference))
    return reference


def _pushed(image: Image, architectures: Iterable[str], registry: str) -> str:
    """Build an image for all processors, push it, and return its reference by digest."""
    platforms = ",".join(f"linux/{architecture}" for architecture in architectures)
    repository = f"{registry}/{image.name}"
    with step(f"image {repository} ({platforms})"), tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / "metadata.json"
        options = ("--push", "--tag", f"{repository}:demo", "--metadata-file", str(metadata))
        run(image.build_command(platforms, *options), image.stdin)
        return f"{repository}@{json.loads(metadata.read_text())['containerimage.digest']}"


def _load(local: LocalEngine, command: tuple[str, ...]) -> None:
    try:
        run(command)
    except CommandError as error:
        raise CommandError(
            f"Images could not be loaded into {local.engine} cluster {local.cluster!r}: {error}\n"
            f"If its program is not on this machine, name a registry: {ENV_REGISTRY}=registry.example.com/team"
        ) from error
