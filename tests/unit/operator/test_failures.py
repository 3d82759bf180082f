"""Which failure is derived from pods, Jobs and events that have no report."""

from typing import Any

import pytest
from property.builders import a_failure_report, a_spec, at, parsed, text
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.stage_report import Stage
from tunemill_operator.engine import failures
from tunemill_operator.engine.objects import Job, Pod, job_of, pod_of
from tunemill_operator.engine.observe import Observed, Refusal, WarningEvent
from tunemill_operator.engine.stages import Work

PREPARE = Work("prepare", (Stage.PREPARE,), "key")
TRAIN = Work("train", (Stage.TRAIN, Stage.EVALUATE), "key")
WHOLE = parsed(
    a_spec(
        baseModel={"tokenSecretRef": {"name": "hf-read"}},
        publish={"signing": {"keySecretRef": {"name": "release-key"}}},
        dataset={"credentialsSecretRef": {"name": "s3"}},
        tokenizer={"chatTemplate": {"configMapKeyRef": {"name": "chat", "key": "template"}}},
    )
)


def a_pod(*containers: dict[str, Any], phase: str = "Failed", **status: Any) -> Pod:
    """Return a pod with these container statuses."""
    metadata = {
        "namespace": "team-a",
        "name": "pod",
        "uid": "pod",
        "resourceVersion": "1",
        "creationTimestamp": text(at(0)),
        "ownerReferences": [{"uid": "job", "controller": True}],
    }
    return pod_of({"metadata": metadata, "status": {"phase": phase, "containerStatuses": list(containers), **status}})


def ended(name: str, code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    """Return the status of a terminated container."""
    times = {"startedAt": text(at(1)), "finishedAt": text(at(2))}
    return {"name": name, "state": {"terminated": {"exitCode": code, "message": message, "reason": reason} | times}}


def a_job(**failed: str) -> Job:
    """Return a Job, which has failed if a reason and a message are given."""
    metadata = {
        "namespace": "team-a",
        "name": "support-prepare-1234",
        "uid": "job",
        "resourceVersion": "1",
        "creationTimestamp": text(at(0)),
    }
    conditions = [{"type": "Failed", "status": "True", "lastTransitionTime": text(at(9)), **failed}] if failed else []
    return job_of({"metadata": metadata, "spec": {}, "status": {"conditions": conditions}})


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (ended("train", 137, "Killed", "OOMKilled"), Reason.OUT_OF_MEMORY),
        (ended("train", 137), Reason.POD_LOST),
        (ended("train", 143), Reason.INTERRUPTED),
        (ended("train", 75), Reason.INTERRUPTED),
        (ended("train", 64, "what?"), Reason.INVALID_SPEC),
        (ended("train", 1, "Traceback"), Reason.INTERNAL_ERROR),
        (ended("train", 65, "no report"), Reason.INTERNAL_ERROR),
        (ended("train", 128, 'exec: "tunemill-trainer": not found', "StartError"), Reason.IMAGE_PULL_FAILED),
    ],
)
def test_an_exit_without_a_report_has_a_reason(container: dict[str, Any], reason: Reason) -> None:
    """From the exit code and the runtime's reason; otherwise it is an internal error."""
    cause = failures.of_pod(a_pod(container))
    assert cause is not None
    assert (cause.stage, cause.reason) == ("train", reason)
    assert cause.exit_code == container["state"]["terminated"]["exitCode"] or reason is Reason.IMAGE_PULL_FAILED


def test_a_report_takes_precedence_over_the_exit_code() -> None:
    """Also when the container was OOM-killed right after it."""
    message = a_failure_report(Stage.TRAIN, Reason.CUDA_OUT_OF_MEMORY, "tried to allocate 2 GiB")
    cause = failures.of_pod(a_pod(ended("train", 78, message, "OOMKilled")))
    assert cause is not None
    assert (cause.reason, cause.message) == (Reason.CUDA_OUT_OF_MEMORY, "tried to allocate 2 GiB")


def test_a_report_of_another_stage_is_ignored() -> None:
    """A container reports its own stages only."""
    cause = failures.of_pod(a_pod(ended("train", 65, a_failure_report(Stage.PREPARE, Reason.DATASET_EMPTY))))
    assert cause is not None
    assert cause.reason is Reason.INTERNAL_ERROR


def test_the_failed_container_of_several_is_named() -> None:
    """Train succeeded, evaluate failed."""
    pod = a_pod(ended("evaluate", 1), initContainerStatuses=[ended("train", 0, "{}", "Completed")])
    cause = failures.of_pod(pod)
    assert cause is not None
    assert cause.stage == "evaluate"


