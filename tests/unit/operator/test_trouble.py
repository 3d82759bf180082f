"""A problem that may pass is Reconciling; one that lasts, or that needs a correction, is Stalled."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_world_at, condition, labels
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_operator.engine.observe import Refusal, WarningEvent

MODEL_CACHE = {"compute": {"modelCache": {"claimName": "cache"}}}
SANDBOX = "Failed to create pod sandbox: plugin type aws-cni failed (add): failed to assign an IP address to container"
ATTACH = 'AttachVolume.Attach failed for volume "pvc-1" : rpc error: code = DeadlineExceeded'
WEBHOOK = 'Error creating: Internal error occurred: failed calling webhook "pods.example.com": connection refused'


def waits(world: World, reason: str, message: str) -> None:
    """Set the reason why the container of the live pod waits."""
    (pod,) = world.live_pods()
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": reason, "message": message}}
    world._touch(pod)


def complains(world: World, reason: str, message: str, *, about: str = "pod") -> None:
    """Add a Warning event about the live pod or its Job."""
    (body,) = world.live_pods() if about == "pod" else world.live_jobs()
    world.warning_events = (WarningEvent(body["metadata"]["uid"], reason, message, world.now),)


def trouble(world: World, kind: str) -> None:
    """Cause a problem that often passes."""
    match kind:
        case "ErrImagePull":
            waits(world, kind, "429 Too Many Requests")
        case "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError" | "CreateContainerError":
            waits(world, kind, "Back-off pulling image")
        case "sandbox":
            complains(world, "FailedCreatePodSandBox", SANDBOX)
        case "attach":
            complains(world, "FailedAttachVolume", ATTACH)
        case "webhook":
            for pod in world.live_pods():
                world.lose(pod)
            complains(world, "FailedCreate", WEBHOOK, about="job")


TRANSIENT = [
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "ImageInspectError",
    "CreateContainerError",
    "sandbox",
    "attach",
    "webhook",
]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_recent_problem_is_reconciling(kind: str) -> None:
    """It is shown with its reason, no event is recorded, and the object is requeued for its deadline."""
    world = World(**MODEL_CACHE)
    world.settle()
    world.seconds += 5
    trouble(world, kind)
    decided = world.reconcile()
    assert world.status.failure is None
    assert condition(world, "Stalled").status == "False"
    assert condition(world, "Reconciling").reason in {
        Reason.IMAGE_PULL_FAILED,
        Reason.SANDBOX_FAILED,
        Reason.VOLUME_UNAVAILABLE,
        Reason.WEBHOOK_UNAVAILABLE,
    }
    assert "Stalled if it lasts until 12:02:05 UTC" in condition(world, "Reconciling").message
    assert decided.requeue_after is not None
    assert decided.requeue_after.total_seconds() <= 120
    assert world.events == []


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_lasting_problem_is_stalled(kind: str) -> None:
    """After two minutes, also over a restart of the operator. The run does not end."""
    world = World(**MODEL_CACHE)
    world.settle()
    trouble(world, kind)
    world.reconcile()
    for _ in range(5):
        world.seconds += 20
        world.restart_operator()
        world.reconcile()
    assert world.status.failure is None
    writes = world.status_writes
    world.seconds += 20
    world.reconcile()
    assert condition(world, "Stalled").status == "True"
    assert world.status.failure is not None
    assert world.status.failure.final is False
    assert world.status_writes == writes + 1
    world.seconds += 3600
    world.reconcile()
    assert world.status_writes == writes + 1


def test_a_problem_with_alternating_reasons_is_one_problem() -> None:
    """The kubelet alternates between two reasons."""
    world = World()
    world.settle()
    for number in range(7):
        waits(world, ["ErrImagePull", "ImagePullBackOff"][number % 2], "429 Too Many Requests")
        world.reconcile()
        world.seconds += 20
    world.reconcile()
    assert world.status.failure.reason == Reason.IMAGE_PULL_FAILED


def test_a_resolved_problem_is_removed_from_the_status() -> None:
    """When it recurs, its time starts at zero."""
    world = World()
    world.settle()
    waits(world, "ErrImagePull", "429 Too Many Requests")
    world.reconcile()
    world.seconds += 60
    world.start(world.live_pods()[0])
    world.reconcile()
    assert world.status.trouble_since is None
    world.drain(world.live_pods()[0])
    world.settle()
    world.seconds += 3600
    waits(world, "ErrImagePull", "429 Too Many Requests")
    world.reconcile()
    assert world.status.failure is None


def test_a_failed_pull_after_an_hour_without_a_node_is_not_stalled_at_once() -> None:
    """The time counts from the problem, not from the pod's creation."""
    world = World()
    world.settle()
    world.seconds += 3600
    waits(world, "ErrImagePull", "429 Too Many Requests")
    world.reconcile()
    assert world.status.failure is None


