"""The typed, slim views of Kubernetes objects that the engine decides on; the caches hold nothing else of an object.

An object arrives as the JSON that the API server sent. What the engine does not read is dropped at once, so that a
cached object costs a few kilobytes, whatever users put into their annotations.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
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
"""On Jobs: a digest of what the spec says about the pod beyond the work; a live Job with another one is replaced."""

ANNOTATION_MEMORY_KILLS = f"{GROUP}/memory-kills"
"""On Jobs that train: how many pods before had needed more memory than their limit. The pod computes less at once."""

LABEL_JOB_NAME = "batch.kubernetes.io/job-name"
"""Set by the Job controller on the pods of a Job. It stays when the Job is deleted with --cascade=orphan."""

_JOB_SUFFIX = re.compile("(prepare|train|publish)-[0-9a-f]{8}")
_NUMBER = re.compile("[0-9]{1,15}")
_SHARE = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
_STAGES = frozenset(stage.value for stage in Stage)

GONE_AFTER = timedelta(seconds=60)
"""A pod that has not ended so long after the end of its grace period is on a node that does not answer."""

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
"""The most bytes of a FunctionCallFineTune as JSON. etcd takes 1.5 MiB: some hundred of those would fill the memory."""

LARGEST_COUNT = 10**12
"""The largest number that a pod may report. The API server takes no status with one that has more than 64 bits."""

Json = Mapping[str, Any]
"""An object as the API server sends it."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What every object has."""

    namespace: str
    """Empty on what belongs to no namespace."""
    name: str
    uid: str
    resource_version: int
    created_at: datetime
    deleting: bool
    finetune: str
    """The name of the FunctionCallFineTune that a Job or pod works for; empty on others."""
    owner: str
    """The uid of the controller, empty when there is none."""
    owner_job: str = ""
    """The name of the Job that is or was its controller; empty when there is none."""

    @property
    def serves_finetune(self) -> bool:
        """Whether its Job has a name that the operator gives to the Jobs of the object.

        The label alone does not tell: users may copy it to pods and Jobs of their own.
        """
        return _is_job_name(self.owner_job, self.finetune)


@dataclass(frozen=True)
class FineTune:
    """A FunctionCallFineTune."""

    meta: Meta
    generation: int
    requested_at: str
    spec: FineTuneSpec | None
    """None when the spec does not fit the model, which happens when CRD and operator are of different versions."""
    spec_error: str
    status: FineTuneStatus

    @property
    def asked(self) -> str:
        """What was asked for beside the spec: to look again, by the annotation or by the schedule."""
        retrain = self.status.retrain
        scheduled = f"@{retrain.last_time:%Y-%m-%dT%H:%MZ}" if retrain and retrain.last_time else ""
        return f"{self.requested_at}{scheduled}"

    @property
    def request_token(self) -> str:
        """Changes with every edit of the spec and every request to look at the data again: eight digits."""
        return hashlib.sha256(f"{self.generation} {self.asked}".encode()).hexdigest()[:8]

    @property
    def begun(self) -> bool:
        """Whether a run is recorded that began with the spec as it is."""
        run = self.status.run
        if run is None:
            return False
        if run.request_token:
            return run.request_token == self.request_token
        # The operator of commit 7ae990e recorded no token. It wrote the generation also for a spec that it refused.
        failure = self.status.failure
        refused = failure is not None and failure.reason in REFUSALS
        return self.status.observed_generation == self.generation and not refused


@dataclass(frozen=True, slots=True)
class StoredFineTune:
    """A FunctionCallFineTune as the cache keeps it: as text, a tenth of what its models take."""

    meta: Meta
    phase: str
    """Empty until a status was written."""
    text: bytes
    """The object's JSON, without what the engine does not read."""

    def view(self) -> FineTune:
        """Return what the engine decides on."""
        return _finetune_in(self.text)


