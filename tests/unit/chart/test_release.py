"""The chart in a real API server: installed, upgraded, uninstalled."""

import base64
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.rendering import CHART, NAMESPACE, RELEASE, helm, render
from tunemill_api.constants import API_VERSION, GROUP, KIND, LABEL_LEADER, PLURAL, SHORT_NAME
from tunemill_dev.cluster import control_plane

CRD = f"{PLURAL}.{GROUP}"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
FINE_TUNE: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "support-tools", "namespace": "team-a"},
    "spec": {
        "baseModel": {"id": "google/gemma-2-2b-it"},
        "dataset": {"uri": "s3://team-a-data/support/calls.jsonl"},
        "publish": {"repository": "acme/support-tools"},
    },
}


@dataclass(frozen=True)
class Cluster:
    """A control plane with the namespaces of a platform team and of two tenants."""

    kubeconfig: Path
    program: Path

    def kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever its outcome."""
        command = [str(self.program), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an object that must be there."""
        done = self.kubectl("get", *arguments, "--output=json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def has(self, *arguments: str) -> bool:
        """Tell whether an object is there."""
        done = self.kubectl("get", *arguments)
        assert done.returncode == 0 or "not found" in done.stderr.lower(), done.stderr
        return done.returncode == 0

    def wait(self, *arguments: str) -> None:
        """Wait for a condition, as `kubectl wait` does, up to a minute."""
        done = self.kubectl("wait", *arguments, "--timeout=60s")
        assert done.returncode == 0, done.stderr

    def may(self, user: str, *what: str) -> bool:
        """Ask the API server whether a user may do something."""
        return self.kubectl("auth", "can-i", *what, f"--as={user}").stdout.strip() == "yes"

    def helm(self, *arguments: str, **values: Any) -> str:
        """Run Helm, which must succeed; returns what it prints."""
        done = helm(*arguments, "--kubeconfig", str(self.kubeconfig), "--namespace", NAMESPACE, values=values or None)
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr.lower()
        return done.stdout

    def install(self, **values: Any) -> str:
        """Install the chart with these values over the defaults."""
        return self.helm("install", RELEASE, str(CHART), **values)

    def upgrade(self, **values: Any) -> str:
        """Upgrade the release to these values over the defaults."""
        return self.helm("upgrade", RELEASE, str(CHART), **values)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One control plane for the module; pods that are not `restricted` are refused in the operator's namespace."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        cluster = Cluster(found.kubeconfig, found.kubectl)
        for namespace in (NAMESPACE, "team-a", "team-b"):
            assert cluster.kubectl("create", "namespace", namespace).returncode == 0
        cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The control plane; neither a release nor the CRD is left behind."""
    yield running
    running.helm("uninstall", RELEASE, "--ignore-not-found", "--wait")
    running.kubectl("delete", "crd", CRD, "--ignore-not-found")


def test_an_installed_operator_gets_its_pods_under_restricted_pod_security(cluster: Cluster) -> None:
    """The API server accepts every object, and the namespace's enforcement lets both replicas in."""
    cluster.install(networkPolicy={"enabled": True}, metrics={"enabled": True})
    cluster.wait("deployment", RELEASE, "-n", NAMESPACE, "--for=jsonpath={.status.replicas}=2")
    cluster.wait("crd", CRD, "--for=condition=Established")
    pods = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    assert len(pods) == 2


def test_the_notes_lead_to_a_manifest_that_the_api_server_accepts(cluster: Cluster) -> None:
    """What the installer is told to apply works as it is printed."""
    notes = cluster.install(watchNamespaces=["team-a"])
    _, _, rest = notes.partition("<<MANIFEST\n")
    manifest, _, _ = rest.partition("MANIFEST")
    cluster.wait("crd", CRD, "--for=condition=Established")
    applied = cluster.kubectl("apply", "--filename=-", stdin=manifest)
    assert applied.returncode == 0, applied.stderr
    assert cluster.has(SHORT_NAME, "support-tools", "-n", "team-a")


def test_an_upgrade_keeps_the_certificate_and_replaces_what_changed(cluster: Cluster) -> None:
    """A new certificate at each upgrade would cut off the stages that run."""
    cluster.install()
    before = cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"]
    cluster.upgrade(replicas=3)
    assert cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"] == before
    assert cluster.get("deployment", RELEASE, "-n", NAMESPACE)["spec"]["replicas"] == 3


def test_a_deleted_certificate_is_made_anew_by_an_upgrade(cluster: Cluster) -> None:
    """That is how it is renewed."""
    cluster.install()
    before = cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"]
    cluster.kubectl("delete", "secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)
    cluster.upgrade()
    after = cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"]
    assert after.keys() == before.keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert after["tls.key"] != before["tls.key"]


def test_the_certificate_convinces_a_client_that_knows_the_ca(cluster: Cluster, tmp_path: Path) -> None:
    """The strictest check that Python has accepts it for the Service's name, and for no other."""
    cluster.install()
    for name, value in cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(value))
    assert handshake(tmp_path, f"{RELEASE}-progress.{NAMESPACE}.svc") == ""
    assert "Hostname mismatch" in handshake(tmp_path, "elsewhere.svc")


def test_the_crd_and_its_objects_outlive_the_release(cluster: Cluster) -> None:
    """Uninstalling stops the operator; it deletes nobody's work. The same release can be installed again."""
    cluster.install()
    cluster.wait("crd", CRD, "--for=condition=Established")
    cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(FINE_TUNE))
    cluster.helm("uninstall", RELEASE, "--wait")
    assert cluster.has(SHORT_NAME, "support-tools", "-n", "team-a")
    assert not cluster.has("clusterrole", f"{NAMESPACE}-{RELEASE}")
    cluster.install()
    assert cluster.has(SHORT_NAME, "support-tools", "-n", "team-a")