def test_an_evicted_pod_shows_the_message_of_the_kubelet() -> None:
    """It names the exhausted resource."""
    said = "The node was low on resource: memory."
    cause = failures.of_pod(a_pod(ended("train", 137), reason="Evicted", message=said))
    assert cause is not None
    assert (cause.reason, cause.message) == (Reason.EVICTED, said)


def test_a_pod_that_died_with_its_node_is_lost() -> None:
    """No container status has its exit code."""
    waiting = {"name": "train", "state": {"running": {"startedAt": text(at(1))}}}
    cause = failures.of_pod(a_pod(waiting, reason="NodeLost", message="Node went away"))
    assert cause is not None
    assert cause.reason is Reason.POD_LOST
    assert "Node went away" in cause.message


def test_a_pod_that_has_not_failed_has_no_failure() -> None:
    """Neither a running one, nor a succeeded one."""
    assert failures.of_pod(a_pod(phase="Running")) is None
    assert failures.of_pod(a_pod(ended("train", 0), phase="Succeeded")) is None


def test_a_failed_job_reports_its_last_own_failure() -> None:
    """A later preemption is not the cause."""
    first = a_pod(ended("prepare", 69, a_failure_report(Stage.PREPARE, Reason.S3_UNREACHABLE)))
    drained = a_pod(
        ended("prepare", 143), conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}]
    )
    job = a_job(reason="BackoffLimitExceeded", message="…")
    assert failures.of_failed_job(PREPARE, job, [first, drained]).reason is Reason.S3_UNREACHABLE