@dataclass(frozen=True, slots=True)
class Job:
    """A Job of ours."""

    meta: Meta
    label: str
    """`prepare`, `train` or `publish`."""
    key: str
    generation: int
    asked: str
    pod_digest: str
    memory_kills: int | None
    """None on Jobs that do not train, and on those of an operator that did not record it."""
    queue: str
    """The LocalQueue of Kueue that it waits in; empty when it is in none."""
    priority: str
    """The WorkloadPriorityClass; empty when it names none."""
    suspended: bool
    complete: bool
    failed: bool
    failed_reason: str
    failed_message: str
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        """Whether it will never run a pod again."""
        return self.complete or self.failed

    @property
    def named_by_operator(self) -> bool:
        """Whether its name is one that the operator gives to the Jobs of the object that its label names."""
        return _is_job_name(self.meta.name, self.meta.finetune)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended."""

    exit_code: int
    reason: str
    message: str
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Container:
    """A container, init or main, of a pod."""

    name: str
    image: str
    waiting_reason: str
    waiting_message: str
    started_at: datetime | None
    ended: Ended | None

    @property
    def running(self) -> bool:
        """Whether it works at the moment."""
        return self.started_at is not None and self.ended is None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a Job of ours; its controller is the Job."""

    meta: Meta
    phase: str
    reason: str
    message: str
    unschedulable: str
    """The scheduler's message while it finds no node; empty otherwise."""
    disrupted: str
    """Why the platform ended it (preemption, drain, eviction); empty when it did not."""
    node: str
    """The node that it is bound to; empty while there is none."""
    ends_by: datetime | None
    """The end of its grace period, once it is deleted."""
    containers: tuple[Container, ...]
    """All containers, sidecars included; one entry a stage also where train and evaluate share a container."""
    shared: bool = False
    """Whether train and evaluate are processes of one container."""

    @property
    def stages(self) -> tuple[Container, ...]:
        """The containers of the stages. What an admission policy added (sidecars) says nothing about a stage."""
        return tuple(container for container in self.containers if container.name in _STAGES)

    @property
    def failed_stage(self) -> Container | None:
        """The stage container that has failed."""
        return next((item for item in self.stages if item.ended and item.ended.exit_code), None)

    @property
    def terminal(self) -> bool:
        """Whether no container will run again."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def stages_ended(self) -> bool:
        """Whether no stage will run in it again, although a sidecar may still run."""
        if self.terminal or self.failed_stage:
            return True
        return bool(self.stages) and all(item.ended for item in self.stages)

    @property
    def stages_ended_at(self) -> datetime | None:
        """When the last of its stage containers ended; None while one may still run."""
        times = [item.ended.finished_at for item in self.stages if item.ended and item.ended.finished_at]
        return max(times, default=None) if self.stages_ended else None

    def lost(self, now: datetime) -> bool:
        """Tell whether its node has not ended it although its time is over."""
        return not self.stages_ended and self.ends_by is not None and now > self.ends_by + GONE_AFTER

    def container(self, name: str) -> Container | None:
        """Return the container of that name."""
        return next((container for container in self.containers if container.name == name), None)


def stored_finetune_of(body: Json) -> StoredFineTune:
    """Return what the cache keeps of a FunctionCallFineTune; of one that cannot be read, why."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    annotations = mapping(metadata.get("annotations"))
    metadata["annotations"] = {name: value for name, value in annotations.items() if name.startswith(f"{GROUP}/")}
    meta, status = meta_of(body), mapping(body.get("status"))
    generation = metadata.get("generation", 1)
    if not isinstance(generation, int) or abs(generation) > LARGEST_COUNT:
        raise TypeError("metadata.generation is no number")
    if not re.fullmatch(UID, meta.uid):
        raise ValueError("metadata.uid is none that an API server makes, and no RunSpec takes it")
    slim = {"metadata": metadata, "spec": body.get("spec") or {}, "status": status}
    try:
        text, problem = to_json(slim), ""
        if len(text) > LARGEST_BYTES:
            problem = f"the object is larger than {LARGEST_BYTES // 1024} KiB as JSON: make it smaller"
    except (ValueError, RecursionError) as error:  # nested too deep, or half a surrogate pair
        problem = f"the object cannot be read: {error}"
    if problem:
        text = _without_spec(slim, problem)
    phase = status.get("phase", "")
    return StoredFineTune(meta=meta, phase=phase if isinstance(phase, str) else "", text=text)


def _without_spec(slim: dict[str, Any], problem: str) -> bytes:
    """Return the JSON of an object without its spec, and with little of a status that is as bad.

    What the status says about this problem stays, or it would be written again and again.
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
    """Return what a status says; its parts that cannot be read are found out again.

    They were written by something else than this operator, which does not overwrite what it did not write. The
    conditions have to be read all the same, or a new time would be written into them again and again.
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
    """Return the spec, with the queue that the object's labels name where it names none itself.

    Those who use Kueue label whatever is to be queued, and kustomize labels everything at once.
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
    # The API server drops or refuses what the CRD does not have.
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
        asked=_text(annotations.get(ANNOTATION_REQUESTED_AT)),
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
    )


def pod_of(body: Json) -> Pod:
    """Return the view of a pod."""
    status = mapping(body.get("status"))
    conditions = {_text(each.get("type")): each for each in _mappings(status.get("conditions"))}
    scheduled = conditions.get("PodScheduled") or {}
    disruption = conditions.get("DisruptionTarget") or {}
    statuses = [*_mappings(status.get("initContainerStatuses")), *_mappings(status.get("containerStatuses"))]
    containers = [_container(item) for item in statuses]
    names = {item.name for item in containers}
    # An operator before trainer stages shared a container made train an init container of the pod that evaluates.
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
    )


def reports_of(container: Container) -> tuple[StageReport, ...]:
    """Return the reports that a container left in its termination message."""
    if container.ended is None:
        return ()
    return tuple(reports_in(container.ended.message, _report))


def _report(text: str) -> StageReport:
    report = parsed(StageReport, text)
    check_figures(report)
    return report


def check_figures(model: BaseModel) -> None:
    """Check that the figures of a pod's report, or of a status, are ones that can be computed with and written.

    Raises:
        ValueError: when a number has too many digits, a metric is no number, or a time has no time zone.
    """
    if isinstance(model, MetricFacts):
        for share in (model.base, model.tuned, model.published):
            if share and not _SHARE.fullmatch(share):
                raise ValueError(f"the metric {model.name} is no number")
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
    """Return when a stage ended by its report, between the container's start and the latest possible time.

    The report may be of anybody's making. Whole seconds, as the times of containers are.
    """
    time = report.finished_at.replace(microsecond=0)
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    time = min(time, latest) if latest else time
    return max(time, container.started_at) if container.started_at else time


def _stages_of(container: Container) -> list[Container]:
    """Return the container, as two where its message says that train was done: of train, and of what came after."""
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
    """Return what every object has.

    Raises:
        KeyError: the API server has not made the object.
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
        raise TypeError("the name or the uid is no text")
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
    """Tell whether the operator gives Jobs of the object such a name. `Work.job_name` makes it."""
    prefix = f"{finetune}-"
    return name.startswith(prefix) and _JOB_SUFFIX.fullmatch(name, len(prefix)) is not None


def _time(text: str | None) -> datetime | None:
    """Return the time; None also for the epoch, which container runtimes write for a container that never started.

    None as well for what is no time: users can write the status of their pods and Jobs.
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
    """Return the whole number that an annotation holds; None when it holds none: anybody can write annotations."""
    return int(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def mapping(value: object) -> Mapping[str, Any]:
    """Return a part of an object that has to be a mapping; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}