def test_an_upgrade_brings_the_new_crd(cluster: Cluster) -> None:
    """What Helm's own folder for CRDs never does."""
    cluster.install()
    smaller = [{"op": "remove", "path": "/spec/names/shortNames"}]
    cluster.kubectl("patch", "crd", CRD, "--type=json", f"--patch={json.dumps(smaller)}")
    cluster.upgrade()
    assert cluster.get("crd", CRD)["spec"]["names"]["shortNames"] == [SHORT_NAME]


def test_the_crd_goes_with_the_release_when_that_is_asked_for(cluster: Cluster) -> None:
    """crds.keep false, for clusters that are thrown away."""
    cluster.install(crds={"keep": False})
    cluster.helm("uninstall", RELEASE, "--wait")
    cluster.wait("crd", CRD, "--for=delete")
    assert not cluster.has("crd", CRD)


def test_the_operator_may_work_everywhere_and_read_secrets_nowhere(cluster: Cluster) -> None:
    """The API server's own answers, for the whole cluster."""
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


def test_a_namespaced_operator_may_work_in_its_namespaces_only(cluster: Cluster) -> None:
    """The API server's own answers, inside and outside of watchNamespaces."""
    cluster.install(watchNamespaces=["team-a"])
    assert cluster.may(OPERATOR, "create", "jobs.batch", "-n", "team-a")
    assert cluster.may(OPERATOR, "list", "pods", "-n", "team-a")
    assert cluster.may(OPERATOR, "create", "tokenreviews.authentication.k8s.io")
    assert not cluster.may(OPERATOR, "create", "jobs.batch", "-n", "team-b")
    assert not cluster.may(OPERATOR, "list", "pods", "-n", "team-b")
    assert not cluster.may(OPERATOR, "list", CRD, "--all-namespaces")


def test_an_editor_of_a_namespace_may_ask_for_a_fine_tune_there(cluster: Cluster) -> None:
    """Kubernetes' own roles learn the new kind; a viewer may look, and nobody may write a status."""
    cluster.install()
    for role, verb in (("view", "watch"), ("edit", "create")):
        cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", "team-a")
        # A controller copies the rules into Kubernetes' roles.
        learnt = f"--for=jsonpath={{.rules[?(@.apiGroups[0]=='{GROUP}')].verbs[?(@=='{verb}')]}}={verb}"
        cluster.wait("clusterrole", role, learnt)
    assert cluster.may("editer", "create", CRD, "-n", "team-a")
    assert cluster.may("viewer", "get", CRD, "-n", "team-a")
    assert not cluster.may("viewer", "create", CRD, "-n", "team-a")
    assert not cluster.may("editer", "patch", CRD, "--subresource=status", "-n", "team-a")
    assert not cluster.may("editer", "create", CRD, "-n", "team-b")


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["everywhere", "team-a"])
def test_the_operator_does_its_work_with_the_rights_that_the_chart_gives(
    cluster: Cluster, tmp_path: Path, values: dict[str, Any]
) -> None:
    """It takes the Lease, labels its pod, makes and deletes Jobs, reads and writes events, and is refused nothing."""
    cluster.install(**values)
    cluster.wait("deployment", RELEASE, "-n", NAMESPACE, "--for=jsonpath={.status.replicas}=2")
    (pod, *_) = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    with operator(cluster, tmp_path, pod["metadata"]["name"], **values) as log:
        # Only an event of the Job says that its pods are missing their service account.
        nobody = FINE_TUNE["spec"] | {"compute": {"serviceAccountName": "nobody"}}
        cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(FINE_TUNE | {"spec": nobody}))
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


@contextmanager
def operator(cluster: Cluster, folder: Path, pod: str, **values: Any) -> Iterator[Path]:
    """Run the operator as that pod would: its account's token, its flags; yields its log, and stops it."""
    kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", RELEASE, "-n", NAMESPACE).stdout.strip()
    kubeconfig["users"][0]["user"] = {"token": token}
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    for name, value in cluster.get("secret", f"{RELEASE}-progress-tls", "-n", NAMESPACE)["data"].items():
        (folder / name).write_bytes(base64.b64decode(value))
    flags = render(**values).flags | {"--http-port": "0", "--progress-port": "0"}
    flags["--kubeconfig"] = str(folder / "kubeconfig")
    flags |= {flag: str(folder / Path(path).name) for flag, path in flags.items() if path.startswith("/etc/tunemill/")}
    command = [sys.executable, "-m", "tunemill_operator", "run", *(f"{flag}={value}" for flag, value in flags.items())]
    log = folder / "operator.log"
    identity = {"POD_NAME": pod, "POD_NAMESPACE": NAMESPACE}
    with log.open("w") as output, subprocess.Popen(command, env=os.environ | identity, stderr=output) as process:
        try:
            yield log
        finally:
            process.terminate()
            process.wait(timeout=30)


def handshake(folder: Path, host: str) -> str:
    """Let a client that trusts ca.crt greet a server with tls.crt; returns why it would not, or ""."""
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    greeting = client.wrap_bio(to_client, to_server, server_hostname=host)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (greeting, answering, greeting, answering):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as problem:
            return problem.verify_message
    assert answering.version() == "TLSv1.3"
    return ""
