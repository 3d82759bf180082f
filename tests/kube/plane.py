"""A real API server with our CRDs, the fake kubelet, and a namespace from the view of its user."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kube.api import APPLY_PATCH, Api, ApiError
from kube.kubelet import Kubelet, eventually
from property.builders import a_spec
from tunemill_api.constants import API_VERSION, GROUP, KIND, LABEL_FINETUNE, PLURAL, PROFILE_KIND, PROFILE_PLURAL
from tunemill_dev.cluster import control_plane

CRDS = Path(__file__).parents[2] / "crds"
CRD = CRDS / f"{GROUP}_{PLURAL}.yaml"
PROFILES = f"/apis/{API_VERSION}/{PROFILE_PLURAL}"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
Json = dict[str, Any]


@dataclass
class Plane:
    """The control plane."""

    kubeconfig: Path
    kubectl: Path
    api: Api = field(init=False)
    kubelet: Kubelet = field(init=False)

    def __post_init__(self) -> None:
        self.api = Api(self.kubeconfig)
        self.kubelet = Kubelet(self.api)

    def install_crd(self, plural: str = PLURAL) -> None:
        """Install the CRD of a kind and wait until it is served."""
        self.api.post(CRD_PATH, yaml.safe_load((CRDS / f"{GROUP}_{plural}.yaml").read_text()))
        eventually(lambda: self.api.find(f"/apis/{API_VERSION}/{plural}"), f"the CRD of {plural} is served")

    def profile(self, name: str, **spec: Any) -> Json:
        """Create a FineTuneProfile, or replace the spec of an existing one."""
        body = {"apiVersion": API_VERSION, "kind": PROFILE_KIND, "metadata": {"name": name}, "spec": spec}
        query = "?fieldManager=platform&force=true&fieldValidation=Strict"
        return self.api.request("PATCH", f"{PROFILES}/{name}{query}", body, APPLY_PATCH)

    def ready(self) -> bool:
        """Return whether the API server serves our kind."""
        try:
            return self.api.find(f"/apis/{API_VERSION}/{PLURAL}?limit=1") is not None
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def process(self, program: str) -> tuple[int, list[str]]:
        """Return the process id and the arguments of one of the control plane's programs."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    arguments = (process / "cmdline").read_bytes().decode().split("\0")
                except OSError:
                    continue
                mine = any(str(self.kubeconfig.parent) in argument for argument in arguments)
                if mine and Path(arguments[0]).name == program:
                    return int(process.name), arguments
        raise AssertionError(f"{program} was not found")

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> "Namespace":
        """Create a namespace."""
        self.api.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        eventually(lambda: self.api.find(account), f"namespace {name} has its service account")
        return Namespace(self, name)


@contextmanager
def a_plane(folder: Path) -> Iterator[Plane]:
    """Run a control plane with the CRDs and the fake kubelet, with its files in an empty folder."""
    with control_plane(folder) as running:
        plane = Plane(running.kubeconfig, running.kubectl)
        plane.install_crd(PROFILE_PLURAL)
        plane.install_crd()
        plane.kubelet.start()
        yield plane
        plane.kubelet.stop()


@dataclass(frozen=True)
class Namespace:
    """One namespace."""

    plane: Plane
    name: str

    def path(self, kind: str, name: str = "") -> str:
        """Return the path of a core or batch object, or of a FunctionCallFineTune."""
        roots = {"jobs": "/apis/batch/v1", PLURAL: f"/apis/{API_VERSION}"}
        return f"{roots.get(kind, '/api/v1')}/namespaces/{self.name}/{kind}{f'/{name}' if name else ''}"

    def apply(self, name: str, **parts: Any) -> Json:
        """Create a FunctionCallFineTune with the smallest spec and these parts."""
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": a_spec(**parts)}
        return self.plane.api.post(self.path(PLURAL), body)

    def edit(self, name: str, **parts: Any) -> Json:
        """Merge these parts into the spec."""
        return self.plane.api.patch(self.path(PLURAL, name), {"spec": parts})

    def annotate(self, name: str, annotation: str, value: str) -> Json:
        """Set an annotation."""
        return self.plane.api.patch(self.path(PLURAL, name), {"metadata": {"annotations": {annotation: value}}})

    def delete(self, name: str) -> None:
        """Delete a FunctionCallFineTune."""
        self.plane.api.delete(self.path(PLURAL, name))

    def get(self, name: str) -> Json:
        """Return a FunctionCallFineTune."""
        return self.plane.api.get(self.path(PLURAL, name))

    def status(self, name: str) -> Json:
        """Return its status."""
        status: Json = self.get(name).get("status", {})
        return status

    def complain(self, pod: Json, reason: str, message: str) -> None:
        """Record a Warning event about a pod, as the kubelet does."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        metadata = pod["metadata"]
        self.make(
            "events",
            f"{metadata['name']}.{reason.lower()}",
            type="Warning",
            reason=reason,
            message=message,
            involvedObject={"kind": "Pod", "name": metadata["name"], "uid": metadata["uid"], "namespace": self.name},
            firstTimestamp=now,
            lastTimestamp=now,
        )

    def condition(self, name: str, kind: str) -> Json:
        """Return one of its conditions."""
        found = [item for item in self.status(name).get("conditions", []) if item["type"] == kind]
        return found[0] if found else {}

    def wait_for(self, name: str, phase: str, seconds: float = 180.0) -> Json:
        """Wait for this phase at the current generation; return the status."""

        def reached() -> Json | None:
            body = self.get(name)
            status: Json = body.get("status", {})
            fresh = status.get("observedGeneration") == body["metadata"]["generation"]
            return status if fresh and status.get("phase") == phase else None

        try:
            found: Json = eventually(reached, f"{name} is {phase}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{yaml.safe_dump(self.status(name))}") from None
        return found

    def jobs(self, name: str) -> list[Json]:
        """Return its Jobs."""
        return self._labelled("jobs", name)

    def live_jobs(self, name: str) -> list[Json]:
        """Return its Jobs that may still start a pod: neither finished nor being deleted."""
        ends = {"Complete", "Failed"}

        def stopped(job: Json) -> bool:
            conditions = {item["type"] for item in job.get("status", {}).get("conditions", [])}
            return bool(conditions & ends or "deletionTimestamp" in job["metadata"])

        return [job for job in self.jobs(name) if not stopped(job)]

    def pods(self, name: str) -> list[Json]:
        """Return its pods."""
        return self._labelled("pods", name)

    def events(self, name: str) -> list[str]:
        """Return the reasons of its events."""
        events = self.plane.api.get(f"{self.path('events')}?fieldSelector=involvedObject.name={name}")
        return [event["reason"] for event in events["items"]]

    def make(self, kind: str, name: str, **body: Any) -> Json:
        """Create a core object."""
        return self.plane.api.post(self.path(kind), {"metadata": {"name": name}, **body})

    def refusal_of(self, name: str, **parts: Any) -> str:
        """Return the API server's error for a FunctionCallFineTune."""
        try:
            self.apply(name, **parts)
        except ApiError as error:
            return error.message
        raise AssertionError(f"{name} was accepted")

    def _labelled(self, kind: str, name: str) -> list[Json]:
        items: list[Json] = self.plane.api.get(f"{self.path(kind)}?labelSelector={LABEL_FINETUNE}={name}")["items"]
        return items
