"""Failures have a remedy, are retried only if useful, and the run continues when the cause is fixed."""

from typing import Any

import pytest
from kube.kubelet import Ends, Waits, eventually, fails
from kube.plane import Namespace, Plane
from tunemill_api.constants import ANNOTATION_REQUESTED_AT
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage

pytestmark = pytest.mark.usefixtures("operator")


def stalled(namespace: Namespace, name: str, reason: Reason) -> dict[str, Any]:
    """Wait until the object is Stalled with this reason; return the failure."""
    eventually(
        lambda: namespace.status(name).get("failure", {}).get("reason") == reason,
        f"{name} has failed with {reason}: {namespace.status(name).get('failure')}",
    )
    condition = namespace.condition(name, "Stalled")
    assert (condition["status"], condition["reason"]) == ("True", reason)
    assert namespace.condition(name, "Reconciling")["status"] == "False"
    failure: dict[str, Any] = namespace.status(name)["failure"]
    assert failure["remedy"]
    return failure


def test_a_failed_stage_is_reported_and_not_retried(plane: Plane, namespace: Namespace) -> None:
    """The stage's message is in the status and in one Warning; no pod follows."""
    message = "calls.jsonl line 17: not JSON"
    plane.kubelet.behave("data", Stage.PREPARE, fails(Stage.PREPARE, Reason.DATASET_MALFORMED, message))
    namespace.apply("data")
    failure = stalled(namespace, "data", Reason.DATASET_MALFORMED)
    assert failure["stage"] == "prepare"
    assert failure["message"] == message
    assert failure["exitCode"] == 65
    assert failure["actor"] == "User"
    assert not failure["retryable"]
    eventually(lambda: "DatasetMalformed" in namespace.events("data"), "the failure is an event")
    assert plane.kubelet.starts_of("data", Stage.PREPARE) == 1
    assert not namespace.live_jobs("data")
    assert namespace.status("data")["stages"][0]["state"] == "Failed"


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_a_failed_stage_is_retried_on_request(plane: Plane, namespace: Namespace, how: str) -> None:
    """By any edit, even one that keeps its key, and by the annotation."""
    name = f"retry-by-{how}"
    plane.kubelet.behave(name, Stage.PUBLISH, fails(Stage.PUBLISH, Reason.HUB_WRITE_DENIED))
    namespace.apply(name)
    stalled(namespace, name, Reason.HUB_WRITE_DENIED)
    plane.kubelet.behaviours.pop((name, "publish"))
    if how == "edit":
        namespace.edit(name, publish={"tokenSecretRef": {"name": "hf-other"}})
    else:
        namespace.annotate(name, ANNOTATION_REQUESTED_AT, "now")
    status = namespace.wait_for(name, "Succeeded")
    assert "failure" not in status
    assert plane.kubelet.starts_of(name, Stage.TRAIN) == 1
    assert plane.kubelet.starts_of(name, Stage.PUBLISH) == 2


def test_a_transient_failure_is_retried_automatically(plane: Plane, namespace: Namespace) -> None:
    """The Job controller starts another pod; meanwhile the object is not Failed."""
    plane.kubelet.behave("flaky", Stage.PREPARE, fails(Stage.PREPARE, Reason.S3_UNREACHABLE, "no route"))
    namespace.apply("flaky")
    reconciling = eventually(
        lambda: (c := namespace.condition("flaky", "Reconciling")).get("reason") == "Retrying" and c, "it is retried"
    )
    assert "S3Unreachable" in reconciling["message"]
    plane.kubelet.behaviours.pop(("flaky", "prepare"))
    namespace.wait_for("flaky", "Succeeded")
    assert plane.kubelet.starts_of("flaky", Stage.PREPARE) == 2


def test_an_oom_killed_stage_is_reported_with_the_field_to_change(plane: Plane, namespace: Namespace) -> None:
    """It leaves no report; the reason is in the container status."""
    plane.kubelet.behave("big", Stage.TRAIN, Ends(137, reason="OOMKilled", message="Killed"))
    namespace.apply("big", retry={"limit": 0})
    failure = stalled(namespace, "big", Reason.OUT_OF_MEMORY)
    assert failure["stage"] == "train"
    assert "spec.podTemplates" in failure["remedy"]


def test_an_exit_without_a_report_shows_the_end_of_the_log(plane: Plane, namespace: Namespace) -> None:
    """The message contains it because of FallbackToLogsOnError."""
    plane.kubelet.behave("mute", Stage.PREPARE, Ends(1, message="Segmentation fault (core dumped)"))
    namespace.apply("mute", retry={"limit": 0})
    assert "Segmentation fault" in stalled(namespace, "mute", Reason.INTERNAL_ERROR)["message"]


def test_missing_outputs_restart_the_run_at_prepare(plane: Plane, namespace: Namespace) -> None:
    """The workspace was emptied: missing outputs are computed again."""
    lost = fails(Stage.PUBLISH, Reason.STAGE_OUTPUT_MISSING, "train/abc is gone")
    plane.kubelet.behave("lost", Stage.PUBLISH, lost)
    namespace.apply("lost")
    eventually(lambda: plane.kubelet.starts_of("lost", Stage.PREPARE) == 2, "the run begins again")
    plane.kubelet.behaviours.pop(("lost", "publish"))
    namespace.wait_for("lost", "Succeeded")
    assert plane.kubelet.starts_of("lost", Stage.PREPARE) == 2
    assert plane.kubelet.starts_of("lost", Stage.TRAIN) == 2


