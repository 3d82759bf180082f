"""Typed views of Kubernetes objects for the engine. The caches hold nothing else of an object.

An object arrives as JSON from the API server. Fields that the engine does not read are dropped immediately, so that a
cached object takes a few kilobytes, even with large annotations.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from tunemill_api.compute import MAX_NODES
from tunemill_api.constants import (
    ANNOTATION_GENERATION,
    ANNOTATION_KEY,
    ANNOTATION_REQUESTED_AT,
    GROUP,
    LABEL_FINETUNE,
    LABEL_PRIORITY,
    LABEL_QUEUE,
    LABEL_STAGE,
)
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.plain_text import parsed
from tunemill_api.run_spec import UID
from tunemill_api.stage_report import Stage, StageReport, reports_in
from tunemill_api.status import FineTuneStatus, MetricFacts

ANNOTATION_POD = f"{GROUP}/pod"
"""On Jobs: digest of the pod settings in the spec. An active Job with another digest is replaced."""

ANNOTATION_MEMORY_KILLS = f"{GROUP}/memory-kills"
"""On train Jobs: number of earlier pods that exceeded their memory limit. The pod then computes less at once."""

LABEL_JOB_NAME = "batch.kubernetes.io/job-name"
"""Set by the Job controller on the pods of a Job. It stays after `kubectl delete --cascade=orphan`."""

ANNOTATION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Set by the Job controller on the pods of an Indexed Job, as annotation and as label."""

FIRST: Final = 0
"""Index of the pod that coordinates the others, reports progress, saves checkpoints and writes the outputs."""

_JOB_SUFFIX = re.compile("(prepare|train|publish)-[0-9a-f]{8}")
_NUMBER = re.compile("[0-9]{1,15}")
_SHARE = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
_STAGES = frozenset(stage.value for stage in Stage)

NODE_LOST_AFTER = timedelta(seconds=60)
"""A pod that has not ended this long after its grace period is on a node that does not respond."""

REFUSALS = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.PROFILE_NOT_FOUND,
        Reason.PROFILE_NOT_ALLOWED,
        Reason.PROFILE_AMBIGUOUS,
        Reason.PROFILE_INVALID,
        Reason.LIMIT_EXCEEDED,
    }
)
"""Failures of an object whose spec may not have become a run."""

LARGEST_BYTES = 512 * 1024
"""Maximum size of a FunctionCallFineTune as JSON. etcd allows 1.5 MiB; a few hundred such objects would fill the
memory."""

LARGEST_COUNT = 10**12
"""Maximum number that a pod may report. The API server rejects a status with more than 64 bits."""

Json = Mapping[str, Any]
"""An object as returned by the API server."""


@dataclass(frozen=True, slots=True)
class Meta:
    """Metadata of an object."""

    namespace: str
    """Empty for cluster-scoped objects."""
    name: str
    uid: str
    resource_version: int
    created_at: datetime
    deleting: bool
    finetune: str
    """Name of the FunctionCallFineTune to which a Job or pod belongs. Empty for other objects."""
    owner: str
    """Uid of the controller. Empty if there is none."""
    owner_job: str = ""
    """Name of the Job that is or was the controller. Empty if there is none."""

    @property
    def serves_finetune(self) -> bool:
        """Whether the pod belongs to a Job with a name that the operator uses for the object.

        The label alone is not sufficient: users may copy it to other pods and Jobs.
        """
        return _is_job_name(self.owner_job, self.finetune)


@dataclass(frozen=True)
class FineTune:
    """A FunctionCallFineTune."""

    meta: Meta
    generation: int
    requested_at: str
    spec: FineTuneSpec | None
    """None if the spec does not match the model, which happens if CRD and operator have different versions."""
    spec_error: str
    status: FineTuneStatus

    @property
    def requested(self) -> str:
        """Requests in addition to the spec: the annotation requested-at and the last scheduled time."""
        retrain = self.status.retrain
        scheduled = f"@{retrain.last_time:%Y-%m-%dT%H:%MZ}" if retrain and retrain.last_time else ""
        return f"{self.requested_at}{scheduled}"

    @property
    def request_token(self) -> str:
        """Hash of generation and requests: eight hexadecimal digits. It changes with every edit and every request."""
        return hashlib.sha256(f"{self.generation} {self.requested}".encode()).hexdigest()[:8]

    @property
    def run_started(self) -> bool:
        """Whether a run with the current spec and request is recorded."""
        run = self.status.run
        if run is None:
            return False
        if run.request_token:
            return run.request_token == self.request_token
        # The operator of commit 7ae990e recorded no token. It also recorded the generation of a rejected spec.
        failure = self.status.failure
        refused = failure is not None and failure.reason in REFUSALS
        return self.status.observed_generation == self.generation and not refused


