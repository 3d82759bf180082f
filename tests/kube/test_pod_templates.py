"""Pod templates and profiles with a real API server: accepted and rejected ones, and the status of profiles."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kube.kubelet import eventually
from kube.operators import an_operator
from kube.plane import PROFILES, Namespace, Plane
from tunemill_api.failures import Reason
from tunemill_operator.kube.access import open_access
from tunemill_operator.kube.client import JOBS, KubeClient
from tunemill_operator.kube.errors import RefusedError

TEMPLATE: dict[str, Any] = {
    "labels": {"team": "a"},
    "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi", "ephemeral-storage": "10Gi"}},
    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpus", "operator": "Gt", "values": ["0"]}]}]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
                }
            ],
        },
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "cache"}}},
                }
            ]
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "host", "namespaceSelector": {}, "labelSelector": {"matchLabels": {"team": "b"}}}
            ]
        },
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "minDomains": 2,
            "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": {"team": "a"}},
            "matchLabelKeys": ["batch.kubernetes.io/job-name"],
        }
    ],
    "schedulerName": "bin-packing",
    "serviceAccountName": "default",
    "env": [
        {"name": "LEVEL", "value": "INFO"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a", "optional": True}}},
    ],
    "volumes": [
        {"name": "config", "configMap": {"name": "c", "items": [{"key": "a", "path": "b", "mode": 256}]}},
        {"name": "keys", "secret": {"secretName": "s", "optional": True}},
        {"name": "room", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "rows", "persistentVolumeClaim": {"claimName": "rows", "readOnly": True}},
        {
            "name": "fast",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                }
            },
        },
    ],
    "volumeMounts": [{"name": "rows", "mountPath": "/rows", "subPath": "today", "readOnly": True}],
    "terminationGracePeriodSeconds": 120,
    "scratch": {"size": "10Gi", "storageClassName": "fast"},
    "sharedMemory": "2Gi",
}
"""A template with every field but the names of classes, which would have to exist."""


def prepare_pod(namespace: Namespace, name: str) -> dict[str, Any]:
    """Wait for the prepare pod of an object and return it."""
    pods: list[dict[str, Any]] = eventually(lambda: namespace.pods(name), f"{name} has a pod")
    return pods[0]


@pytest.mark.usefixtures("operator")
def test_every_field_of_a_pod_template_is_in_the_created_pod(namespace: Namespace) -> None:
    """Through the CRD, strict validation of the Job, and the admission of the pod."""
    kept = namespace.apply("whole", podTemplates={"prepare": TEMPLATE})["spec"]["podTemplates"]["prepare"]
    assert kept == TEMPLATE
    pod = prepare_pod(namespace, "whole")["spec"]
    (job,) = namespace.jobs("whole")  # admission adds labels to the constraints of the pod itself
    for name in ("resourceClaims", "affinity", "topologySpreadConstraints", "schedulerName", "nodeSelector"):
        assert job["spec"]["template"]["spec"][name] == TEMPLATE[name]
    assert TEMPLATE["tolerations"][0] in pod["tolerations"]
    assert pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    assert {"name": "user-rows", "mountPath": "/rows", "subPath": "today", "readOnly": True} in container[
        "volumeMounts"
    ]


@pytest.mark.usefixtures("operator")
def test_a_quota_on_requests_admits_a_pod_without_settings(namespace: Namespace) -> None:
    """No LimitRange is needed: such a pod has requests, and is not BestEffort."""
    hard = {"requests.cpu": "4", "requests.memory": "16Gi"}
    namespace.make("resourcequotas", "compute", spec={"hard": hard})
    namespace.apply("plain")
    pod = prepare_pod(namespace, "plain")
    assert pod["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "500m", "memory": "2Gi"}}
    assert pod["status"]["qosClass"] == "Burstable"


@pytest.mark.usefixtures("operator")
def test_a_mount_without_a_volume_is_stalled_with_its_path(namespace: Namespace) -> None:
    """The API server cannot check it at `kubectl apply`, as a profile may add the volume."""
    mounts = [{"name": "rows", "mountPath": "/rows"}]
    namespace.apply("unmounted", podTemplates={"train": {"volumeMounts": mounts}})
    failure = namespace.wait_for("unmounted", "Failed")["failure"]
    assert failure["reason"] == Reason.INVALID_SPEC
    assert "spec.podTemplates.train.volumeMounts[0] mounts rows" in failure["message"]
    assert namespace.jobs("unmounted") == []


def test_a_misspelt_field_of_a_job_is_rejected_with_its_path(plane: Plane, namespace: Namespace) -> None:
    """Without strict validation the API server would drop it silently."""
    container = {"name": "train", "image": "trainer"}
    pod = {"restartPolicy": "Never", "containers": [container], "affinity": {"nodeAffinty": {}}}
    job = {"metadata": {"name": "misspelt"}, "spec": {"template": {"spec": pod}}}

    async def create() -> None:
        client = KubeClient((await open_access(str(plane.kubeconfig), "")).client())
        try:
            await client.create(JOBS, namespace.name, {"apiVersion": "batch/v1", "kind": "Job", **job})
        finally:
            await client.close()

    with pytest.raises(RefusedError, match=r'unknown field "spec\.template\.spec\.affinity\.nodeAffinty"'):
        asyncio.run(create())


def test_a_profile_has_a_ready_condition(plane: Plane, tmp_path: Path) -> None:
    """It is written once for each generation, and shown in the printer column."""

    def ready(name: str) -> dict[str, Any]:
        conditions = plane.api.get(f"{PROFILES}/{name}").get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == "Ready"), {})

    train = {"podTemplates": {"train": {"serviceAccountName": "admin"}}}
    try:
        plane.profile("corrected", defaults=train, limits={"serviceAccounts": ["train-*"]})
        with an_operator(plane.kubeconfig, tmp_path / "operator.log", "--no-leader-election") as operator:
            plane.profile("sound", defaults=train)
            eventually(lambda: ready("sound").get("status") == "True", "a valid profile is ready")
            eventually(lambda: ready("corrected").get("status") == "False", "the other one is not")
            message = ready("corrected")["message"]
            assert "spec.defaults.podTemplates.train.serviceAccountName asks for admin" in message
            version = plane.api.get(f"{PROFILES}/sound")["metadata"]["resourceVersion"]
            plane.profile("corrected", defaults=train, limits={"serviceAccounts": ["admin"]})
            eventually(lambda: ready("corrected").get("status") == "True", "it is ready once it is corrected")
            assert ready("corrected")["observedGeneration"] == 2
            assert plane.api.get(f"{PROFILES}/sound")["metadata"]["resourceVersion"] == version, "it is written once"
            assert not operator.logged("Traceback"), operator.log.read_text()
    finally:
        for name in ("corrected", "sound"):
            plane.api.delete(f"{PROFILES}/{name}")
