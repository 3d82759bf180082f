"""What Kueue says about a Job: the slim view of the Workload in which it keeps the books of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tunemill_operator.engine.objects import Json

LABEL_JOB = "kueue.x-k8s.io/job-uid"
"""On Workloads: the uid of the Job."""


@dataclass(frozen=True)
class Workload:
    """A Workload of Kueue."""

    name: str
    job: str
    """The Job's uid."""
    queue: str
    """The LocalQueue that it was sent to, whether there is one of that name or not."""
    cluster_queue: str
    """The ClusterQueue whose quota is reserved for it; empty while there is none."""
    flavors: Mapping[str, str]
    """The ResourceFlavor that each resource is taken from."""
    since: datetime
    """Since when it waits, or has its quota."""
    waits_for: str
    """Why it is not admitted, in Kueue's words; empty when it is, and before Kueue has looked at it."""
    stopped: str
    """Why it was stopped after it had been admitted, in Kueue's words; empty when it was not."""


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
        since=datetime.fromisoformat(decided.get("lastTransitionTime") or metadata["creationTimestamp"]),
        waits_for="" if "Admitted" in true else _waits_for(body, conditions.get("QuotaReserved") or {}),
        stopped=conditions["Evicted"].get("message", "") if "Evicted" in true else "",
    )


def _waits_for(body: Json, reserved: Json) -> str:
    if body["spec"].get("active") is False:
        return f"the Workload {body['metadata']['name']} is deactivated: set its spec.active to true"
    if reserved.get("status") != "True":
        return str(reserved.get("message", ""))
    checks = [check for check in body["status"].get("admissionChecks") or [] if check["state"] != "Ready"]
    told = [": ".join(filter(None, (check["name"], check["state"], check.get("message")))) for check in checks]
    return f"the quota is reserved, but not all admission checks have passed ({'; '.join(told)})"