@dataclass(frozen=True, slots=True)
class StoredFineTune:
    """A FunctionCallFineTune in the cache, as text. This takes a tenth of the memory of its models."""

    meta: Meta
    phase: str
    """Empty until a status has been written."""
    text: bytes
    """JSON of the object, without fields that the engine does not read."""

    def view(self) -> FineTune:
        """Return the typed view."""
        return _finetune_in(self.text)


@dataclass(frozen=True, slots=True)
class Job:
    """A Job of the operator."""

    meta: Meta
    label: str
    """`prepare`, `train` or `publish`."""
    key: str
    generation: int
    requested: str
    pod_digest: str
    memory_kills: int | None
    """None on other Jobs than train, and on Jobs of an operator that did not record it."""
    queue: str
    """LocalQueue of Kueue. Empty if the Job is not queued."""
    priority: str
    """WorkloadPriorityClass. Empty if none is set."""
    suspended: bool
    complete: bool
    failed: bool
    failed_reason: str
    failed_message: str
    finished_at: datetime | None
    nodes: int = 1
    """Number of pods that run its stages together."""

    @property
    def finished(self) -> bool:
        """Whether the Job has completed or failed."""
        return self.complete or self.failed

    @property
    def named_by_operator(self) -> bool:
        """Whether its name is one that the operator uses for Jobs of the object in its label."""
        return _is_job_name(self.meta.name, self.meta.finetune)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a container."""

    exit_code: int
    reason: str
    message: str
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Container:
    """An init container or container of a pod."""

    name: str
    image: str
    waiting_reason: str
    waiting_message: str
    started_at: datetime | None
    ended: Ended | None

    @property
    def running(self) -> bool:
        """Whether the container is running."""
        return self.started_at is not None and self.ended is None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod whose controller is a Job of the operator."""

    meta: Meta
    phase: str
    reason: str
    message: str
    unschedulable: str
    """Message of the scheduler while no node fits. Empty otherwise."""
    disrupted: str
    """Reason of a disruption (preemption, drain, eviction). Empty if there is none."""
    node: str
    """Node of the pod. Empty if it is not scheduled."""
    ends_by: datetime | None
    """End of the grace period, if the pod is being deleted."""
    containers: tuple[Container, ...]
    """All containers, including sidecars. One entry per stage, even if train and evaluate share a container."""
    shared: bool = False
    """Whether train and evaluate share a container."""
    index: int | None = None
    """Index of the pod in a Job with several nodes. None in other Jobs."""
    scheduled_at: datetime | None = None
    """When the pod was assigned to its node."""

    @property
    def stages(self) -> tuple[Container, ...]:
        """The containers of the stages, without sidecars."""
        return tuple(container for container in self.containers if container.name in _STAGES)

    @property
    def failed_stage(self) -> Container | None:
        """The container of the failed stage, if there is one."""
        return next((item for item in self.stages if item.ended and item.ended.exit_code), None)

    @property
    def terminal(self) -> bool:
        """Whether the pod has succeeded or failed."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def stages_ended(self) -> bool:
        """Whether no stage will run in the pod again, although a sidecar may still run."""
        if self.terminal or self.failed_stage:
            return True
        return bool(self.stages) and all(item.ended for item in self.stages)

    @property
    def stages_ended_at(self) -> datetime | None:
        """When the last stage container ended. None if one may still run."""
        times = [item.ended.finished_at for item in self.stages if item.ended and item.ended.finished_at]
        return max(times, default=None) if self.stages_ended else None

    def lost(self, now: datetime) -> bool:
        """Return whether the node has not ended the pod within its grace period."""
        return not self.stages_ended and self.ends_by is not None and now > self.ends_by + NODE_LOST_AFTER

    def container(self, name: str) -> Container | None:
        """Return the container with this name."""
        return next((container for container in self.containers if container.name == name), None)


def stored_finetune_of(body: Json) -> StoredFineTune:
    """Return the cached form of a FunctionCallFineTune, or of the reason why it cannot be read."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    annotations = mapping(metadata.get("annotations"))
    metadata["annotations"] = {name: value for name, value in annotations.items() if name.startswith(f"{GROUP}/")}
    meta, status = meta_of(body), mapping(body.get("status"))
    generation = metadata.get("generation", 1)
    if not isinstance(generation, int) or abs(generation) > LARGEST_COUNT:
        raise TypeError("metadata.generation is not a number")
    if not re.fullmatch(UID, meta.uid):
        raise ValueError("metadata.uid is not valid")
    slim = {"metadata": metadata, "spec": body.get("spec") or {}, "status": status}
    try:
        text, problem = to_json(slim), ""
        if len(text) > LARGEST_BYTES:
            problem = f"the object is larger than {LARGEST_BYTES // 1024} KiB as JSON: make it smaller"
    except (ValueError, RecursionError) as error:  # nested too deeply, or an unpaired surrogate
        problem = f"the object cannot be read: {error}"
    if problem:
        text = _without_spec(slim, problem)
    phase = status.get("phase", "")
    return StoredFineTune(meta=meta, phase=phase if isinstance(phase, str) else "", text=text)


