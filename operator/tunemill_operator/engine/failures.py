"""Determines failure reasons from pods, Jobs, events and rejected requests.

A stage that fails reports its reason itself. Everything else (a killed container, a lost node, a missing image or
Secret) is determined from the objects here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunemill_api.failures import FAILURES, Actor, ExitCode, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.plain_text import plain
from tunemill_api.status import FailureStatus

from tunemill_operator.engine.attempts import report_of
from tunemill_operator.engine.objects import Container, Job, Pod
from tunemill_operator.engine.observe import Observed, Refusal, WarningEvent
from tunemill_operator.engine.stages import Work
from tunemill_operator.engine.volumes import field_of, model_claim, secrets_of

MESSAGE_LENGTH = 1000
"""Maximum length of a message in characters. Events allow 1024."""

_IMAGE_REASONS = {
    "ErrImagePull": True,
    "ImagePullBackOff": True,
    "ImageInspectError": True,
    "RegistryUnavailable": True,
    "InvalidImageName": False,
    "ErrImageNeverPull": False,
    "SignatureValidationFailed": False,
}
"""Waiting reasons of image problems, and whether another attempt of the kubelet can succeed."""
_REJECTED = re.compile("OutOf|UnexpectedAdmissionError|NodeAffinity|TopologyAffinityError|Preempting|AppArmor|PodOS")
"""Reasons with which a kubelet rejects a pod before it starts a container. DisruptionTarget is not set then."""
_DEVICE_PLUGIN = "UnexpectedAdmissionError"
"""Reason of a pod that did not get its device from the device plugin."""
BAD_NODE_REASONS = frozenset({Reason.CUDA_UNAVAILABLE, Reason.DISK_FULL})
"""Failures that point to the node. The run continues on another node."""
_RETRIES_USED_UP = (
    "The retries of spec.retry.limit are used up: set the annotation tunemill.dev/requested-at to a new value to try "
    "again."
)
_REPORT_GONE = (
    "Read the log of the pod where logs are collected, then set the annotation tunemill.dev/requested-at to a new "
    "value to run the stage again."
)
_START_REASONS = {"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError"}


@dataclass(frozen=True)
class Cause:
    """Why a stage failed or cannot start."""

    stage: str
    reason: Reason
    message: str
    remedy: str = ""
    """Empty means the default remedy of the reason."""
    exit_code: int | None = None
    transient: bool = False
    """Whether the problem often disappears within seconds: a throttled registry, a restarting webhook."""

    def status(self, generation: int, *, final: bool = False) -> FailureStatus:
        """Return the failure for the status. `final` means that the run has ended with it."""
        known = FAILURES[self.reason]
        return FailureStatus(
            stage=self.stage,
            reason=self.reason,
            message=shortened(self.message),
            remedy=self.remedy or known.remedy,
            exit_code=self.exit_code,
            actor=known.actor,
            retryable=known.retryable,
            observed_generation=generation,
            final=final,
        )

    def after_retries(self) -> "Cause":
        """Return the cause for the end of a run, with a remedy that does not promise another retry."""
        known = FAILURES[self.reason]
        promises = not self.remedy and known.retryable and known.actor is Actor.NOBODY
        return replace(self, remedy=_RETRIES_USED_UP) if promises else self


def of_pod(pod: Pod) -> Cause | None:
    """Return why a pod failed. None if it has not failed.

    A pod has failed when one of its stages has failed, even if a sidecar keeps it running.
    """
    container = pod.failed_stage
    if pod.phase != "Failed" and container is None:
        return None
    stage = _current_stage(pod)
    if pod.reason == "Evicted":
        return Cause(stage, Reason.EVICTED, pod.message or "the kubelet evicted the pod")
    if container is None and _REJECTED.match(pod.reason):
        where = f"node {pod.node}" if pod.node else "the node"
        return Cause(stage, Reason.NODE_REJECTED_POD, f"{where} rejected the pod: {pod.reason}: {pod.message}")
    if container is None:
        return _of_other_container(pod, stage) or _of_lost_pod(pod, stage)
    return _of_container(container, pod)


def on_bad_node(pod: Pod) -> bool:
    """Return whether a pod failed for a reason that points to its node."""
    if not pod.node:
        return False
    cause = of_pod(pod)
    rejected = pod.phase == "Failed" and pod.reason == _DEVICE_PLUGIN
    return cause is not None and (cause.reason in BAD_NODE_REASONS or rejected)


def of_failed_job(work: Work, job: Job, pods: Sequence[Pod]) -> Cause:
    """Return why a Job failed: the cause of its last failed pod, else the message of the Job controller."""
    causes = [cause for pod in pods if not pod.disrupted and (cause := of_pod(pod))]
    if causes:
        return causes[-1].after_retries()
    code = re.search(r"exit code (\d+)", job.failed_message)
    message = f"Job {job.meta.name} failed ({job.failed_reason}): {job.failed_message}; its pods no longer exist"
    return Cause(work.stages[0], Reason.POD_LOST, message, _REPORT_GONE, int(code[1]) if code else None)


def of_lost_report(work: Work, job: Job, times: int) -> Cause:
    """Return the failure of a Job that completed several times, but whose pods and reports were never observed."""
    message = f"Job {job.meta.name} is complete, but its pods and their report no longer exist; this happened {times}"
    return Cause(work.stages[0], Reason.REPORT_LOST, f"{message} times")


def of_deleted_job(work: Work, name: str, times: int) -> Cause:
    """Return the failure of a run whose Job was deleted several times."""
    message = f"Job {name} was deleted {times} times by another client before its stages had ended"
    return Cause(work.stages[0], Reason.JOB_DELETED, message)


def of_unreported(work: Work, job: Job) -> Cause:
    """Return the failure of a Job whose containers succeeded without a report."""
    return Cause(
        work.stages[0],
        Reason.INTERNAL_ERROR,
        f"Job {job.meta.name} is complete, but a container left no report as its termination message: "
        "the trainer image is not compatible with this version of the operator",
        exit_code=0,
    )


def of_refusal(work: Work, name: str, refusal: Refusal) -> Cause:
    """Return why the API server rejected a Job."""
    stage = work.stages[0]
    if refusal.taken:
        return Cause(stage, Reason.NAME_CONFLICT, f"a Job {name} exists, but it does not belong to this object")
    if "exceeded quota" in refusal.message:
        return _of_quota(work, refusal.message)
    if refusal.code >= 500:
        return Cause(stage, Reason.WEBHOOK_UNAVAILABLE, refusal.message, transient=True)
    if refusal.code == 403:
        return Cause(stage, Reason.POD_REJECTED, refusal.message)
    return Cause(stage, Reason.INVALID_SPEC, f"the API server rejected Job {name}: {refusal.message}")


def blocking(spec: FineTuneSpec, work: Work, job: Job, observed: Observed) -> Cause | None:
    """Return what prevents the pod of an active Job from starting and needs someone to act. None if nothing does."""
    live = [pod for pod in observed.pods_of(job) if not pod.terminal]
    for pod in live:
        if claim := re.search(r'persistentvolumeclaim "([^"]+)" not found', pod.unschedulable):
            cached = claim[1] == model_claim(spec, work.label)
            field = field_of(spec, "models") if cached else f"{_template(work)}.volumes"
            message = f'the PersistentVolumeClaim "{claim[1]}" of {field} does not exist'
            return Cause(work.stages[0], Reason.CLAIM_NOT_FOUND, message)
        # Once a stage has started, a sidecar that cannot start does not block it.
        waiting = pod.stages if any(item.started_at for item in pod.stages) else pod.containers
        for container in waiting:
            if cause := _of_waiting(container, work, spec):
                return cause
    warning_events = observed.warning_events_about([job.meta.uid] if not live else [pod.meta.uid for pod in live])
    return next((cause for item in warning_events if (cause := _of_warning_event(item, work, spec))), None)


def of_lost_node(work: Work, pod: Pod) -> Cause:
    """Return the failure for a pod that its node does not end."""
    since = f"{pod.ends_by:%Y-%m-%d %H:%M:%S} UTC" if pod.ends_by else "an earlier time"
    message = f"pod {pod.meta.name} should have ended by {since}, but node {pod.node or '(none)'} does not respond"
    return Cause(work.stages[0], Reason.NODE_LOST, message)


def unschedulable_reason(unschedulable: str, work: Work) -> str:
    """Return as text which resources, labels or tolerations the scheduler missed, with the fields of the spec."""
    found, template = [], _template(work)
    if resources := sorted(set(re.findall(r"Insufficient ([\w./-]+\w)", unschedulable))):
        found.append(f"no node has enough free {', '.join(resources)}")
    if re.search(r"didn't match Pod's node affinity|didn't match node selector", unschedulable):
        found.append(f"no node matches {template}.nodeSelector and affinity")
    if taints := sorted(set(re.findall(r"untolerated taint\(?s?\)? (\{[^}]*\})", unschedulable))):
        found.append(f"{template}.tolerations does not tolerate {', '.join(taints)}")
    if "unbound immediate PersistentVolumeClaims" in unschedulable:
        found.append(f"a PersistentVolumeClaim of spec.compute.modelCache or {template} is not bound")
    return "; ".join(found)


def _template(work: Work) -> str:
    return f"spec.podTemplates.{work.label}"


def shortened(message: str) -> str:
    """Return the message without control characters. The middle of a message that is too long is removed."""
    message = plain(" ".join(message.split()))
    if len(message) <= MESSAGE_LENGTH:
        return message
    half = MESSAGE_LENGTH // 2 - 2
    return f"{message[:half]} … {message[-half:]}"


def _current_stage(pod: Pod) -> str:
    """Return the name of the running stage, or of the next one."""
    open_ones = [item.name for item in pod.stages if not (item.ended and item.ended.exit_code == 0)]
    return open_ones[0] if open_ones else "prepare"


def _of_other_container(pod: Pod, stage: str) -> Cause | None:
    """Return the cause if a container that is not a stage has failed the pod."""
    other = next((item for item in pod.containers if item.ended and item.ended.exit_code), None)
    if other is None or other.ended is None or pod.disrupted:
        return None
    said = f"; last output: {other.ended.message}" if other.ended.message else ""
    message = f"container {other.name}, which Tunemill did not add, failed with exit code {other.ended.exit_code}{said}"
    return Cause(stage, Reason.SIDECAR_FAILED, message, exit_code=other.ended.exit_code)


def _of_lost_pod(pod: Pod, stage: str) -> Cause:
    said = pod.message or pod.reason or pod.disrupted
    message = f"pod {pod.meta.name} ended without a report{f': {said}' if said else ''}"
    return Cause(stage, Reason.POD_LOST, message)


def _of_container(container: Container, pod: Pod) -> Cause:
    ended = container.ended
    if ended is None:
        raise ValueError(f"container {container.name} of pod {pod.meta.name} has not ended")
    report = report_of(container)
    if report and report.failure:
        failure = report.failure
        return Cause(container.name, failure.reason, failure.message, failure.remedy, ended.exit_code)
    if ended.reason == "OOMKilled":
        message = f"container {container.name} exceeded its memory limit and was killed"
        return Cause(container.name, Reason.OUT_OF_MEMORY, message, exit_code=ended.exit_code)
    if pod.disrupted:
        message = f"pod {pod.meta.name} was disrupted: {pod.disrupted}"
        return Cause(container.name, Reason.POD_LOST, message, exit_code=ended.exit_code)
    if ended.reason in _START_REASONS:
        return _of_start(container.name, ended.message)
    said = f"; last output: {ended.message}" if ended.message else ""
    message = f"container {container.name} exited without a report (exit code {ended.exit_code}){said}"
    return Cause(container.name, _reason_of_exit_code(ended.exit_code), message, exit_code=ended.exit_code)


def _reason_of_exit_code(code: int) -> Reason:
    """Return the reason for an exit code without a report. Ambiguous codes are InternalError."""
    if code in (ExitCode.INTERRUPTED, 143):  # 143: SIGTERM before the stage could handle it
        return Reason.INTERRUPTED
    if code == 137:  # SIGKILL, and not for memory: the container runtime or the node ended it
        return Reason.POD_LOST
    return Reason.INVALID_SPEC if code == ExitCode.SPEC_WRONG else Reason.INTERNAL_ERROR


def _of_waiting(container: Container, work: Work, spec: FineTuneSpec) -> Cause | None:
    """Return why a container cannot start, from its waiting reason. None if it is only starting."""
    reason, message = container.waiting_reason, container.waiting_message
    stage = container.name if container.name in work.stages else work.stages[0].value
    if reason in _IMAGE_REASONS:
        if container.image and container.image not in message:
            message = f'image "{container.image}": {message or reason}'
        return Cause(stage, Reason.IMAGE_PULL_FAILED, message, transient=_IMAGE_REASONS[reason])
    if reason == "CreateContainerConfigError":
        return _of_missing(stage, message, spec)
    if reason in _START_REASONS:
        return replace(_of_start(stage, message), transient=reason == "CreateContainerError")
    return None


def _of_start(stage: str, message: str) -> Cause:
    if re.search(r"nvidia-container|libnvidia|nvml|CDI device|driver error", message, re.IGNORECASE):
        return Cause(stage, Reason.CUDA_UNAVAILABLE, f"the node cannot attach the GPU to the container: {message}")
    return Cause(
        stage,
        Reason.IMAGE_PULL_FAILED,
        f"the image has no executable tunemill-trainer: {message}",
    )


def classify_pod_creation_error(message: str) -> tuple[Reason, str]:
    """Return the reason for which the API server rejected a pod, and the part of the pod template that is at fault.

    The first pattern that matches decides: messages of webhooks may contain the words of the others.
    """
    for pattern, reason, part in _POD_CREATION_ERRORS:
        if re.search(pattern, message):
            return reason, part
    return Reason.POD_REJECTED, ""


_POD_CREATION_ERRORS = (
    (r"failed call(ing|ed)? .*webhook|failed to call webhook", Reason.WEBHOOK_UNAVAILABLE, ""),
    (r'serviceaccount "[^"]+" not found', Reason.SERVICE_ACCOUNT_NOT_FOUND, ""),
    (r"quota|(usage|ratio) per ", Reason.QUOTA_EXCEEDED, ""),
    (r"no PriorityClass with name", Reason.INVALID_SPEC, ".priorityClassName"),
    (r"RuntimeClass", Reason.INVALID_SPEC, ".runtimeClassName"),
    (r" is invalid: ", Reason.INVALID_SPEC, " results in an invalid pod"),
)
"""Patterns of messages, the reason, and the part of the pod template."""


def _of_warning_event(event: WarningEvent, work: Work, spec: FineTuneSpec) -> Cause | None:
    stage = work.stages[0].value
    if event.reason == "FailedMount":
        return _of_missing(stage, event.message, spec) or _of_volume(stage, event.message, spec)
    if event.reason == "FailedAttachVolume":
        return _of_volume(stage, event.message, spec)
    if event.reason == "FailedCreatePodSandBox":
        return Cause(stage, Reason.SANDBOX_FAILED, event.message, transient=True)
    if event.reason != "FailedCreate" or "is being terminated" in event.message:
        return None
    reason, part = classify_pod_creation_error(event.message)
    if reason is Reason.QUOTA_EXCEEDED:
        return _of_quota(work, event.message)
    message = f"{_template(work)}{part}: {event.message}" if part else event.message
    return Cause(stage, reason, message, transient=reason is Reason.WEBHOOK_UNAVAILABLE)


def _of_quota(work: Work, message: str) -> Cause:
    """Return the cause for a pod that a quota or LimitRange rejects, with the fields to set if requests are missing."""
    stage = work.stages[0].value
    required = re.search(r"must specify (.+)", message)
    if required is None:
        return Cause(stage, Reason.QUOTA_EXCEEDED, message)
    fields = []
    for name in re.findall(r"(?:limits|requests)\.[\w./-]*\w|\b(?:cpu|memory|ephemeral-storage)\b", required[1]):
        field = name if "." in name else f"requests.{name}"
        fields.append(f"{_template(work)}.resources.{field}")
    if not fields:
        return Cause(stage, Reason.QUOTA_EXCEEDED, message)
    named = ", ".join(dict.fromkeys(fields))
    remedy = f"Set {named}, or create a LimitRange with defaults in the namespace. The run then continues."
    return Cause(stage, Reason.QUOTA_EXCEEDED, f"the namespace's ResourceQuota requires {named}: {message}", remedy)


def _of_missing(stage: str, message: str, spec: FineTuneSpec) -> Cause | None:
    """Return the cause for a missing Secret or ConfigMap. None if the event is about something else."""
    volume = re.search(r'for volume "([^"]+)"', message)
    field = field_of(spec, volume[1]) if volume else ""
    where = f" of {field}" if field else ""
    if secret := re.search(r'secret "([^"]+)" not found', message):
        return Cause(stage, Reason.SECRET_NOT_FOUND, f'the Secret "{secret[1]}"{where} does not exist')
    if config_map := re.search(r'configmap "([^"]+)" not found', message):
        return Cause(stage, Reason.CONFIG_MAP_NOT_FOUND, f'the ConfigMap "{config_map[1]}"{where} does not exist')
    if key := re.search(r"non-existent secret key: (\S+)", message):
        ref = secrets_of(spec).get(volume[1]) if volume else None
        name = f' "{ref.name}"' if ref else ""
        return Cause(stage, Reason.SECRET_NOT_FOUND, f'the Secret{name}{where} has no key "{key[1]}"')
    if key := re.search(r"non-existent config key: (\S+)", message):
        return Cause(stage, Reason.CONFIG_MAP_NOT_FOUND, f'the ConfigMap{where} has no key "{key[1]}"')
    return None


def _of_volume(stage: str, message: str, spec: FineTuneSpec) -> Cause | None:
    """Return the cause for a model cache that cannot be mounted. None if the event is about something else."""
    claim = spec.compute.model_cache.claim_name
    if not claim or not re.search(r"Multi-Attach|AttachVolume|\bmodels\b", message):
        return None
    message = f'the PersistentVolumeClaim "{claim}" of {field_of(spec, "models")}: {message}'
    return Cause(stage, Reason.VOLUME_UNAVAILABLE, message, transient=True)
