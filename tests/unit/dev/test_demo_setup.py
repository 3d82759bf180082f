"""Setup of the demo: without Helm, and with programs compiled while the Python environment is installed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from tunemill_dev.cluster import binaries, lifecycle
from tunemill_dev.kubectl import Kubectl
from tunemill_dev.testbed import INSTALL, REPOSITORY_ROOT, Hub, ObjectStore, Testbed, with_images

HUB = "http://hub.tunemill-dev:8080"


def documents(manifest: str) -> dict[str, str]:
    """Return the documents of a manifest: the Deployment by its kind, the others by their place."""
    texts = manifest.split("\n---\n")
    return {"Deployment" if "\nkind: Deployment\n" in text else str(at): text for at, text in enumerate(texts)}


def a_testbed(kubectl: Path) -> Testbed:
    """Return a testbed in which Helm is not available."""

    def no_helm() -> str:
        raise AssertionError("the demo needs Helm")

    return Testbed(
        kubectl=Kubectl(str(kubectl), ()),
        helm_program=no_helm,
        helm_options=(),
        store=ObjectStore("http://s3", "http://s3", "key", "secret"),
        hub=Hub("http://127.0.0.1:8080", HUB, "acme", "hf_write"),
        operator_image="localhost/tunemill-operator:1",
        trainer_image="localhost/tunemill-trainer:2",
    )


def test_the_manifest_is_applied_with_the_built_images(tmp_path: Path) -> None:
    """One `kubectl apply`, also over an earlier installation; then the demo waits for the operator."""
    kubectl, log = tmp_path / "kubectl", tmp_path / "log"
    kubectl.write_text(f"#!/bin/sh\necho \"$@\" >> '{log}'\n[ $1 = apply ] && cat > '{tmp_path / 'applied'}'; exit 0\n")
    kubectl.chmod(0o755)
    a_testbed(kubectl).install_manifest()
    applied, waited = log.read_text().splitlines()
    assert applied == "apply --server-side --force-conflicts --filename -"
    assert waited.startswith("rollout status deployment/tunemill --namespace tunemill-system")
    deployment = yaml.safe_load(documents((tmp_path / "applied").read_text())["Deployment"])
    assert deployment["spec"]["replicas"] == 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "localhost/tunemill-operator:1"
    flags = dict(flag.split("=", 1) for flag in container["args"] if "=" in flag)
    assert (flags["--trainer-image"], flags["--hub-endpoints"]) == ("localhost/tunemill-trainer:2", HUB)


def test_only_images_hub_and_replicas_differ_from_the_manifest() -> None:
    """The demo uses the manifest that users install."""
    before, after = documents(INSTALL.read_text()), documents(with_images(INSTALL.read_text(), "op:1", "tr:1", HUB))
    assert len(before) > 10
    assert list(before) == list(after)
    assert [kind for kind in before if before[kind].strip() != after[kind].strip()] == ["Deployment"]
    deployments = [yaml.safe_load(texts["Deployment"]) for texts in (before, after)]
    containers = [item["spec"]["template"]["spec"]["containers"][0] for item in deployments]
    known = {name for name, _ in (flag.split("=", 1) for flag in containers[1]["args"][1:])}
    assert known - {flag.partition("=")[0] for flag in containers[0]["args"]} == {"--hub-endpoints"}
    for container, deployment in zip(containers, deployments, strict=True):
        del container["image"], container["args"], deployment["spec"]["replicas"]
    assert deployments[0] == deployments[1]


def test_the_cluster_and_the_demo_do_not_build_helm() -> None:
    """Compiling it takes minutes. The tests and `make lint` build it."""
    assert binaries.HELM not in binaries.ALL
    assert binaries.HELM in binaries.TESTED


def test_programs_are_built_without_the_python_environment() -> None:
    """`make demo` compiles while the environment is installed, so only the standard library is used."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY_ROOT / 'dev')!r}); import tunemill_dev.cluster.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_the_base_image_is_built_while_programs_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each blocks until the other has started."""
    both = threading.Barrier(2, timeout=20)
    built = {"kubernetes": Path("/k")}

    def build(_: object) -> dict[str, Path]:
        both.wait()
        return built

    monkeypatch.setattr(lifecycle, "base_archive", both.wait)
    monkeypatch.setattr(binaries, "ensure", build)
    assert lifecycle.ensure_programs() == built


def test_a_failed_base_image_build_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of the thread is raised."""

    def fail() -> None:
        raise lifecycle.ClusterError("mmdebstrap failed")

    monkeypatch.setattr(lifecycle, "base_archive", fail)
    monkeypatch.setattr(binaries, "ensure", lambda _: {})
    with pytest.raises(lifecycle.ClusterError, match="mmdebstrap failed"):
        lifecycle.ensure_programs()
