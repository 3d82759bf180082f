"""Typed view of Kueue's Workload, which tracks the queueing of a Job."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tunemill_operator.engine.objects import Json

LABEL_JOB = "kueue.x-k8s.io/job-uid"
"""Label of Workloads: the uid of the Job."""


@dataclass(frozen=True)
class Workload:
    """A Workload of Kueue."""

    name: str
    job: str
    """Uid of the Job."""
    queue: str
    """LocalQueue of the Job, whether it exists or not."""
    cluster_queue: str
    """ClusterQueue that reserved quota. Empty if there is none."""
    flavors: Mapping[str, str]
    """ResourceFlavor by resource."""
    quota: Mapping[str, str]
    """Reserved quota by resource."""
    since: datetime
    """When the Workload was queued, or when its quota was reserved."""
    waits_for: str
    """Kueue's message about why the Workload is not admitted. Empty if it is, or before Kueue's first decision."""
    stopped: str
    """Kueue's message about why an admitted Workload was evicted. Empty if it was not."""


def workload_of(body: Json) -> Workload:
    """Return the view of a Workload."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    conditions: dict[str, Json] = {condition["type"]: condition for condition in status.get("conditions") or []}
    true = {kind for kind, condition in conditions.items() if condition["status"] == "True"}
    decided = conditions.get("Admitted" if "Admitted" in true else "QuotaReserved") or {}
    admission = (status.get("admission") if "QuotaReserved" in true else None) or {}
    pod_sets: list[Json] = admission.get("podSetAssignments") or []
    return Workload(
        name=metadata["name"],
        job=(metadata.get("labels") or {}).get(LABEL_JOB, ""),
        queue=spec.get("queueName", ""),
        cluster_queue=admission.get("clusterQueue", ""),
        flavors={resource: flavor for each in pod_sets for resource, flavor in (each.get("flavors") or {}).items()},
        quota=_total(pod_sets),
        since=datetime.fromisoformat(decided.get("lastTransitionTime") or metadata["creationTimestamp"]),
        waits_for="" if "Admitted" in true else _waits_for(body, conditions.get("QuotaReserved") or {}),
        stopped=conditions["Evicted"].get("message", "") if "Evicted" in true else "",
    )


def _total(pod_sets: list[Json]) -> dict[str, str]:
    """Return the usage of a Job's pods by resource. A Job has one pod set."""
    return {resource: str(size) for each in pod_sets for resource, size in (each.get("resourceUsage") or {}).items()}


def _waits_for(body: Json, reserved: Json) -> str:
    if body["spec"].get("active") is False:
        return f"the Workload {body['metadata']['name']} is deactivated: set its spec.active to true"
    if reserved.get("status") != "True":
        return str(reserved.get("message", ""))
    checks = [check for check in body["status"].get("admissionChecks") or [] if check["state"] != "Ready"]
    checks_text = [": ".join(filter(None, (check["name"], check["state"], check.get("message")))) for check in checks]
    return f"the quota is reserved, but not all admission checks have passed ({'; '.join(checks_text)})"
