"""How `make demo CONTEXT=…` loads its images into a cluster, with fake programs for Docker and the engines."""

import json
from pathlib import Path
from typing import Any

import pytest
from tunemill_dev.context_images import Engine, LocalEngine, needed_images, node_architectures, recognise
from tunemill_dev.kubectl import CommandError
from tunemill_dev.places import images_for

NAMES = ["tunemill-operator", "tunemill-trainer", "tunemill-hub", "versitygw"]
ID = "0123456789ab" + "c" * 52
DIGEST = "sha256:" + "d" * 64
REFERENCES = [f"{name}:{ID[:12]}" for name in NAMES]


def node(
    name: str, provider: str = "", architecture: str = "amd64", labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a node as the API server shows it."""
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"providerID": provider} if provider else {},
        "status": {"nodeInfo": {"architecture": architecture}},
    }


KIND = node("dev-control-plane", "kind://docker/dev/dev-control-plane", "arm64")
K3D = node("k3d-my-team-server-0", "k3s://k3d-my-team-server-0")
MINIKUBE = node("laptop", architecture="arm64", labels={"minikube.k8s.io/name": "laptop"})
DOCKER_DESKTOP = node("docker-desktop", architecture="arm64")
DOCKER_DESKTOP_KIND = node("desktop-control-plane", "kind://docker/desktop/desktop-control-plane")
CLOUD = node("gke-pool-1", "gce://project/zone/gke-pool-1")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fake programs on the PATH that record their calls."""
    folder, log = tmp_path / "bin", tmp_path / "calls.jsonl"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("REGISTRY", raising=False)
    monkeypatch.delenv("TAG", raising=False)
    return Calls(folder, log)


class Calls:
    """The fake programs and their recorded calls."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log

    def add(self, program: str, body: str = "") -> None:
        """Put a program on the PATH: a shell script that records its arguments and its input, and then does `body`."""
        path = self.folder / program
        record = f"{{ printf '%s\\037' {program} \"$@\"; /bin/cat; printf '\\036'; }} >> '{self.log}'"
        path.write_text(f"#!/bin/sh\n{record}\n{body}\n")
        path.chmod(0o755)

    def docker(self, *, daemon: bool = True, buildx: bool = True) -> None:
        """Add Docker."""
        failures = {
            "version": "" if daemon else "Cannot connect to the Docker daemon",
            "buildx version": "" if buildx else "docker: 'buildx' is not a docker command.",
        }
        failing = [f'"{call}") echo "{why}" >&2; exit 1;;' for call, why in failures.items() if why]
        cases = "\n".join([*failing, f'"image inspect"*) echo sha256:{ID};;'])
        metadata = json.dumps({"containerimage.digest": DIGEST})
        self.add(
            "docker",
            f'case "$*" in\n{cases}\nesac\n'
            f'while [ $# -gt 0 ]; do [ "$1" = --metadata-file ] && echo \'{metadata}\' > "$2"; shift; done; exit 0',
        )

    def kubectl(self, *nodes: dict[str, Any]) -> None:
        """Add kubectl for a cluster with these nodes."""
        self.add("kubectl", f"case \"$*\" in *'get nodes'*) echo '{json.dumps({'items': nodes})}';; esac")

    def of(self, program: str, *start: str) -> list[list[str]]:
        """Return the calls of a program that begin with these arguments; the last item of each is its input."""
        called = [call.split("\037") for call in self.log.read_text().split("\036")[:-1]]
        return [call[1:] for call in called if call[0] == program and tuple(call[1 : 1 + len(start)]) == start]


@pytest.mark.parametrize(
    ("context", "nodes", "expected"),
    [
        ("kind-dev", [KIND], LocalEngine(Engine.KIND, "dev")),
        ("renamed", [KIND], LocalEngine(Engine.KIND, "dev")),
        ("k3d-my-team", [K3D], LocalEngine(Engine.K3D, "my-team")),
        ("minikube", [MINIKUBE], LocalEngine(Engine.MINIKUBE, "laptop")),
        ("docker-desktop", [DOCKER_DESKTOP], LocalEngine(Engine.DOCKER_DESKTOP, "docker-desktop")),
        ("docker-desktop", [DOCKER_DESKTOP_KIND], LocalEngine(Engine.DOCKER_DESKTOP, "docker-desktop")),
        ("kind-like-name", [CLOUD], None),
    ],
)
def test_the_cluster_engine_is_detected_from_its_nodes(context, nodes, expected) -> None:
    """A context can have any name."""
    assert recognise(context, nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "architecture", "expected"),
    [
        ([KIND], "arm64", [("kind load docker-image --name dev", *REFERENCES)]),
        ([K3D], "amd64", [("k3d image import --cluster my-team", *REFERENCES)]),
        ([MINIKUBE], "arm64", [("minikube --profile laptop image load --daemon=true", each) for each in REFERENCES]),
        ([DOCKER_DESKTOP], "arm64", []),
    ],
    ids=["kind", "k3d", "minikube", "docker-desktop"],
)
def test_images_are_built_for_the_nodes_and_loaded(calls: Calls, nodes, architecture, expected) -> None:
    """One command builds four images for the nodes' architecture, tagged by content, and loads them."""
    calls.docker()
    calls.kubectl(*nodes)
    for engine in ("kind", "k3d", "minikube"):
        calls.add(engine)
    references = images_for("any")
    assert references == dict(zip(NAMES, REFERENCES, strict=True))
    builds = calls.of("docker", "buildx", "build")
    assert [build[build.index("--tag") + 1] for build in builds] == [f"{name}:build" for name in NAMES]
    for build in builds:
        assert build[build.index("--platform") + 1] == f"linux/{architecture}"
        assert "--load" in build
    given = [Path(build[build.index("--file") + 1]) for build in builds if "--file" in build]
    assert len(given) == 3
    assert all(file.is_file() for file in given)
    assert builds[3][-1].startswith("FROM versity/versitygw:v")
    tags = [call[2:4] for call in calls.of("docker", "image", "tag")]
    assert tags == [[f"{name}:build", reference] for name, reference in references.items()]
    loads = [[program, *call[:-1]] for program in ("kind", "k3d", "minikube") for call in calls.of(program)]
    assert loads == [[part for words in command for part in words.split()] for command in expected]


def test_images_for_all_architectures_of_the_nodes_are_pushed_to_a_registry(calls: Calls, monkeypatch) -> None:
    """They are named by digest, so that the nodes pull what was pushed."""
    calls.docker()
    calls.kubectl(CLOUD, node("arm", "gce://project/zone/arm", "arm64"))
    monkeypatch.setenv("REGISTRY", "registry.example.com/team/")
    assert images_for("cloud") == {name: f"registry.example.com/team/{name}@{DIGEST}" for name in NAMES}
    for build in calls.of("docker", "buildx", "build"):
        assert build[build.index("--platform") + 1] == "linux/amd64,linux/arm64"
        assert "--push" in build
    assert not calls.of("docker", "image", "tag")


def test_an_existing_tag_is_not_built(calls: Calls, monkeypatch) -> None:
    """The images come from another build."""
    monkeypatch.setenv("TAG", "0.1.0")
    assert images_for("any") == {name: f"{name}:0.1.0" for name in NAMES}
    monkeypatch.setenv("REGISTRY", "ghcr.io/tunemill")
    assert images_for("any")["versitygw"] == "ghcr.io/tunemill/versitygw:0.1.0"
    assert not calls.log.exists()


def test_a_remote_cluster_requires_a_registry(calls: Calls) -> None:
    """Nothing is built, and the message has the command to run."""
    calls.docker()
    calls.kubectl(CLOUD)
    with pytest.raises(CommandError, match=r"make demo CONTEXT=cloud REGISTRY=registry\.example\.com/team"):
        images_for("cloud")
    assert not calls.of("docker")


def test_nodes_with_two_architectures_require_a_registry(calls: Calls) -> None:
    """Docker's image store has one architecture per image."""
    calls.kubectl(KIND, node("dev-worker", "kind://docker/dev/dev-worker", "amd64"))
    with pytest.raises(CommandError, match=r"different processors \(amd64, arm64\).*REGISTRY="):
        images_for("kind-dev")


@pytest.mark.parametrize(
    ("docker", "message"),
    [
        (None, "docker is required but not in PATH"),
        ({"daemon": False}, "Cannot connect to the Docker daemon"),
        ({"buildx": False}, "'buildx' is not a docker command"),
    ],
    ids=["missing", "stopped", "without buildx"],
)
def test_a_missing_docker_is_reported_with_a_remedy(calls: Calls, docker, message) -> None:
    """Before anything is built."""
    calls.kubectl(KIND)
    if docker is not None:
        calls.docker(**docker)
    with pytest.raises(CommandError, match=f"{message}(?s:.*)Install and start Docker with buildx"):
        images_for("kind-dev")


def test_a_missing_engine_is_reported_with_a_remedy(calls: Calls) -> None:
    """The cluster may be on another machine, or the program is not installed."""
    calls.docker()
    calls.kubectl(KIND)
    with pytest.raises(CommandError, match=r"kind cluster 'dev': kind is required but not in PATH(?s:.*)REGISTRY="):
        images_for("kind-dev")
    calls.add("kind", "echo 'ERROR: no nodes found for cluster \"dev\"' >&2; exit 1")
    with pytest.raises(CommandError, match=r"no nodes found for cluster(?s:.*)REGISTRY="):
        images_for("kind-dev")


def test_unsupported_architectures_and_empty_clusters_are_rejected() -> None:
    """The images support two architectures."""
    with pytest.raises(CommandError, match="amd64 and arm64; the cluster has nodes with s390x"):
        node_architectures([KIND, node("z", architecture="s390x")])
    with pytest.raises(CommandError, match="no node"):
        node_architectures([])


def test_the_object_store_has_the_version_of_the_local_cluster() -> None:
    """Both follow one go.mod, which Renovate keeps up to date."""
    (image,) = (image for image in needed_images() if image.name == "versitygw")
    assert image.base.partition(":")[2].startswith("v1.")
