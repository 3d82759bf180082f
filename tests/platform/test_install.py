"""The chart's objects with a real API server, for several sets of values, and the installation without Helm."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.releases import CRD, FINE_TUNE, TEAMS, Cluster, an_operator
from chart.rendering import CHART, NAMESPACE, RELEASE, REPOSITORY
from tunemill_api.constants import SHORT_NAME
from tunemill_dev.chart.helm import rendered
from tunemill_dev.chart.manifests import GOLDEN, INSTALL
from tunemill_dev.cluster import binaries
from tunemill_dev.testbed import with_images

MANIFEST = (REPOSITORY / INSTALL).read_text().replace("ghcr.io/tunemill", "registry.acme.com/ml")
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SETS = sorted((REPOSITORY / GOLDEN).glob("*.values.yaml"))


@pytest.fixture(scope="module")
def monitored(bare_cluster: Cluster) -> Cluster:
    """The cluster with the CRDs of the Prometheus Operator."""
    folder = binaries.source_of(binaries.PROMTOOL, PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    for plural in ("servicemonitors", "prometheusrules"):
        bare_cluster.install_crd((folder / f"monitoring.coreos.com_{plural}.yaml").read_text())
    return bare_cluster


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.name.partition(".")[0])
def test_the_api_server_accepts_every_object_of_the_chart(monitored: Cluster, values: Path) -> None:
    """Valid for the schemas of the cluster."""
    given = yaml.safe_load(values.read_text())
    if runtime_class := given.get("gpuCheck", {}).get("runtimeClassName"):
        # The API server refuses a pod of a class that does not exist.
        known = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "runc"}
        apply(monitored, yaml.safe_dump({**known, "metadata": {"name": runtime_class}}))
    text = rendered(given)
    done = monitored.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("created (server dry run)") == len([item for item in yaml.safe_load_all(text) if item])


@pytest.fixture
def cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; objects of a manifest are removed afterwards."""
    yield bare_cluster
    bare_cluster.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=without_namespace(MANIFEST))
    for team in TEAMS:
        bare_cluster.kubectl("delete", "role,rolebinding", "--all", "-n", team)


def without_namespace(text: str) -> str:
    """Return a manifest without the namespace, which other tests use."""
    return yaml.safe_dump_all(item for item in yaml.safe_load_all(text) if item and item["kind"] != "Namespace")


def apply(cluster: Cluster, text: str) -> str:
    """Apply a manifest as the page says; return the output of kubectl."""
    done = cluster.kubectl("apply", "--server-side", "--filename=-", stdin=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("namespaces", [(), TEAMS], ids=["everywhere", "two namespaces"])
def test_the_manifest_installs_a_working_operator(
    cluster: Cluster, tmp_path: Path, namespaces: tuple[str, ...]
) -> None:
    """Its pods are admitted, no request is forbidden, and it serves a fine-tune as far as possible without nodes."""
    values = {"image": {"repository": "registry.acme.com/ml/op"}, "watchNamespaces": list(namespaces)}
    apply(cluster, rendered(values) if namespaces else MANIFEST)
    cluster.wait_for_crd(CRD)
    cluster.wait("deployment", RELEASE, "-n", NAMESPACE, "--for=jsonpath={.status.replicas}=2")
    deployment = cluster.get("deployment", RELEASE, "-n", NAMESPACE)
    (pod, *_) = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    with an_operator(cluster, tmp_path / "operator", deployment, pod["metadata"]["name"]) as log:
        cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(FINE_TUNE))
        cluster.wait("job", "--all", "-n", "team-a", "--for=create")
        cluster.wait("pod", "--all", "-n", "team-a", "--for=create")
        reported = cluster.get("pods", "-n", "team-a")["items"][0]["metadata"]["annotations"]
        assert "BEGIN CERTIFICATE" in reported["tunemill.dev/progress-ca"]
        cluster.kubectl("delete", SHORT_NAME, "--all", "-n", "team-a")
    assert "forbidden" not in log.read_text()
    assert '"level": "error"' not in log.read_text()


def test_applying_the_manifest_again_changes_nothing_and_keeps_the_certificate(
    cluster: Cluster, tmp_path: Path
) -> None:
    """GitOps tools apply it every few minutes."""
    apply(cluster, MANIFEST)
    secret = ("secret", f"{RELEASE}-progress", "-n", NAMESPACE)
    with an_operator(cluster, tmp_path / "operator", cluster.get("deployment", RELEASE, "-n", NAMESPACE), "none"):
        cluster.wait(*secret, "--for=jsonpath={.data.tls\\.key}")
    before = {str(ref): version for ref, version in versions(cluster)}
    made = cluster.get(*secret)["data"]
    apply(cluster, MANIFEST)
    assert {str(ref): version for ref, version in versions(cluster)} == before
    assert cluster.get(*secret)["data"] == made


def versions(cluster: Cluster) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every object of the manifest with its generation, or its resource version where it has none."""
    for item in yaml.safe_load_all(MANIFEST):
        metadata = item["metadata"]
        where = ("-n", metadata["namespace"]) if "namespace" in metadata else ()
        found = cluster.get(item["kind"], metadata["name"], *where)["metadata"]
        yield (item["kind"], metadata["name"], *where), found.get("generation") or found["resourceVersion"]


def test_the_demo_and_the_end_to_end_tests_can_share_a_cluster(cluster: Cluster) -> None:
    """The demo applies the manifest, the tests use Helm: each takes over the installation of the other, repeatedly."""
    adopting = ("--take-ownership", "--server-side=true", "--force-conflicts")
    for image in ("op:1", "op:2"):
        manifest = with_images(MANIFEST, image, "tr:1", "http://hub.demo")
        applied = cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=manifest)
        assert applied.returncode == 0, applied.stderr
        (container,) = pod_spec(cluster)["containers"]
        assert container["image"] == image
        assert container["args"].count("--hub-endpoints=http://hub.demo") == 1
        cluster.helm("upgrade", "--install", RELEASE, str(CHART), *adopting, image={"repository": f"helm-{image[:2]}"})
        (container,) = pod_spec(cluster)["containers"]
        assert container["image"].startswith("helm-op:")
        assert not [flag for flag in container["args"] if flag.startswith("--hub-endpoints")]
    cluster.helm("uninstall", RELEASE, "--wait")


def pod_spec(cluster: Cluster) -> dict[str, Any]:
    """Return the pod template's spec of the operator's Deployment."""
    spec: dict[str, Any] = cluster.get("deployment", RELEASE, "-n", NAMESPACE)["spec"]["template"]["spec"]
    return spec


def test_the_manifest_has_no_helm_metadata_and_no_certificate() -> None:
    """A later Helm release is rejected because the objects have another owner; no key is in Git."""
    assert not re.search(r"helm\.sh|managed-by: Helm|BEGIN CERTIFICATE", MANIFEST)
    (secret,) = (item for item in yaml.safe_load_all(MANIFEST) if item["kind"] == "Secret")
    assert "data" not in secret
