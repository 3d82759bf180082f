"""Runs on several nodes, with the Job controller of a real control plane."""

from typing import Any

import pytest
from kube.api import ApiError
from kube.kubelet import Runs, Waits, eventually, fails
from kube.plane import Namespace, Plane
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage

pytestmark = pytest.mark.usefixtures("operator")
Json = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"


def train_of(namespace: Namespace, name: str) -> Json:
    """Return the status of train."""
    entries: list[Json] = namespace.status(name).get("stages", [])
    return next((entry for entry in entries if entry["name"] == "train"), {})


def live_pods(namespace: Namespace, name: str) -> list[Json]:
    """Return the pods that have not ended, by index."""
    ended = ("Succeeded", "Failed")
    pods = [pod for pod in namespace.pods(name) if pod["status"].get("phase") not in ended]
    return sorted(pods, key=lambda pod: int(pod["metadata"]["labels"].get(INDEX, 0)))


def companions(namespace: Namespace) -> set[str]:
    """Return the names of Services and NetworkPolicies."""
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace.name}/networkpolicies"
    items = [*namespace.plane.api.get(namespace.path("services"))["items"], *namespace.plane.api.get(policies)["items"]]
    return {item["metadata"]["name"] for item in items}


def test_a_run_on_three_nodes_succeeds_and_leaves_no_pods(plane: Plane, namespace: Namespace) -> None:
    """The Job completes when the first pod has succeeded; the API server accepts all created objects."""
    namespace.apply("group", compute={"nodes": 3, "gpus": 2})
    namespace.wait_for("group", "Succeeded")
    train = train_of(namespace, "group")
    assert (train["attempts"], train["nodes"], train["gpus"]) == (1, 3, 6)
    assert "restarts" not in train
    (job,) = [job for job in namespace.jobs("group") if "-train-" in job["metadata"]["name"]]
    assert [item["type"] for item in job["status"]["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    assert job["metadata"]["name"] in companions(namespace)
    assert not live_pods(namespace, "group")
    namespace.delete("group")
    eventually(lambda: not companions(namespace), "the Service and the NetworkPolicy are gone")


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_pod_is_one_restart_of_the_group(plane: Plane, namespace: Namespace, index: int) -> None:
    """In the same Job, whichever pod it is; no retry is counted."""
    plane.kubelet.behave("killed", Stage.TRAIN, Runs())
    namespace.apply("killed", compute={"nodes": 2}, retry={"limit": 0})
    namespace.wait_for("killed", "Training")
    (job,) = namespace.live_jobs("killed")
    pod = live_pods(namespace, "killed")[index]
    plane.api.delete(namespace.path("pods", pod["metadata"]["name"]))
    eventually(lambda: train_of(namespace, "killed").get("attempts") == 2, "all have started again")
    assert train_of(namespace, "killed")["restarts"] == {"Preempted": 1}
    assert [each["metadata"]["uid"] for each in namespace.live_jobs("killed")] == [job["metadata"]["uid"]]
    plane.kubelet.behaviours.clear()
    namespace.wait_for("killed", "Succeeded")
    assert namespace.status("killed")["run"]["preemptions"] == 1


def test_an_index_that_keeps_failing_ends_the_run(plane: Plane, namespace: Namespace) -> None:
    """After as many retries as for a single pod, with its own reason; the others are stopped."""
    plane.kubelet.behave("failing", Stage.TRAIN, Runs())
    plane.kubelet.of_index["failing", "train", 1] = fails(Stage.TRAIN, Reason.S3_UNREACHABLE, "of the second")
    namespace.apply("failing", compute={"nodes": 2}, retry={"limit": 1})
    failure = namespace.wait_for("failing", "Failed")["failure"]
    assert (failure["reason"], failure["message"], failure["final"]) == ("S3Unreachable", "of the second", True)
    assert train_of(namespace, "failing")["attempts"] == 2
    eventually(lambda: not live_pods(namespace, "failing"), "no pod is left")


def test_a_permanent_failure_ends_the_run_at_once(plane: Plane, namespace: Namespace) -> None:
    """In any pod."""
    plane.kubelet.behave("small", Stage.TRAIN, Runs())
    plane.kubelet.of_index["small", "train", 2] = fails(Stage.TRAIN, Reason.CUDA_OUT_OF_MEMORY)
    namespace.apply("small", compute={"nodes": 3})
    assert namespace.wait_for("small", "Failed")["failure"]["reason"] == "CudaOutOfMemory"
    assert train_of(namespace, "small")["attempts"] == 1
    eventually(lambda: not live_pods(namespace, "small"), "no pod is left")


def test_a_partially_scheduled_group_is_removed_and_retried(plane: Plane, namespace: Namespace) -> None:
    """The status gives the reason, and the run is not Stalled."""
    plane.kubelet.of_index["tight", "train", 1] = Waits()
    namespace.apply("tight", compute={"nodes": 2, "startTimeout": "5s"})
    eventually(lambda: train_of(namespace, "tight").get("startTimeouts"), "they were removed")
    message = "could not all start within spec.compute.startTimeout (5s)"
    # While the Job is deleted, the status says that the run waits for its end.
    eventually(lambda: message in namespace.condition("tight", "Ready")["message"], "the run says why it waits")
    assert namespace.status("tight")["phase"] == "Queued"
    eventually(lambda: not namespace.live_jobs("tight") and not live_pods(namespace, "tight"), "nothing is left")
    plane.kubelet.of_index.clear()
    namespace.wait_for("tight", "Succeeded")


def test_an_edit_replaces_the_group_and_its_service_and_policy(plane: Plane, namespace: Namespace) -> None:
    """Two groups never exist at the same time."""
    plane.kubelet.behave("edited", Stage.TRAIN, Runs())
    namespace.apply("edited", compute={"nodes": 2})
    namespace.wait_for("edited", "Training")
    (before,) = namespace.live_jobs("edited")
    namespace.edit("edited", training={"learningRate": "3e-4"})
    plane.kubelet.behaviours.clear()
    namespace.wait_for("edited", "Succeeded")
    eventually(lambda: before["metadata"]["name"] not in companions(namespace), "those of the first are gone")


def test_a_name_that_is_not_a_valid_host_name_is_rejected(namespace: Namespace) -> None:
    """By the API server, with the field."""
    with pytest.raises(ApiError, match=r"metadata.name must have no dots with compute.nodes above 1"):
        namespace.apply("support.tools", compute={"nodes": 2})