def _without_spec(slim: dict[str, Any], problem: str) -> bytes:
    """Return the JSON of an object without its spec, and with only the readable parts of its status.

    The failure in the status is kept, so that the operator does not write it again and again.
    """
    names = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
    metadata = {name: slim["metadata"][name] for name in names if name in slim["metadata"]}
    status = slim["status"]
    short = {name: status[name] for name in ("observedGeneration", "phase", "failure") if _is_short(status.get(name))}
    short["conditions"] = [each for each in _mappings(status.get("conditions")) if _is_short(each)]
    try:
        text = to_json({"metadata": metadata, "spec": {}, "status": status, "problem": problem})
        if len(text) <= LARGEST_BYTES:
            return text
    except (ValueError, RecursionError):
        pass
    return to_json({"metadata": metadata, "spec": {}, "status": short, "problem": problem})


def _is_short(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    try:
        return value is not None and len(to_json(value)) <= 8192
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=256)
def _finetune_in(text: bytes) -> FineTune:
    return finetune_of(from_json(text))


def finetune_of(body: Json) -> FineTune:
    """Return the view of a FunctionCallFineTune."""
    spec, error = None, body.get("problem", "")
    try:
        spec = None if error else FineTuneSpec.model_validate(_queued(body))
    except ValidationError as invalid:
        error = "; ".join(_invalid_field(found["loc"], found["type"], found["msg"]) for found in invalid.errors()[:5])
    metadata = body["metadata"]
    return FineTune(
        meta=meta_of(body),
        generation=int(metadata.get("generation", 1)),
        requested_at=_text(mapping(metadata.get("annotations")).get(ANNOTATION_REQUESTED_AT)),
        spec=spec,
        spec_error=error,
        status=_status_in(mapping(body.get("status"))),
    )


def _status_in(status: Json) -> FineTuneStatus:
    """Return the readable parts of a status. The rest is computed again.

    Unreadable parts were written by another client, and server-side apply does not overwrite them. Conditions must be
    read, or their transition times would change with every write.
    """
    try:
        return _checked(status)
    except ValueError:
        readable = FineTuneStatus()
        for name, value in status.items():
            try:
                part = _checked({name: value})
            except ValueError:
                continue
            readable = readable.model_copy(update={field: getattr(part, field) for field in part.model_fields_set})
        return readable


def _checked(status: Json) -> FineTuneStatus:
    found = FineTuneStatus.model_validate(status)
    check_figures(found)
    return found


def _queued(body: Json) -> Any:  # noqa: ANN401 - what stands there may be no spec
    """Return the spec, with the queue of the object's labels if the spec has none.

    Users of Kueue set its labels on objects, and kustomize sets labels on all objects.
    """
    spec, labels = body.get("spec") or {}, mapping(body["metadata"].get("labels"))
    if not isinstance(spec, dict):
        return spec
    if not labels.get(LABEL_QUEUE) or spec.get("queue"):
        return spec
    priority = {"priorityClass": labels[LABEL_PRIORITY]} if labels.get(LABEL_PRIORITY) else {}
    return {**spec, "queue": {"name": labels[LABEL_QUEUE], **priority}}


