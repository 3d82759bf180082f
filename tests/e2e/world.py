"""What the end-to-end tests say: a run of their own in a namespace of its own, small enough for two cores."""

from dataclasses import dataclass
from typing import Any

from tunemill_api.constants import API_VERSION, KIND
from tunemill_dev.kubectl import Object
from tunemill_dev.testbed import HUB_SECRET, S3_SECRET, FineTune, Testbed
from tunemill_dev.tiny import rows

ROWS, STEPS = 40, 4


@dataclass(frozen=True)
class World:
    """One test's namespace, bucket and repository, which all have the same name."""

    testbed: Testbed
    base: str
    name: str

    @property
    def repository(self) -> str:
        """Where the run publishes to, unless the test says otherwise."""
        return f"{self.testbed.hub.owner}/{self.name}"

    @property
    def data(self) -> str:
        """Where the rows lie."""
        return f"s3://{self.name}/calls.jsonl"

    def workspace(self) -> Object:
        """Return the workspace of a run whose rows lie elsewhere."""
        server = {"endpoint": self.testbed.store.inside, "credentialsSecretRef": {"name": S3_SECRET}}
        return {"uri": f"s3://{self.name}/tunemill/", **server}

    def manifest(self, name: str = "support-tools", **parts: Any) -> Object:
        """Return a FunctionCallFineTune that ends within about a minute; keywords are fields of parts of the spec."""
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
            "compute": {"gpus": 0, "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}},
        }
        for part, fields in parts.items():
            spec[part] = spec.get(part, {}) | fields
        metadata = {"name": name, "namespace": self.name}
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}

    def put_rows(self) -> None:
        """Upload good rows."""
        self.testbed.store.put_rows(self.data, rows(ROWS))

    def apply(self, name: str = "support-tools", **parts: Any) -> FineTune:
        """Apply the manifest."""
        return FineTune.apply(self.testbed.kubectl, self.manifest(name, **parts))
