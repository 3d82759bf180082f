"""The chart in a real API server, with the operator run as its pod would run it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chart.rendering import CHART, NAMESPACE, RELEASE, helm
from kube.kubelet import eventually
from tunemill_api.constants import API_VERSION, GROUP, KIND, PLURAL

CRD = f"{PLURAL}.{GROUP}"
TEAMS = ("team-a", "team-b")
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
        """Run kubectl, and return its result whatever its exit code."""
        command = [str(self.program), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an existing object."""
        done = self.kubectl("get", *arguments, "--output=json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def has(self, *arguments: str) -> bool:
        """Return whether an object exists."""
        done = self.kubectl("get", *arguments)
        assert done.returncode == 0 or "not found" in done.stderr.lower(), done.stderr
        return done.returncode == 0

    def wait(self, *arguments: str) -> None:
        """Wait for a condition, as `kubectl wait` does, up to a minute."""
        done = self.kubectl("wait", *arguments, "--timeout=60s")
        assert done.returncode == 0, done.stderr

    def install_crd(self, text: str) -> None:
        """Create a CRD, and wait until its kind is served."""
        created = self.kubectl("create", "--filename=-", "--output=name", stdin=text)
        assert created.returncode == 0, created.stderr
        self.wait_for_crd(created.stdout.strip().partition("/")[2])

    def wait_for_crd(self, name: str) -> None:
        """Wait until the kind of a CRD is served. At first its conditions are null, with which `kubectl wait` fails."""
        eventually(lambda: self.get("crd", name)["status"]["conditions"], f"{name} has conditions")
        self.wait("crd", name, "--for=condition=Established")

    def may(self, user: str, *what: str) -> bool:
        """Return whether a user has a permission, by asking the API server."""
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


@contextmanager
def an_operator(cluster: Cluster, folder: Path, deployment: dict[str, Any], pod: str) -> Iterator[Path]:
    """Run the operator with the token and flags of the Deployment's pod; yields its log, and stops it."""
    template = deployment["spec"]["template"]["spec"]
    folder.mkdir(exist_ok=True)
    kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", template["serviceAccountName"], "-n", NAMESPACE).stdout.strip()
    kubeconfig["users"][0]["user"] = {"token": token}
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    here = [f"--kubeconfig={folder / 'kubeconfig'}", "--http-port=0", "--progress-port=0"]  # the last of two wins
    command = [sys.executable, "-m", "tunemill_operator", *template["containers"][0]["args"], *here]
    log = folder / "operator.log"
    identity = {"POD_NAME": pod, "POD_NAMESPACE": NAMESPACE}
    with log.open("w") as output, subprocess.Popen(command, env=os.environ | identity, stderr=output) as process:
        try:
            yield log
        finally:
            process.terminate()
            process.wait(timeout=30)
