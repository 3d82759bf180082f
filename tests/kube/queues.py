"""Kueue objects of a platform team: a queue with its quota, a LocalQueue of a namespace, and priorities."""

from collections.abc import Mapping
from typing import Any

GROUP = "kueue.x-k8s.io"
VERSION = "v1beta2"
Json = dict[str, Any]


def resource_flavor(name: str) -> Json:
    """Return a flavor for any node."""
    return {**_kind("ResourceFlavor", name), "spec": {}}


def cluster_queue(name: str, quotas: Mapping[str, int | str], **spec: Any) -> Json:
    """Return a queue for all namespaces with the flavor of its name; Jobs of higher priority preempt others."""
    preempts = {"withinClusterQueue": "LowerPriority"}
    whole = {"namespaceSelector": {}, "preemption": preempts, "resourceGroups": resource_groups(name, quotas)}
    return {**_kind("ClusterQueue", name), "spec": whole | spec}


def resource_groups(flavor: str, quotas: Mapping[str, int | str]) -> list[Json]:
    """Return the quotas of a ClusterQueue."""
    resources = [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()]
    return [{"coveredResources": list(quotas), "flavors": [{"name": flavor, "resources": resources}]}]


def local_queue(name: str, namespace: str, of: str) -> Json:
    """Return a LocalQueue of the ClusterQueue `of`."""
    return {**_kind("LocalQueue", name, namespace=namespace), "spec": {"clusterQueue": of}}


def priority_class(name: str, value: int) -> Json:
    """Return a WorkloadPriorityClass."""
    return {**_kind("WorkloadPriorityClass", name), "value": value}


def _kind(kind: str, name: str, **metadata: str) -> Json:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name, **metadata}}