def test_a_failed_job_without_pods_has_the_message_of_the_job_controller() -> None:
    """It contains the exit code."""
    job = a_job(
        reason="PodFailurePolicy", message="Container prepare for pod x failed with exit code 65 matching FailJob"
    )
    cause = failures.of_failed_job(PREPARE, job, [])
    assert (cause.reason, cause.exit_code) == (Reason.POD_LOST, 65)


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (
            'MountVolume.SetUp failed for volume "hub-write" : secret "hf-write" not found',
            Reason.SECRET_NOT_FOUND,
            'the Secret "hf-write" of spec.publish.tokenSecretRef does not exist',
        ),
        (
            'MountVolume.SetUp failed for volume "hub-read" : references non-existent secret key: token',
            Reason.SECRET_NOT_FOUND,
            'the Secret "hf-read" of spec.baseModel.tokenSecretRef has no key "token"',
        ),
        (
            'MountVolume.SetUp failed for volume "signing" : references non-existent secret key: key.pem',
            Reason.SECRET_NOT_FOUND,
            'the Secret "release-key" of spec.publish.signing.keySecretRef has no key "key.pem"',
        ),
        (
            'MountVolume.SetUp failed for volume "workspace" : secret "s3" not found',
            Reason.SECRET_NOT_FOUND,
            'the Secret "s3" of spec.dataset.credentialsSecretRef does not exist',
        ),
        (
            'MountVolume.SetUp failed for volume "chat-template" : configmap "chat" not found',
            Reason.CONFIG_MAP_NOT_FOUND,
            'the ConfigMap "chat" of spec.tokenizer.chatTemplate.configMapKeyRef does not exist',
        ),
        (
            (
                'MountVolume.SetUp failed for volume "chat-template" : '
                "configmap references non-existent config key: template"
            ),
            Reason.CONFIG_MAP_NOT_FOUND,
            'has no key "template"',
        ),
    ],
)
def test_kubelet_warnings_are_reported_with_the_field(message: str, reason: Reason, words: str) -> None:
    """With messages of a real kubelet."""
    observed = Observed((a_job(),), (a_pod(phase="Pending"),), (WarningEvent("pod", "FailedMount", message, at(3)),))
    cause = failures.blocking(WHOLE, PREPARE, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is reason
    assert words in cause.message


def test_a_service_account_volume_is_no_failure() -> None:
    """The kubelet retries within a second."""
    message = 'MountVolume.SetUp failed for volume "kube-api-access-x" : failed to sync configmap cache: timed out'
    observed = Observed((a_job(),), (a_pod(phase="Pending"),), (WarningEvent("pod", "FailedMount", message, at(3)),))
    assert failures.blocking(WHOLE, PREPARE, observed.jobs[0], observed) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            'Error creating: pods "x-" is forbidden: violates PodSecurity "restricted:latest": …',
            Reason.POD_REJECTED,
        ),
        (
            'Error creating: pods "x-" is forbidden: exceeded quota: team, requested: pods=1, used: pods=3, limited: …',
            Reason.QUOTA_EXCEEDED,
        ),
        (
            'Error creating: pods "x-" is forbidden: failed quota: team: must specify limits.memory for: prepare',
            Reason.QUOTA_EXCEEDED,
        ),
        (
            'Error creating: pods "x-" is forbidden: maximum cpu usage per Container is 2, but limit is 4',
            Reason.QUOTA_EXCEEDED,
        ),
        (
            (
                'Error creating: pods "x-" is forbidden: error looking up service account a/b: '
                'serviceaccount "b" not found'
            ),
            Reason.SERVICE_ACCOUNT_NOT_FOUND,
        ),
        (
            'Error creating: pods "x-" is forbidden: no PriorityClass with name boss was found',
            Reason.INVALID_SPEC,
        ),
        (
            'Error creating: pods "x-" is forbidden: pod rejected: RuntimeClass "nvidia" not found',
            Reason.INVALID_SPEC,
        ),
        ('Error creating: Pod "x-" is invalid: spec.tolerations[0].operator: …', Reason.INVALID_SPEC),
        ('Error creating: admission webhook "policy.example.com" denied the request: no', Reason.POD_REJECTED),
        (
            (
                'Error creating: pods "x-" is forbidden: memory max limit to request ratio per Container is 2, but '
                "provided ratio is 4.000000"
            ),
            Reason.QUOTA_EXCEEDED,
        ),
        (
            (
                'Error creating: Internal error occurred: failed calling webhook "pods.example.com": failed to call '
                'webhook: Post "https://policy.policies.svc:443/pods?timeout=10s": dial tcp 10.96.3.4:443: connect: '
                "connection refused"
            ),
            Reason.WEBHOOK_UNAVAILABLE,
        ),
    ],
)
def test_a_rejected_pod_is_reported(message: str, reason: Reason) -> None:
    """With the message of a real API server, in an event of the Job."""
    observed = Observed((a_job(),), (), (WarningEvent("job", "FailedCreate", message, at(3)),))
    cause = failures.blocking(WHOLE, TRAIN, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is reason
    assert cause.stage == "train"


def test_the_newest_warning_is_reported() -> None:
    """A resolved problem is not reported."""
    old = WarningEvent("job", "FailedCreate", "exceeded quota: team", at(1))
    new = WarningEvent("job", "FailedCreate", 'serviceaccount "b" not found', at(2))
    observed = Observed((a_job(),), (), (old, new))
    cause = failures.blocking(WHOLE, TRAIN, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is Reason.SERVICE_ACCOUNT_NOT_FOUND


def test_a_terminating_namespace_is_no_failure() -> None:
    """The object is deleted with it."""
    message = (
        'Error creating: pods "x-" is forbidden: unable to create new content in namespace a because it is being '
        "terminated"
    )
    observed = Observed((a_job(),), (), (WarningEvent("job", "FailedCreate", message, at(3)),))
    assert failures.blocking(WHOLE, TRAIN, observed.jobs[0], observed) is None


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        (
            "FailedAttachVolume",
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-train-1',
            Reason.VOLUME_UNAVAILABLE,
        ),
        (
            "FailedMount",
            (
                "Unable to attach or mount volumes: unmounted volumes=[models], unattached volumes=[], failed to "
                "process volumes=[]: timed out waiting for the condition"
            ),
            Reason.VOLUME_UNAVAILABLE,
        ),
        (
            "FailedCreatePodSandBox",
            'Failed to create pod sandbox: rpc error: code = Unknown desc = no runtime for "nvidia" is configured',
            Reason.SANDBOX_FAILED,
        ),
    ],
)
def test_unavailable_node_resources_are_reported(reason: str, message: str, expected: Reason) -> None:
    """With messages of kubelet and attach controller, in an event of the pod."""
    spec = parsed(a_spec(compute={"modelCache": {"claimName": "cache"}}))
    observed = Observed((a_job(),), (a_pod(phase="Pending"),), (WarningEvent("pod", reason, message, at(3)),))
    cause = failures.blocking(spec, TRAIN, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is expected
    assert message in cause.message


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError"])
@pytest.mark.parametrize("message", ["", "rpc error: code = NotFound", 'Back-off pulling image "mine/trainer:7"'])
def test_an_image_that_cannot_be_pulled_is_named(reason: str, message: str) -> None:
    """Whether the kubelet names it or not."""
    waiting = {"name": "train", "image": "mine/trainer:7", "state": {"waiting": {"reason": reason, "message": message}}}
    observed = Observed((a_job(),), (a_pod(waiting, phase="Pending"),))
    cause = failures.blocking(WHOLE, TRAIN, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is Reason.IMAGE_PULL_FAILED
    assert '"mine/trainer:7"' in cause.message
    assert message in cause.message


def unschedulable(message: str) -> dict[str, Any]:
    """Return a pod's conditions when the scheduler finds no node."""
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


@pytest.mark.parametrize(
    ("claim", "field"),
    [("cache", "spec.compute.modelCache.claimName"), ("other", "spec.podTemplates.train.volumes")],
)
def test_a_missing_volume_claim_is_reported_with_its_field(claim: str, field: str) -> None:
    """The scheduler waits until the claim is created."""
    message = f'0/1 nodes are available: persistentvolumeclaim "{claim}" not found. not eligible for preemption.'
    observed = Observed((a_job(),), (a_pod(phase="Pending", **unschedulable(message)),))
    spec = parsed(a_spec(compute={"modelCache": {"claimName": "cache"}}))
    cause = failures.blocking(spec, TRAIN, observed.jobs[0], observed)
    assert cause is not None
    assert cause.reason is Reason.CLAIM_NOT_FOUND
    assert f'"{claim}" of {field} does not exist' in cause.message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            (
                "0/4 nodes are available: 1 Insufficient memory, 3 Insufficient nvidia.com/gpu. preemption: 0/4 nodes "
                "are available: 4 No preemption victims found for incoming pod."
            ),
            "no node has enough free memory, nvidia.com/gpu",
        ),
        (
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
            "no node matches spec.podTemplates.train.nodeSelector and affinity",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}.",
            "spec.podTemplates.train.tolerations does not tolerate {nvidia.com/gpu: present}",
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            "a PersistentVolumeClaim of spec.compute.modelCache or spec.podTemplates.train is not bound",
        ),
        ("0/1 nodes are available: something new.", ""),
    ],
)
def test_an_unschedulable_pod_is_reported_with_fields_of_the_spec(message: str, words: str) -> None:
    """From messages of a real scheduler, which follow in the status."""
    assert failures.unschedulable_reason(message, TRAIN) == words


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"reason": "UnexpectedAdmissionError", "message": "Allocate failed due to no healthy devices present"},
            Reason.NODE_REJECTED_POD,
        ),
        (
            {"reason": "OutOfnvidia.com/gpu", "message": "Node didn't have enough resource: nvidia.com/gpu"},
            Reason.NODE_REJECTED_POD,
        ),
        (
            {"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."},
            Reason.POD_LOST,
        ),
    ],
)
def test_a_pod_rejected_by_its_node_is_distinguished_from_a_lost_one(status: dict[str, Any], reason: Reason) -> None:
    """The first is limited, the second is caused by the platform."""
    cause = failures.of_pod(a_pod(**status))
    assert cause is not None
    assert cause.reason is reason
    assert status["message"] in cause.message


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(500, 'failed calling webhook "jobs.example.com"', taken=False), Reason.WEBHOOK_UNAVAILABLE),
        (Refusal(409, "", taken=True), Reason.NAME_CONFLICT),
        (Refusal(403, "exceeded quota: team, requested: count/jobs.batch=1", taken=False), Reason.QUOTA_EXCEEDED),
        (Refusal(403, "admission webhook denied", taken=False), Reason.POD_REJECTED),
        (Refusal(422, "spec.template.spec.tolerations: Invalid value", taken=False), Reason.INVALID_SPEC),
    ],
)
def test_a_rejected_job_is_reported(refusal: Refusal, reason: Reason) -> None:
    """With the status code and message of the API server."""
    assert failures.of_refusal(PREPARE, "support-prepare-1", refusal).reason is reason


def test_every_failure_has_remedy_actor_and_retryability() -> None:
    """As the list of reasons defines them."""
    for reason, known in FAILURES.items():
        status = failures.Cause("train", reason, "message").status(generation=3)
        assert (status.remedy, status.actor, status.retryable) == (known.remedy, known.actor, known.retryable)
        assert status.observed_generation == 3


def test_a_long_message_is_shortened_in_the_middle() -> None:
    """Events are limited to 1024 characters; start and end are the most useful parts."""
    message = failures.shortened(f"begin {'x' * 5000} end")
    assert len(message) <= failures.MESSAGE_LENGTH
    assert message.startswith("begin")
    assert message.endswith("end")