def _invalid_field(location: tuple[int | str, ...], kind: str, message: str) -> str:
    field = f"spec.{'.'.join(str(part) for part in location)}"
    # The API server drops or rejects fields that the CRD does not have.
    unknown = "unknown field, because the CRD is newer than the operator: upgrade the operator"
    return f"{field}: {unknown if kind == 'extra_forbidden' else message}"


def job_of(body: Json) -> Job:
    """Return the view of a Job."""
    annotations, labels = (mapping(body["metadata"].get(name)) for name in ("annotations", "labels"))
    conditions = {
        _text(each.get("type")): each
        for each in _mappings(mapping(body.get("status")).get("conditions"))
        if each.get("status") == "True"
    }
    end = conditions.get("Complete") or conditions.get("Failed") or {}
    failed = conditions.get("Failed") or {}
    return Job(
        meta=meta_of(body),
        label=_text(labels.get(LABEL_STAGE)),
        key=_text(annotations.get(ANNOTATION_KEY)),
        generation=_number(annotations.get(ANNOTATION_GENERATION)) or 0,
        requested=_text(annotations.get(ANNOTATION_REQUESTED_AT)),
        pod_digest=_text(annotations.get(ANNOTATION_POD)),
        memory_kills=_number(annotations.get(ANNOTATION_MEMORY_KILLS)),
        queue=_text(labels.get(LABEL_QUEUE)),
        priority=_text(labels.get(LABEL_PRIORITY)),
        suspended=mapping(body.get("spec")).get("suspend") is True,
        complete="Complete" in conditions,
        failed=bool(failed),
        failed_reason=_text(failed.get("reason")),
        failed_message=_text(failed.get("message")),
        finished_at=_time(end.get("lastTransitionTime")),
        nodes=_nodes(mapping(body.get("spec"))),
    )


def _nodes(spec: Json) -> int:
    completions = spec.get("completions")
    indexed = spec.get("completionMode") == "Indexed" and isinstance(completions, int)
    return min(max(int(completions or 1), 1), MAX_NODES) if indexed else 1


def pod_of(body: Json) -> Pod:
    """Return the view of a pod."""
    status = mapping(body.get("status"))
    conditions = {_text(each.get("type")): each for each in _mappings(status.get("conditions"))}
    scheduled = conditions.get("PodScheduled") or {}
    disruption = conditions.get("DisruptionTarget") or {}
    statuses = [*_mappings(status.get("initContainerStatuses")), *_mappings(status.get("containerStatuses"))]
    containers = [_container(item) for item in statuses]
    names = {item.name for item in containers}
    # Older operators ran train as an init container of the pod that evaluates.
    shared = Stage.TRAIN in names and Stage.EVALUATE not in names
    return Pod(
        meta=meta_of(body),
        phase=_text(status.get("phase")) or "Pending",
        reason=_text(status.get("reason")),
        message=_text(status.get("message")),
        unschedulable=_text(scheduled.get("message")) if scheduled.get("reason") == "Unschedulable" else "",
        disrupted=(_text(disruption.get("reason")) or "Disrupted") if disruption.get("status") == "True" else "",
        node=_text(mapping(body.get("spec")).get("nodeName")),
        ends_by=_time(body["metadata"].get("deletionTimestamp")),
        containers=tuple(part for item in containers for part in (_stages_of(item) if shared else [item])),
        shared=shared,
        index=_index(body["metadata"]),
        scheduled_at=_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
    )


def _index(metadata: Json) -> int | None:
    labels, annotations = (mapping(metadata.get(name)) for name in ("labels", "annotations"))
    return _number(labels.get(ANNOTATION_INDEX) or annotations.get(ANNOTATION_INDEX))


def reports_of(container: Container) -> tuple[StageReport, ...]:
    """Return the reports in the termination message of a container."""
    if container.ended is None:
        return ()
    return tuple(reports_in(container.ended.message, _report))


def _report(text: str) -> StageReport:
    report = parsed(StageReport, text)
    check_figures(report)
    return report