def test_a_problem_stalled_by_an_older_operator_stays_stalled() -> None:
    """An upgrade does not reset its time."""
    world = World()
    world.settle()
    waits(world, "ImagePullBackOff", "not found")
    world.reconcile()
    world.seconds += 200
    world.reconcile()
    world.finetune_body["status"].pop("troubleSince")
    world.finetune_body["status"]["failure"].pop("final")
    world.seconds += 200
    world.reconcile()
    assert condition(world, "Stalled").status == "True"


def test_a_job_rejected_by_a_webhook_is_retried_before_it_is_stalled() -> None:
    """The rejection is the problem; no Job exists yet."""
    world = World()
    world.refusal = Refusal(500, 'failed calling webhook "jobs.example.com": connection refused', taken=False)
    world.reconcile()
    assert condition(world, "Reconciling").reason == Reason.WEBHOOK_UNAVAILABLE
    world.seconds += 119
    world.reconcile()
    assert world.status.failure is None
    world.seconds += 1
    world.reconcile()
    assert world.status.failure.reason == Reason.WEBHOOK_UNAVAILABLE


@pytest.mark.parametrize(
    ("spec", "reason", "message", "expected"),
    [
        ({}, "InvalidImageName", "couldn't parse image name", Reason.IMAGE_PULL_FAILED),
        ({}, "ErrImageNeverPull", "not present with pull policy of Never", Reason.IMAGE_PULL_FAILED),
        (
            {"dataset": {"credentialsSecretRef": {"name": "s3"}}},
            "FailedMount",
            'MountVolume.SetUp failed for volume "dataset" : secret "s3" not found',
            Reason.SECRET_NOT_FOUND,
        ),
    ],
)
def test_a_problem_that_needs_a_correction_is_stalled_at_once(
    spec: dict[str, Any], reason: str, message: str, expected: Reason
) -> None:
    """For example a wrong name."""
    world = World(**spec)
    world.settle()
    if reason == "FailedMount":
        complains(world, reason, message)
    else:
        waits(world, reason, message)
    world.reconcile()
    assert (world.status.failure.reason, world.status.failure.final) == (expected, False)


@pytest.mark.parametrize(
    ("required", "fields"),
    [
        (
            "limits.cpu for: prepare; limits.memory for: prepare",
            ["spec.podTemplates.prepare.resources.limits.cpu", "spec.podTemplates.prepare.resources.limits.memory"],
        ),
        ("requests.cpu", ["spec.podTemplates.prepare.resources.requests.cpu"]),
        ("cpu for: prepare", ["spec.podTemplates.prepare.resources.requests.cpu"]),
        (
            "requests.nvidia.com/gpu for: prepare",
            ["spec.podTemplates.prepare.resources.requests.nvidia.com/gpu"],
        ),
    ],
)
def test_a_quota_without_defaults_is_reported_with_the_field_to_set(required: str, fields: list[str]) -> None:
    """The remedy does not suggest a higher quota or lower requests: requests are missing."""
    world = World()
    world.settle()
    world.pods.clear()
    message = f'Error creating: pods "support-prepare-x" is forbidden: failed quota: compute: must specify {required}'
    complains(world, "FailedCreate", message, about="job")
    world.reconcile()
    failure = world.status.failure
    assert failure.reason == Reason.QUOTA_EXCEEDED
    for field in fields:
        assert field in failure.message
        assert field in failure.remedy
    assert "reduce the requests" not in failure.remedy


def test_the_reported_fields_are_those_of_the_rejected_stage() -> None:
    """Each stage has its own pod template."""
    world = a_world_at(Stage.TRAIN)
    for pod in world.live_pods():
        world.drain(pod)
        world.lose(pod)
    message = 'pods "x" is forbidden: failed quota: compute: must specify limits.cpu for: train'
    complains(world, "FailedCreate", message, about="job")
    world.reconcile()
    assert "spec.podTemplates.train.resources.limits.cpu" in world.status.failure.remedy
    assert labels(world) == ["prepare", "train"]
