"""A run for an end-to-end test in a separate namespace, small enough for two cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill_api.constants import API_VERSION, KIND, PLURAL
from tunemill_dev.kubectl import Object
from tunemill_dev.testbed import HUB_SECRET, RELEASE, S3_SECRET, SYSTEM_NAMESPACE, FineTune, Testbed
from tunemill_dev.tiny import rows

ROWS, STEPS = 40, 4


@dataclass(frozen=True)
class World:
    """A test's namespace, bucket and repository, which all have the same name."""

    testbed: Testbed
    base: str
    name: str

    @property
    def repository(self) -> str:
        """The repository that the run publishes to by default."""
        return f"{self.testbed.hub.owner}/{self.name}"

    @property
    def data(self) -> str:
        """The URI of the rows."""
        return f"s3://{self.name}/calls.jsonl"

    def workspace(self) -> Object:
        """Return the workspace of a run whose rows are in another place."""
        server = {"endpoint": self.testbed.store.inside, "credentialsSecretRef": {"name": S3_SECRET}}
        return {"uri": f"s3://{self.name}/tunemill/", **server}

    def manifest(self, name: str = "support-tools", **parts: Any) -> Object:
        """Return a FunctionCallFineTune that ends within about a minute; keywords are parts of the spec, or fields."""
        spec: dict[str, Any] = {
            "hub": {"endpoint": self.testbed.hub.inside},
            "baseModel": {"id": self.base},
            "dataset": {
                "uri": self.data,
                "endpoint": self.testbed.store.inside,
                "credentialsSecretRef": {"name": S3_SECRET},
                "evaluation": {"fraction": "0.2"},
            },
            "training": {"maxSteps": STEPS, "batchSize": 4, "maxLength": 512},
            "evaluation": {"maxNewTokens": 8},
            "publish": {"repository": self.repository, "tokenSecretRef": {"name": HUB_SECRET}},
            # One thread, as in the demo: two of them wait for each other on a busy machine.
            "compute": {"gpus": 0},
            "podTemplates": {
                "prepare": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
                "train": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1"}}},
                "publish": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
            },
        }
        for part, fields in parts.items():
            spec[part] = spec.get(part, {}) | fields if isinstance(fields, dict) else fields
        metadata = {"name": name, "namespace": self.name}
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}

    def put_rows(self) -> None:
        """Upload valid rows."""
        self.testbed.store.put_rows(self.data, rows(ROWS))

    def checkpoints(self) -> set[str]:
        """Return the manifests of the complete checkpoints in the workspace."""
        keys = self.testbed.store.keys(self.name)
        return {key for key in keys if "/checkpoints/" in key and key.endswith("manifest.json")}

    def texts(self, repository: str) -> dict[str, bytes]:
        """Return everything readable that a run leaves: objects, logs, the workspace, the content pushed to the Hub."""
        kubectl, store = self.testbed.kubectl, self.testbed.store
        kinds = f"{PLURAL},jobs,pods,events,configmaps,serviceaccounts"
        found = {"objects": kubectl("get", kinds, "--namespace", self.name, "--output", "json")}
        found["the operator's log"] = kubectl("logs", "--namespace", SYSTEM_NAMESPACE, f"deployment/{RELEASE}")
        for pod in (pod["metadata"]["name"] for pod in kubectl.list("pods", self.name)):
            found[f"the log of {pod}"] = kubectl("logs", "--namespace", self.name, pod, "--all-containers")
        files = {name: text.encode() for name, text in found.items()}
        for key in store.keys(self.name):
            files[f"s3 {key}"] = store.client().get_object(Bucket=self.name, Key=key)["Body"].read()
        pushed = Path(self.testbed.hub.client().snapshot_download(repository))
        return files | {f"hub {path.name}": path.read_bytes() for path in pushed.rglob("*") if path.is_file()}

    def secrets(self) -> list[str]:
        """Return the values of the Secrets used by its runs."""
        return [self.testbed.store.access_key, self.testbed.store.secret_key, self.testbed.hub.write_token]

    def apply(self, name: str = "support-tools", **parts: Any) -> FineTune:
        """Apply the manifest."""
        return FineTune.apply(self.testbed.kubectl, self.manifest(name, **parts))
