"""A run as the trackers see it: its name, its settings and its tags."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import JsonValue
from tunemill_api.run_spec import RunSpec

from tunemill_trainer.release import provenance

_LONGEST = 500
"""The most characters of a setting. MLflow refuses a request with a longer one, older versions from this length on."""


@dataclass(frozen=True)
class TrackedRun:
    """What identifies and describes a run.

    Train and evaluate log to the same run of a tracker, and so does a stage that resumes: they find it by `identity`.

    Attributes:
        identity: of the run, the same in all its stages and attempts; unique among clusters and namespaces.
        name: the name that is shown.
        namespace: of the object; the default experiment or project.
        settings: the hyperparameters and targets by path, for example training.batchSize. They contain no location and
            no credential.
        tags: further facts: the commit of the base model and the digest of the data.
    """

    identity: str
    name: str
    namespace: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]

    @classmethod
    def of(cls, run: RunSpec) -> Self:
        """Return the run of a RunSpec."""
        tags = {"tunemill.object": f"{run.namespace}/{run.name}"}
        if run.prepared is not None:
            tags |= {
                "tunemill.base-model-revision": run.prepared.base_model_revision,
                "tunemill.dataset-digest": run.prepared.dataset_digest,
            }
        return cls(
            identity="/".join((run.cluster, run.namespace, run.name, run.uid, run.run_id)),
            name=f"{run.name}-{run.run_id}",
            namespace=run.namespace,
            settings=dict(_flat(provenance.parameters(run.spec))),
            tags=tags,
        )

    @property
    def digest(self) -> str:
        """The identity as 32 hexadecimal digits, for trackers that limit the length and the characters of ids."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:32]


def _flat(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values in an object by their paths."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else name)
    else:
        yield path, str(value)[:_LONGEST]