def test_a_missing_secret_is_reported_and_recovers(plane: Plane, namespace: Namespace) -> None:
    """The kubelet's event names the Secret, the status the field. The same pod continues once it exists."""
    plane.kubelet.behave("keyless", Stage.PREPARE, Waits())
    namespace.apply("keyless")
    pod = eventually(lambda: namespace.pods("keyless"), "there is a pod")[0]
    namespace.complain(
        pod, "FailedMount", 'MountVolume.SetUp failed for volume "hub-write" : secret "hf-write" not found'
    )
    failure = stalled(namespace, "keyless", Reason.SECRET_NOT_FOUND)
    assert "hf-write" in failure["message"]
    assert "spec.publish.tokenSecretRef" in failure["message"]
    plane.kubelet.behaviours.pop(("keyless", "prepare"))
    status = namespace.wait_for("keyless", "Succeeded")
    assert "failure" not in status
    assert plane.kubelet.starts_of("keyless", Stage.PREPARE) == 1


def test_an_image_that_cannot_be_pulled_is_reported_and_recovers(plane: Plane, namespace: Namespace) -> None:
    """A failed pull is Reconciling at first, as the kubelet retries; an invalid name is Stalled at once."""
    words = 'Back-off pulling image "registry.example.com/trainer:1"'
    plane.kubelet.behave("imageless", Stage.PREPARE, Waits("ImagePullBackOff", words))
    namespace.apply("imageless")
    eventually(
        lambda: words in namespace.condition("imageless", "Reconciling").get("message", ""),
        "the failed pull is in the status",
    )
    assert "failure" not in namespace.status("imageless")
    words = 'Failed to apply default image tag "trainer:": could not parse image reference'
    plane.kubelet.behave("imageless", Stage.PREPARE, Waits("InvalidImageName", words))
    assert words in stalled(namespace, "imageless", Reason.IMAGE_PULL_FAILED)["message"]
    plane.kubelet.behaviours.pop(("imageless", "prepare"))
    namespace.wait_for("imageless", "Succeeded")


def test_a_missing_service_account_is_reported_and_recovers(namespace: Namespace) -> None:
    """The Job controller cannot create a pod; its event has the reason."""
    namespace.apply("accountless", podTemplates={"prepare": {"serviceAccountName": "robot"}})
    failure = stalled(namespace, "accountless", Reason.SERVICE_ACCOUNT_NOT_FOUND)
    assert "robot" in failure["message"]
    namespace.make("serviceaccounts", "robot")
    namespace.wait_for("accountless", "Succeeded")


def test_an_exceeded_quota_is_reported(namespace: Namespace) -> None:
    """The API server rejects the pod with the quota's name."""
    namespace.make("resourcequotas", "none-left", spec={"hard": {"pods": "0"}})
    namespace.apply("poor")
    assert "none-left" in stalled(namespace, "poor", Reason.QUOTA_EXCEEDED)["message"]


def test_an_unknown_priority_class_is_reported_with_its_field(namespace: Namespace) -> None:
    """The user has to change the spec."""
    namespace.apply("important", podTemplates={"train": {"priorityClassName": "boss"}})
    assert (
        "spec.podTemplates.train.priorityClassName" in stalled(namespace, "important", Reason.INVALID_SPEC)["message"]
    )


def test_a_job_rejected_by_the_api_server_is_reported_and_recovers_after_an_edit(namespace: Namespace) -> None:
    """A request above its limit is valid for the CRD, but not in the Job."""
    resources = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
    namespace.apply("upside-down", podTemplates={"prepare": {"resources": resources}})
    failure = stalled(namespace, "upside-down", Reason.INVALID_SPEC)
    assert "must be less than or equal to memory limit" in failure["message"]
    namespace.edit("upside-down", podTemplates={"prepare": {"resources": {"requests": {"memory": "1Gi"}}}})
    namespace.wait_for("upside-down", "Succeeded")


def test_a_foreign_job_of_the_same_name_is_kept_and_reported(plane: Plane, namespace: Namespace) -> None:
    """When it is deleted, the run starts."""
    namespace.apply("twin", suspend=True)
    namespace.wait_for("twin", "Suspended")
    namespace.apply("model", **namespace.get("twin")["spec"] | {"suspend": False})
    ours = eventually(lambda: namespace.jobs("model"), "there is a Job to take the name from")[0]
    name = ours["metadata"]["name"].replace("model-", "twin-")
    container = {"name": "x", "image": "x"}
    template = {"metadata": {"labels": {"own": "yes"}}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    plane.api.post(
        namespace.path("jobs"), {"metadata": {"name": name}, "spec": {"suspend": True, "template": template}}
    )
    namespace.edit("twin", suspend=False)
    assert name in stalled(namespace, "twin", Reason.NAME_CONFLICT)["message"]
    plane.api.delete(namespace.path("jobs", name), {"propagationPolicy": "Background"})
    namespace.wait_for("twin", "Succeeded")


def test_a_corrected_secret_name_replaces_the_waiting_pod(plane: Plane, namespace: Namespace) -> None:
    """The key is the same, but the pod differs."""
    plane.kubelet.behave("typo", Stage.PREPARE, Waits())
    namespace.apply("typo", publish={"tokenSecretRef": {"name": "hf-wirte"}})
    (before,) = eventually(lambda: namespace.pods("typo"), "there is a pod")
    namespace.edit("typo", publish={"tokenSecretRef": {"name": "hf-write"}})
    eventually(
        lambda: [p for p in namespace.pods("typo") if p["metadata"]["uid"] != before["metadata"]["uid"]], "another pod"
    )
    plane.kubelet.behaviours.pop(("typo", "prepare"))
    namespace.wait_for("typo", "Succeeded")
    volumes = namespace.jobs("typo")[0]["spec"]["template"]["spec"]["volumes"]
    assert {"hf-write"} == {item["secret"]["secretName"] for item in volumes if item["name"] == "hub-write"}
