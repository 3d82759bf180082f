"""The chart with a real API server: installed, upgraded, uninstalled."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.releases import CRD, FINE_TUNE, Cluster, an_operator
from chart.rendering import CHART, NAMESPACE, RELEASE
from tunemill_api.constants import GROUP, LABEL_LEADER, PLURAL, SHORT_NAME

OPERATOR = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
SECRET = ("secret", f"{RELEASE}-progress", "-n", NAMESPACE)


@pytest.fixture
def cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the namespaces of a platform team and of two tenants; release and CRDs are removed afterwards."""
    yield bare_cluster
    bare_cluster.helm("uninstall", RELEASE, "--ignore-not-found", "--wait")
    bare_cluster.kubectl("delete", "crd", "--selector=app.kubernetes.io/name=tunemill", "--ignore-not-found")


def test_an_installed_operator_gets_its_pods_under_restricted_pod_security(cluster: Cluster) -> None:
    """The API server accepts every object, and the enforced standard admits both replicas."""
    cluster.install(networkPolicy={"enabled": True}, metrics={"enabled": True})
    cluster.wait("deployment", RELEASE, "-n", NAMESPACE, "--for=jsonpath={.status.replicas}=2")
    cluster.wait_for_crd(CRD)
    pods = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    assert len(pods) == 2


def test_the_manifest_in_the_notes_is_accepted_by_the_api_server(cluster: Cluster) -> None:
    """The printed manifests of the installation work."""
    notes = cluster.install(watchNamespaces=["team-a"])
    _, _, rest = notes.partition("<<MANIFEST\n")
    manifest, _, _ = rest.partition("MANIFEST")
    cluster.wait_for_crd(CRD)
    applied = cluster.kubectl("apply", "--filename=-", stdin=manifest)
    assert applied.returncode == 0, applied.stderr
    assert cluster.has(SHORT_NAME, "support-tools", "-n", "team-a")


def test_upgrades_keep_the_generated_certificate(cluster: Cluster, tmp_path: Path) -> None:
    """A new one would disconnect running stages. To renew it, the Secret is deleted and the release upgraded."""
    cluster.install()
    first = certificate(cluster, tmp_path / "first")
    cluster.upgrade(replicas=3)
    assert cluster.get("deployment", RELEASE, "-n", NAMESPACE)["spec"]["replicas"] == 3
    assert certificate(cluster, tmp_path / "second") == first
    cluster.kubectl("delete", *SECRET)
    cluster.upgrade()
    renewed = certificate(cluster, tmp_path / "third")
    assert renewed.keys() == first.keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert renewed["tls.key"] != first["tls.key"]