def check_figures(model: BaseModel) -> None:
    """Check that the numbers and times of a report or status can be processed and written.

    Raises:
        ValueError: a number is too large, a metric is not a number, or a time has no time zone.
    """
    if isinstance(model, MetricFacts):
        for share in (model.base, model.tuned, model.published, model.adapter):
            if share and not _SHARE.fullmatch(share):
                raise ValueError(f"the metric {model.name} is not a number")
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                check_figures(item)
            elif isinstance(item, int) and abs(item) > LARGEST_COUNT:
                raise ValueError(f"{name} is larger than {LARGEST_COUNT}")
            elif isinstance(item, datetime) and item.tzinfo is None and not isinstance(model, StageReport):
                raise ValueError(f"{name} has no time zone")


def end_within(container: Container, report: StageReport, latest: datetime | None) -> datetime:
    """Return the end of a stage from its report, limited to the start of the container and `latest`.

    The report may come from a custom image. Times of containers have whole seconds.
    """
    time = report.finished_at.replace(microsecond=0)
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    time = min(time, latest) if latest else time
    return max(time, container.started_at) if container.started_at else time


def _stages_of(container: Container) -> list[Container]:
    """Return the container, split into train and the following stage if its message says that train is done."""
    ended = container.ended
    if container.name != Stage.TRAIN or ended is None or container.started_at is None:
        return [container]
    done = next((item for item in reports_of(container) if item.stage is Stage.TRAIN and not item.failure), None)
    if done is None:
        return [container]
    time = end_within(container, done, ended.finished_at)
    rest = "\n".join(line for line in ended.message.split("\n") if not _is_of(Stage.TRAIN, line))
    return [
        replace(container, ended=Ended(0, "Completed", done.termination_message(), time)),
        replace(container, name=Stage.EVALUATE.value, started_at=time, ended=replace(ended, message=rest)),
    ]


def _is_of(stage: Stage, line: str) -> bool:
    return any(report.stage is stage for report in reports_in(line))


def _container(status: Json) -> Container:
    state = mapping(status.get("state"))
    waiting, running, ended = (mapping(state.get(name)) for name in ("waiting", "running", "terminated"))
    code = ended.get("exitCode", 0)
    return Container(
        name=_text(status.get("name")),
        image=_text(status.get("image")),
        waiting_reason=_text(waiting.get("reason")),
        waiting_message=_text(waiting.get("message")),
        started_at=_time(running.get("startedAt") or ended.get("startedAt")),
        ended=Ended(
            exit_code=code if isinstance(code, int) and abs(code) < 2**31 else 1,
            reason=_text(ended.get("reason")),
            message=_text(ended.get("message")),
            finished_at=_time(ended.get("finishedAt")),
        )
        if ended
        else None,
    )


def meta_of(body: Json) -> Meta:
    """Return the metadata of an object.

    Raises:
        KeyError: the object is not from the API server.
        TypeError: the same.
        ValueError: the same.
    """
    metadata = body["metadata"]
    labels = mapping(metadata.get("labels"))
    owners = _mappings(metadata.get("ownerReferences"))
    controller: Json = next((owner for owner in owners if owner.get("controller")), {})
    job = _text(controller.get("name")) if controller.get("kind") == "Job" else ""
    name, uid = metadata["name"], metadata["uid"]
    if not isinstance(name, str) or not isinstance(uid, str):
        raise TypeError("the name or the uid is not a string")
    return Meta(
        namespace=_text(metadata.get("namespace")),
        name=name,
        uid=uid,
        resource_version=int(metadata["resourceVersion"]),
        created_at=_required_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        finetune=_text(labels.get(LABEL_FINETUNE)),
        owner=_text(controller.get("uid")),
        owner_job=job if controller else _text(labels.get(LABEL_JOB_NAME)),
    )


def _is_job_name(name: str, finetune: str) -> bool:
    """Return whether the name is one that `Work.job_name` generates for the object."""
    prefix = f"{finetune}-"
    return name.startswith(prefix) and _JOB_SUFFIX.fullmatch(name, len(prefix)) is not None


def _time(text: str | None) -> datetime | None:
    """Return the time, or None if it is invalid or the epoch.

    Container runtimes write the epoch for a container that never started. Users can write the status of their pods and
    Jobs, so it may contain any text.
    """
    if not text:
        return None
    try:
        time = _required_time(text)
    except (ValueError, TypeError):
        return None
    return time if time.timestamp() > 0 else None


def _required_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time


def _number(text: object) -> int | None:
    """Return the non-negative integer in an annotation, or None. Anyone can write annotations."""
    return int(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def mapping(value: object) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