def certificate(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Let the operator of the release lead until it serves, and return the content of its Secret."""
    with an_operator(cluster, folder, cluster.get("deployment", RELEASE, "-n", NAMESPACE), "none") as log:
        cluster.wait(*SECRET, "--for=jsonpath={.data.tls\\.key}")
    assert "forbidden" not in log.read_text()
    data: dict[str, str] = cluster.get(*SECRET)["data"]
    return data


def test_crds_and_objects_survive_upgrade_uninstall_and_reinstall(cluster: Cluster, tmp_path: Path) -> None:
    """With a newer CRD in between; the object stays the same."""
    cluster.install()
    cluster.wait_for_crd(CRD)
    cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(FINE_TUNE))
    before = cluster.get(SHORT_NAME, "support-tools", "-n", "team-a")

    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    file = newer / "files" / "crds" / f"{GROUP}_{PLURAL}.yaml"
    crd = yaml.safe_load(file.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["properties"]["mood"] = {"type": "string", "default": "good"}
    file.write_text(json.dumps(crd))
    about = (newer / "Chart.yaml").read_text().replace("version: 0.1.0", "version: 0.2.0")
    (newer / "Chart.yaml").write_text(about)
    cluster.helm("upgrade", RELEASE, str(newer))
    cluster.wait(SHORT_NAME, "support-tools", "-n", "team-a", "--for=jsonpath={.spec.mood}=good")

    cluster.helm("uninstall", RELEASE, "--wait")
    assert not cluster.has("clusterrole", f"{NAMESPACE}-{RELEASE}")
    assert not cluster.has("deployment", RELEASE, "-n", NAMESPACE)
    assert cluster.has(SHORT_NAME, "support-tools", "-n", "team-a")

    cluster.install()
    after = cluster.get(SHORT_NAME, "support-tools", "-n", "team-a")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]


def test_the_crd_is_deleted_with_the_release_if_configured(cluster: Cluster) -> None:
    """With crds.keep false, for disposable clusters."""
    cluster.install(crds={"keep": False})
    cluster.helm("uninstall", RELEASE, "--wait")
    cluster.wait("crd", CRD, "--for=delete")
    assert not cluster.has("crd", CRD)


def test_the_operator_has_access_to_all_namespaces_but_to_no_secrets(cluster: Cluster) -> None:
    """By access reviews of the API server, for the whole cluster."""
    cluster.install()
    assert cluster.may(OPERATOR, "create", "jobs.batch", "-n", "team-b")
    assert cluster.may(OPERATOR, "patch", f"{CRD}", "--subresource=status", "-n", "team-b")
    assert cluster.may(OPERATOR, "create", "tokenreviews.authentication.k8s.io")
    assert cluster.may(OPERATOR, "update", f"leases.coordination.k8s.io/{RELEASE}", "-n", NAMESPACE)
    for forbidden in (
        ("get", "secrets", "-n", "team-b"),
        ("list", "secrets", "-n", NAMESPACE),
        ("create", "pods", "-n", "team-b"),
        ("patch", "pods", "-n", "team-b"),
        ("create", "pods", "--subresource=exec", "-n", "team-b"),
        ("get", "pods", "--subresource=log", "-n", "team-b"),
        ("patch", CRD, "-n", "team-b"),
        ("update", "leases.coordination.k8s.io/another", "-n", NAMESPACE),
    ):
        assert not cluster.may(OPERATOR, *forbidden), forbidden


def test_a_namespaced_operator_has_access_to_its_namespaces_only(cluster: Cluster) -> None:
    """By access reviews of the API server, inside and outside of watchNamespaces."""
    cluster.install(watchNamespaces=["team-a"])
    assert cluster.may(OPERATOR, "create", "jobs.batch", "-n", "team-a")
    assert cluster.may(OPERATOR, "list", "pods", "-n", "team-a")
    assert cluster.may(OPERATOR, "create", "tokenreviews.authentication.k8s.io")
    assert not cluster.may(OPERATOR, "create", "jobs.batch", "-n", "team-b")
    assert not cluster.may(OPERATOR, "list", "pods", "-n", "team-b")
    assert not cluster.may(OPERATOR, "list", CRD, "--all-namespaces")


def test_an_editor_of_a_namespace_can_create_fine_tunes(cluster: Cluster) -> None:
    """The roles are aggregated; a viewer can read, and no user can write a status."""
    cluster.install()
    for role, verb in (("view", "watch"), ("edit", "create")):
        cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", "team-a")
        # A controller copies the rules into Kubernetes' roles.
        learnt = f"--for=jsonpath={{.rules[?(@.resources[0]=='{PLURAL}')].verbs[?(@=='{verb}')]}}={verb}"
        cluster.wait("clusterrole", role, learnt)
    assert cluster.may("editer", "create", CRD, "-n", "team-a")
    assert cluster.may("viewer", "get", CRD, "-n", "team-a")
    assert not cluster.may("viewer", "create", CRD, "-n", "team-a")
    assert not cluster.may("editer", "patch", CRD, "--subresource=status", "-n", "team-a")
    assert not cluster.may("editer", "create", CRD, "-n", "team-b")


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["everywhere", "team-a"])
def test_the_operator_works_with_the_permissions_of_the_chart(
    cluster: Cluster, tmp_path: Path, values: dict[str, Any]
) -> None:
    """It acquires the Lease, labels its pod, and writes Jobs and events; no request is forbidden."""
    cluster.install(**values)
    cluster.wait("deployment", RELEASE, "-n", NAMESPACE, "--for=jsonpath={.status.replicas}=2")
    (pod, *_) = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    deployment = cluster.get("deployment", RELEASE, "-n", NAMESPACE)
    with an_operator(cluster, tmp_path, deployment, pod["metadata"]["name"]) as log:
        # Only an event of the Job says that its pods are missing their service account.
        missing = FINE_TUNE["spec"] | {"podTemplates": {"prepare": {"serviceAccountName": "missing"}}}
        cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(FINE_TUNE | {"spec": missing}))
        cluster.wait("job", "--all", "-n", "team-a", "--for=create")
        reason = "--for=jsonpath={.status.failure.reason}=ServiceAccountNotFound"
        cluster.wait(CRD, "support-tools", "-n", "team-a", reason)
        cluster.wait("pod", "-n", NAMESPACE, f"--selector={LABEL_LEADER}=true", "--for=create")
        suspend = {"spec": {"suspend": True}}
        cluster.kubectl("patch", CRD, "support-tools", "-n", "team-a", "--type=merge", f"--patch={json.dumps(suspend)}")
        cluster.wait(CRD, "support-tools", "-n", "team-a", "--for=jsonpath={.status.phase}=Suspended")
        cluster.wait("job", "--all", "-n", "team-a", "--for=delete")
        about = "involvedObject.name=support-tools"
        cluster.wait("event", "-n", "team-a", f"--field-selector={about}", "--for=create")
    assert "forbidden" not in log.read_text().lower()
