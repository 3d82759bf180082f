"""A small, pure model of what Kubernetes does with our objects: API server, Job controller, kubelet, garbage collector.

Nothing happens by itself: a test says which part takes its next step. So every order of events can be tried.
"""

from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from typing import Any

from property.builders import NOON, PLATFORM, a_failure_report, a_finetune_body, at, merged, text
from tunemill_api.constants import ANNOTATION_RUN_SPEC, LABEL_QUEUE
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.gates import is_draft
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import TrainerStatus
from tunemill_dev.played import a_report, evaluation_facts
from tunemill_operator.engine.objects import ANNOTATION_INDEX, FineTune, finetune_of, job_of, pod_of
from tunemill_operator.engine.observe import KueueState, Observed, Progress, Refusal, WarningEvent
from tunemill_operator.engine.plan import CreateJob, DeleteJob, Plan, plan
from tunemill_operator.engine.profiles import Profile
from tunemill_operator.engine.workloads import Workload

Json = dict[str, Any]


class World:
    """One FunctionCallFineTune, its Jobs and pods, and a clock that the test controls."""

    def __init__(self, **parts: Any) -> None:
        self.seconds = 0
        self.version = 1
        self.count = 0
        self.finetune_body: Json = a_finetune_body(**parts)
        self.jobs: dict[str, Json] = {}
        self.companions: dict[str, Json] = {}
        """Services and NetworkPolicies, by kind and name."""
        self.pods: dict[str, Json] = {}
        self.warning_events: tuple[WarningEvent, ...] = ()
        self.progress: Progress | None = None
        self.platform = replace(PLATFORM, listening_since=NOON)
        self.refusal: Refusal | None = None
        self.profiles: tuple[Profile, ...] = ()
        self.status_writes = 0
        self.created: list[str] = []
        self.outputs: set[Stage] = set()
        """The stages whose output lies in the workspace."""
        self.tuned = ""
        """The figure of the evaluation in the workspace."""
        self.serving = ""
        """The figure of the model that is published."""
        self.events: list[str] = []
        self.kueue = True
        """Whether there is a Kueue."""
        self.waits_for = "insufficient unused quota for nvidia.com/gpu in flavor h100, 1 more needed"
        """What it says about a Job that waits."""
        self.stopped = ""
        """Why it has stopped the last one."""
        self.old_pods = False
        """Whether new Jobs are those of an operator that made train an init container of the pod that evaluates."""
        self.hears_ends = True
        """Whether the pod reports the end of train to the operator while evaluate runs."""
        self.native_sidecars: list[str] = []
        """Init containers with restartPolicy Always that a policy adds to every pod."""
        self.classic_sidecars: list[str] = []
        """Containers that a policy adds to every pod. They run until the pod is deleted."""
        self.sidecar_exit_code = 137
        """How sidecars end when they are stopped."""
        self.ttl: int | None = None
        """Seconds after which a cleaner deletes an ended Job with its pods."""
        self.nodes = ["node-a", "node-b", "node-c"]
        """The nodes, of which a pod gets the first that it may run on."""

    # What the operator sees and does

    @property
    def now(self) -> Any:
        """The time."""
        return at(self.seconds)

    @property
    def finetune(self) -> FineTune:
        """The object as the operator sees it."""
        return finetune_of(self.finetune_body)

    @property
    def status(self) -> Any:
        """The last written status."""
        return self.finetune.status

    def observed(self) -> Observed:
        """Return the operator's view of the cluster."""
        return Observed(
            jobs=tuple(job_of(job) for job in self.jobs.values()),
            pods=tuple(pod_of(pod) for pod in self.pods.values()),
            warning_events=self.warning_events,
            progress=self.progress,
            refusal=self.refusal,
            kueue=KueueState(self.kueue, tuple(self._workload(job) for job in self.queued() if self.kueue)),
            profiles=self.profiles,
        )

    def plan(self) -> Plan:
        """Return the operator's decision."""
        decided = plan(self.finetune, self.observed(), self.platform, self.clock)
        if not decided.needs_pods:
            return decided
        return plan(self.finetune, replace(self.observed(), pods_listed=True), self.platform, self.clock)

    @property
    def clock(self) -> Any:
        """The time of the operator's clock."""
        return self.now

    def reconcile(self, *, steps: int | None = None) -> Plan:
        """Execute the operator's decision; it dies after this many steps, and skips the rest."""
        decided = self.plan()
        deeds: list[Any] = [*decided.actions]
        if decided.status is not None and decided.status != self.finetune.status:
            deeds.append(decided.status)
        for deed in deeds[:steps]:
            match deed:
                case CreateJob(body, companions):
                    for item in companions:
                        self.companions[f"{item['kind']}/{item['metadata']['name']}"] = item
                    self._create_job(body)
                case DeleteJob(job):
                    self._delete_job(job.meta.name)
                    for name in [name for name in self.companions if name.endswith(f"/{job.meta.name}")]:
                        del self.companions[name]
                case status:
                    self._write_status(status, decided)
        return decided

    def restart_operator(self) -> None:
        """Start without memory: earlier reports are known from the status only."""
        self.progress = None
        self.platform = replace(self.platform, listening_since=self.now)

    def settle(self) -> None:
        """Run operator and Job controller until nothing changes."""
        for _ in range(50):
            before = self._state()
            self.reconcile()
            self.job_controller()
            if self._state() == before:
                return
        raise AssertionError("operator and Job controller never come to rest")

    def settle_without_pods(self) -> None:
        """Run the operator with Jobs in another cluster: no pod is visible, and deleted Jobs disappear."""
        for _ in range(10):
            self.reconcile()
            for job in [item for item in self.jobs.values() if "deletionTimestamp" in item["metadata"]]:
                del self.jobs[job["metadata"]["name"]]

    # What a user does

    def edit(self, **parts: Any) -> None:
        """Merge a change into the spec."""
        spec = merged(self.finetune_body["spec"], parts)
        if spec != self.finetune_body["spec"]:
            self.finetune_body["spec"] = spec
            self.finetune_body["metadata"]["generation"] += 1
            self._touch(self.finetune_body)

    def request(self, value: str) -> None:
        """Set the annotation that requests a check of the data."""
        self.finetune_body["metadata"].setdefault("annotations", {})["tunemill.dev/requested-at"] = value
        self._touch(self.finetune_body)

    # What Kueue does

    def queued(self) -> list[Json]:
        """Return the live Jobs in a queue."""
        return [job for job in self.live_jobs() if LABEL_QUEUE in job["metadata"]["labels"]]

    def admit(self) -> None:
        """Let Kueue admit the queued Jobs."""
        for job in self.queued():
            self._suspend(job, value=False)

    def preempt(self) -> None:
        """Let Kueue preempt the running Jobs."""
        self.stopped = "Preempted to accommodate a workload of a higher priority"
        for job in self.queued():
            self._suspend(job, value=True)

    def _suspend(self, job: Json, *, value: bool) -> None:
        if job["spec"]["suspend"] != value:
            job["spec"]["suspend"] = value
            job["since"] = text(self.now)
            self._touch(job)

    def _workload(self, job: Json) -> Workload:
        metadata, waits = job["metadata"], job["spec"]["suspend"]
        return Workload(
            name=f"job-{metadata['name']}",
            job=metadata["uid"],
            queue=metadata["labels"][LABEL_QUEUE],
            cluster_queue="" if waits else "gpus",
            flavors={} if waits else {"nvidia.com/gpu": "h100"},
            quota={} if waits else {"nvidia.com/gpu": "1"},
            since=datetime.fromisoformat(job.get("since", metadata["creationTimestamp"])),
            waits_for=self.waits_for if waits else "",
            stopped=self.stopped if waits else "",
        )

    # What Kubernetes does

    def live_jobs(self) -> list[Json]:
        """Return the Jobs that may still run a pod."""
        return [job for job in self.jobs.values() if not _finished(job)]

    def live_pods(self) -> list[Json]:
        """Return the pods that may still run."""
        return [pod for pod in self.pods.values() if not _terminal(pod)]

    def job_controller(self) -> None:
        """Create pods for Jobs, and complete Jobs, as the Job controller does."""
        if self.ttl is not None:
            self.clean_up(after=self.ttl)
        for job in list(self.jobs.values()):
            pods = [pod for pod in self.pods.values() if _owner(pod) == job["metadata"]["uid"]]
            if "deletionTimestamp" in job["metadata"]:
                for pod in pods:
                    self._delete_pod(pod)
                if not [pod for pod in self.pods.values() if _owner(pod) == job["metadata"]["uid"]]:
                    del self.jobs[job["metadata"]["name"]]
            elif not _finished(job):
                self._advance(job, pods)

    def start(self, pod: Json) -> None:
        """Let the kubelet start the pod's next container, and the sidecars that run with it.

        Init containers start one after the other, and those that are sidecars go on. When all init containers that are
        none have ended, the others start at once. Only then the pod is Running and Ready.
        """
        container = self._next_container(pod)
        if container is None or _is_unschedulable(pod):
            return
        with_sidecars = [*_native_sidecars(pod), *([] if _is_init(pod, container) else _classic_sidecars(pod))]
        for item in (container, *with_sidecars):
            if "waiting" in item["state"]:
                item["state"] = {"running": {"startedAt": text(self.now)}}
        self._show_phase(pod)
        self._join(pod)

    def _join(self, pod: Json) -> None:
        """Let the pods of a group connect, if all of them run and none has lost another group."""
        if (nodes := _nodes(self._job_of(pod))) == 1:
            return
        running = [each for each in self._group(pod) if _running_stage(each) is not None]
        if len(running) == nodes and not any(each.get("joined") for each in running):
            for each in running:
                each["joined"] = True

    def _break(self, pod: Json) -> None:
        """Let the other pods of a group lose the connection to this one."""
        if pod.get("joined"):
            for each in self._group(pod):
                if each is not pod and each.get("joined"):
                    each["broken"] = True

    def waits_for_others(self, pod: Json) -> bool:
        """Return whether a pod is blocked: it waits for the others of its group, or has lost one of them."""
        return _nodes(self._job_of(pod)) > 1 and (not pod.get("joined") or bool(pod.get("broken")))

    def notice(self, pod: Json) -> None:
        """Terminate a pod that has lost another one of its group."""
        if pod.get("broken"):
            self.fail(pod, Reason.PEER_LOST, "the connection to another pod was closed")

    def _group(self, pod: Json) -> list[Json]:
        return [each for each in self.pods.values() if _owner(each) == _owner(pod) and not _terminal(each)]

    def _job_of(self, pod: Json) -> Json:
        return next((job for job in self.jobs.values() if job["metadata"]["uid"] == _owner(pod)), {"spec": {}})

    def end(self, pod: Json, code: int, message: str = "", reason: str = "") -> None:
        """Let the stage at work end, and its container with it unless it runs another one.

        When that was the last container, the kubelet ends the native sidecars.
        """
        container = _running_stage(pod)
        if container is None:
            return
        if code:
            self._break(pod)
        if len(pod["stages"][container["name"]]) > 1 and code == 0:
            pod["stages"][container["name"]].pop(0)
            pod["reports"].append(message)
            if self.hears_ends and message:
                self._report_end(pod, message)
            return
        message = "\n".join([*pod["reports"], message] if message else pod["reports"])
        self._terminate(container, code, message, reason)
        if (code and _is_init(pod, container)) or all("terminated" in item["state"] for item in _regular(pod)):
            for sidecar in _native_sidecars(pod):
                self._terminate(sidecar, self.sidecar_exit_code)
        self._show_phase(pod)

    def end_sidecars(self, pod: Json) -> None:
        """Terminate all running containers of the pod, as when it is deleted."""
        for container in _containers(pod):
            self._terminate(container, self.sidecar_exit_code)
        self._show_phase(pod)

    def _terminate(self, container: Json, code: int, message: str = "", reason: str = "") -> None:
        if "running" in container["state"]:
            container["state"] = {
                "terminated": {
                    "exitCode": code,
                    "reason": reason or ("Completed" if code == 0 else "Error"),
                    "message": message,
                    "startedAt": container["state"]["running"]["startedAt"],
                    "finishedAt": text(self.now),
                }
            }

    def _show_phase(self, pod: Json) -> None:
        """Set the phase and the condition Ready, derived from the containers."""
        regular, status = _regular(pod), pod["status"]
        begun = [item for item in regular if "waiting" not in item["state"]]
        failed_init = any(_exit_code(item) for item in _stages(pod) if _is_init(pod, item))
        if failed_init and not any("running" in item["state"] for item in _containers(pod)):
            status["phase"] = "Failed"
        elif begun and all("terminated" in item["state"] for item in regular):
            if any("running" in item["state"] for item in _native_sidecars(pod)):
                status["phase"] = "Running"
            else:
                status["phase"] = "Failed" if any(_exit_code(item) for item in regular) else "Succeeded"
        else:
            status["phase"] = "Running" if begun else "Pending"
        ready = bool(regular) and all("running" in item["state"] for item in regular)
        conditions = [item for item in status.get("conditions", []) if item["type"] != "Ready"]
        status["conditions"] = [*conditions, {"type": "Ready", "status": "True" if ready else "False"}]
        self._touch(pod)

    def succeed(self, pod: Json, **report: Any) -> None:
        """Let the running container of the pod end well, if the workspace holds what it builds on.

        Of pods that train together, the first makes the output, and the others end with or after it.
        """
        stage = current_stage(pod)
        if stage is None:
            return
        if self.waits_for_others(pod):
            self.notice(pod)
            return
        if _index(pod):
            self._follow(pod, stage)
            return
        if not self.outputs.issuperset(list(Stage)[: list(Stage).index(stage)]):
            self.fail(pod, Reason.STAGE_OUTPUT_MISSING)
            return
        if stage is Stage.EVALUATE:
            self.tuned = report.get("tuned", "0.9000")
            rival = _asked(pod).rival
            report["published"] = self.serving if rival and rival.train else ""
        elif stage is Stage.PUBLISH:
            report["draft"] = is_draft(_asked(pod).spec.evaluation, evaluation_facts(self.tuned))
            self.serving = self.serving if report["draft"] else self.tuned
        self.outputs.add(stage)
        if stage is Stage.TRAIN:
            report["key"] = _asked(pod).keys[stage]
        self.end(pod, 0, a_report(stage, finished_at=self.now, **report))

    def _follow(self, pod: Json, stage: Stage) -> None:
        first = next((each for each in self.pods.values() if each.get("joined") and _index(each) == 0), None)
        at_work = current_stage(first) if first else None
        order = list(Stage)
        if at_work is None or order.index(at_work) > order.index(stage):
            report = StageReport(stage=stage, started_at=NOON, finished_at=self.now)
            hears, self.hears_ends = self.hears_ends, False  # only the first pod reports
            self.end(pod, 0, report.termination_message())
            self.hears_ends = hears

    def fail(self, pod: Json, reason: Reason, message: str = "it went wrong") -> None:
        """Let the running container of the pod fail with a reason."""
        stage = current_stage(pod)
        if stage is not None:
            self.end(pod, int(FAILURES[reason].exit_code), a_failure_report(stage, reason, message))

    def report_progress(self, pod: Json, percent: int = 7) -> None:
        """Report progress of the pod."""
        uid, status = pod["metadata"]["uid"], TrainerStatus(progress_percentage=percent, last_updated_time=self.now)
        known = self.progress if self.progress and self.progress.pod == uid else Progress(uid, None)
        self.progress = replace(known, status=status, stage=current_stage(pod))

    def _report_end(self, pod: Json, message: str) -> None:
        """Report the end of a stage while the next one runs."""
        uid, report = pod["metadata"]["uid"], StageReport.model_validate_json(message)
        known = self.progress if self.progress and self.progress.pod == uid else Progress(uid, None)
        self.progress = replace(known, report=report)

    def kill_for_memory(self, pod: Json) -> None:
        """OOM-kill the running container of the pod."""
        self.end(pod, 137, "", "OOMKilled")

    def drain(self, pod: Json) -> None:
        """Terminate the pod, as for a preemption or a drained node."""
        if _terminal(pod):
            return
        pod["status"].setdefault("conditions", []).append(
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        )
        self.end(pod, 75, "")
        self.end_sidecars(pod)
        pod["status"]["phase"] = "Failed"
        self._touch(pod)

    def cut_off(self, pod: Json) -> None:
        """Disconnect the pod's node: the control plane deletes the pod, which stays Terminating."""
        self._break(pod)
        pod["metadata"].setdefault("deletionTimestamp", text(self.now))
        pod["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        ]
        self._touch(pod)

    def evict(self, pod: Json, message: str) -> None:
        """Let the kubelet evict the pod because of node pressure."""
        self.drain(pod)
        pod["status"] |= {"reason": "Evicted", "message": message}

    def reject(self, pod: Json, reason: str, message: str) -> None:
        """Let the kubelet reject the pod before any container starts."""
        pod["status"] |= {"phase": "Failed", "reason": reason, "message": message}
        pod["status"]["containerStatuses"] = pod["status"]["initContainerStatuses"] = []
        self._touch(pod)

    def clean_up(self, *, after: int = 0) -> None:
        """Delete the Jobs that finished this long ago with their pods, as a TTL or a cleaner does."""
        for job in [item for item in self.jobs.values() if _finished(item)]:
            ended = datetime.fromisoformat(job["status"]["conditions"][0]["lastTransitionTime"])
            if (self.now - ended).total_seconds() >= after:
                self.delete_job(job)

    def delete_job(self, job: Json) -> None:
        """Delete a Job and its pods by hand, and wait until they have terminated."""
        del self.jobs[job["metadata"]["name"]]
        uid = job["metadata"]["uid"]
        self.pods = {name: pod for name, pod in self.pods.items() if _owner(pod) != uid}

    def lose(self, pod: Json) -> None:
        """Remove the pod with its reports."""
        self._break(pod)
        self.pods.pop(pod["metadata"]["name"], None)

    def empty_the_workspace(self) -> None:
        """Delete all outputs."""
        self.outputs.clear()

    def run_pod(self, **report: Any) -> None:
        """Let the live pods run all their containers successfully."""
        groups = [pod for pod in self.live_pods() if _nodes(self._job_of(pod)) > 1]
        for pod in groups:
            self.start(pod)
        for _ in Stage:
            for pod in sorted(groups, key=_index):
                self.notice(pod)
                self.succeed(pod, **report)
        for pod in self.live_pods():
            if pod in groups:
                continue
            while not _terminal(pod) and not _is_unschedulable(pod):
                self.start(pod)
                if _running_stage(pod) is None:  # a sidecar keeps it running
                    break
                self.succeed(pod, **report)

    def _advance(self, job: Json, pods: list[Json]) -> None:
        if job["spec"].get("suspend"):
            for pod in pods:
                self._delete_pod(pod)
            return
        if _nodes(job) > 1:
            self._advance_group(job, pods)
            return
        if any(pod["status"]["phase"] == "Succeeded" for pod in pods):
            self._finish(job, "Complete", "CompletionsReached", "")
            return
        counted = 0
        for pod in pods:
            if pod["status"]["phase"] == "Failed":
                action, code = _rule(job, pod)
                if action == "FailJob":
                    message = (
                        f"Container for pod {pod['metadata']['name']} failed with exit code {code} matching FailJob"
                    )
                    self._finish(job, "Failed", "PodFailurePolicy", message)
                    return
                counted += action == "Count"
        if counted > job["spec"]["backoffLimit"]:
            self._finish(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif not [pod for pod in pods if not _terminal(pod)]:
            self._create_pod(job)

    def _advance_group(self, job: Json, pods: list[Json]) -> None:
        """Make a pod for each index, or end the Job when all its pods have ended, by the rules of Indexed Jobs."""
        if "ends" not in job and (ends := self._end_of_group(job, pods)):
            job["ends"] = ends
        if "ends" in job:
            for pod in pods:
                if not _terminal(pod):
                    self._delete_pod(pod)
            if all(_terminal(pod) for pod in pods if pod["metadata"]["name"] in self.pods):
                self._finish(job, *job["ends"])
            return
        taken = {_index(pod) for pod in pods if pod["status"]["phase"] != "Failed"}
        for index in range(_nodes(job)):
            if index not in taken:
                self._create_pod(job, index)

    def _end_of_group(self, job: Json, pods: list[Json]) -> tuple[str, str, str] | None:
        succeeded = {_index(pod) for pod in pods if pod["status"]["phase"] == "Succeeded"}
        if 0 in succeeded or len(succeeded) == _nodes(job):
            return "Complete", "SuccessPolicy", "Matched rules at index 0"
        counted: dict[int, int] = {}
        for pod in pods:
            if pod["status"]["phase"] == "Failed":
                action, code = _rule(job, pod)
                if action == "FailJob":
                    name = pod["metadata"]["name"]
                    return "Failed", "PodFailurePolicy", f"Container for pod {name} failed with exit code {code}"
                counted[_index(pod)] = counted.get(_index(pod), 0) + (action == "Count")
        if max(counted.values(), default=0) > job["spec"]["backoffLimitPerIndex"]:
            return (
                "Failed",
                "MaxFailedIndexesExceeded",
                "Job has exceeded the maximum of failed indexes",
            )
        return None

    def _finish(self, job: Json, kind: str, reason: str, message: str) -> None:
        job.setdefault("status", {})["conditions"] = [
            {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": text(self.now)}
        ]
        self._touch(job)

    def _create_job(self, body: Json) -> None:
        name = body["metadata"]["name"]
        assert name not in self.jobs, f"Job {name} exists"
        job = deepcopy(body)
        job["metadata"] |= {"uid": self._uid("job"), "creationTimestamp": text(self.now)}
        if self.old_pods:
            _as_an_older_operator(job)
        self.jobs[name] = job
        self.created.append(name)
        self._touch(job)

    def _delete_job(self, name: str) -> None:
        if name in self.jobs:
            self.jobs[name]["metadata"]["deletionTimestamp"] = text(self.now)
            self._touch(self.jobs[name])

    def _create_pod(self, job: Json, index: int | None = None) -> None:
        template, metadata = job["spec"]["template"], job["metadata"]
        uid = self._uid("pod")
        labels = {} if index is None else {ANNOTATION_INDEX: str(index)}
        stages = [("init", item) for item in template["spec"].get("initContainers", [])]
        stages += [("main", item) for item in template["spec"]["containers"]]
        stages = [("native", {"name": name}) for name in self.native_sidecars] + stages
        stages = [("main", {"name": name}) for name in self.classic_sidecars] + stages
        node = next((name for name in self.nodes if _may_run_on(template["spec"], name)), "")
        scheduled: Json = {"type": "PodScheduled", "status": "True", "lastTransitionTime": text(self.now)}
        if not node:
            message = (
                f"0/{len(self.nodes)} nodes are available: {len(self.nodes)} node(s) didn't match Pod's node affinity"
            )
            scheduled |= {"status": "False", "reason": "Unschedulable", "message": message}
        pod: Json = {
            "metadata": {
                "name": f"{metadata['name']}-{uid}",
                "namespace": metadata["namespace"],
                "uid": uid,
                "creationTimestamp": text(self.now),
                "labels": {**template["metadata"]["labels"], **labels},
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [
                    {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
                ],
            },
            "stages": {item["name"]: _stages_of(item) for _, item in stages if "command" in item},
            "reports": [],
            "spec": {
                "initContainers": [
                    {"name": item["name"], **({"restartPolicy": "Always"} if kind == "native" else {})}
                    for kind, item in stages
                    if kind != "main"
                ],
                **({"nodeName": node} if node else {}),
            },
            "status": {
                "phase": "Pending",
                "conditions": [scheduled],
                "initContainerStatuses": [_waiting(item["name"]) for kind, item in stages if kind != "main"],
                "containerStatuses": [_waiting(item["name"]) for kind, item in stages if kind == "main"],
            },
        }
        self.pods[pod["metadata"]["name"]] = pod
        self._touch(pod)

    def _delete_pod(self, pod: Json) -> None:
        if _terminal(pod) or not any("running" in item["state"] for item in _containers(pod)):
            self.pods.pop(pod["metadata"]["name"], None)
        elif "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = text(self.now)
            self._touch(pod)
        else:
            self.end(pod, 75, "")
            self.end_sidecars(pod)
            pod["status"]["phase"] = pod["status"]["phase"] if _terminal(pod) else "Failed"

    def _write_status(self, status: Any, decided: Plan) -> None:
        self.finetune_body["status"] = status.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
        )
        self.status_writes += 1
        self.events += [f"{item.kind} {item.reason}" for item in decided.events]
        self._touch(self.finetune_body)

    def _next_container(self, pod: Json) -> Json | None:
        """Return the stage to start next; None while one runs, and after the last."""
        for container in _stages(pod):
            if "running" in container["state"] or _exit_code(container):
                return None
            if "waiting" in container["state"]:
                return container
        return None

    def _touch(self, body: Json) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)

    def _uid(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count:04}"

    def _state(self) -> Json:
        return deepcopy({"finetune": self.finetune_body, "jobs": self.jobs, "pods": self.pods})


def _asked(pod: Json) -> RunSpec:
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])


def _containers(pod: Json) -> list[Json]:
    return [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]


def current_stage(pod: Json) -> Stage | None:
    """Return the running stage of a pod; None if no container runs."""
    container = _running_stage(pod)
    return pod["stages"][container["name"]][0] if container else None


def _stages_of(container: Json) -> list[Stage]:
    """Return the stages that a container runs, by its command."""
    arguments = container["command"][1:]
    return [Stage(name) for name in (arguments[1:] if arguments[0] == "stages" else arguments)]


def _as_an_older_operator(job: Json) -> None:
    """Convert the Job into one in which each stage is a container, and all but the last are init containers."""
    spec = job["spec"]["template"]["spec"]
    stages = [stage.value for item in spec["containers"] for stage in _stages_of(item)]
    containers = [{"name": stage, "command": ["tunemill-trainer", stage]} for stage in stages]
    spec["initContainers"], spec["containers"] = containers[:-1], containers[-1:]
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        rule.get("onExitCodes", {}).pop("containerName", None)


def _regular(pod: Json) -> list[Json]:
    statuses: list[Json] = pod["status"]["containerStatuses"]
    return statuses


def _stages(pod: Json) -> list[Json]:
    return [item for item in _containers(pod) if item["name"] in list(Stage)]


def _native_sidecars(pod: Json) -> list[Json]:
    return [item for item in pod["status"]["initContainerStatuses"] if item["name"] not in list(Stage)]


def _classic_sidecars(pod: Json) -> list[Json]:
    return [item for item in _regular(pod) if item["name"] not in list(Stage)]


def _running_stage(pod: Json) -> Json | None:
    return next((item for item in _stages(pod) if "running" in item["state"]), None)


def _is_init(pod: Json, container: Json) -> bool:
    return any(item is container for item in pod["status"]["initContainerStatuses"])


def _exit_code(container: Json) -> int:
    code: int = container["state"].get("terminated", {}).get("exitCode", 0)
    return code


def _is_unschedulable(pod: Json) -> bool:
    return any(item.get("reason") == "Unschedulable" for item in pod["status"].get("conditions", []))


def _may_run_on(pod_spec: Json, node: str) -> bool:
    """Return whether the pod's required node affinity matches a node with its name as the only label."""
    affinity = pod_spec.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(
        all(
            node not in item["values"]
            for item in term.get("matchExpressions", [])
            if (item["key"], item["operator"]) == ("kubernetes.io/hostname", "NotIn")
        )
        for term in required["nodeSelectorTerms"]
    )


def _nodes(job: Json) -> int:
    """Return how many pods of a Job run together."""
    nodes: int = job["spec"].get("completions", 1)
    return nodes


def _index(pod: Json) -> int:
    """Return the index of a pod; 0 in a Job with one pod."""
    return int(pod["metadata"]["labels"].get(ANNOTATION_INDEX, 0))


def _waiting(name: str) -> Json:
    return {"name": name, "state": {"waiting": {"reason": "PodInitializing"}}}


def _terminal(pod: Json) -> bool:
    return pod["status"]["phase"] in {"Succeeded", "Failed"}


def _finished(job: Json) -> bool:
    return bool(job.get("status", {}).get("conditions"))


def _owner(pod: Json) -> str:
    owners = pod["metadata"].get("ownerReferences") or [{}]
    owner: str = owners[0].get("uid", "")
    return owner


def _rule(job: Json, pod: Json) -> tuple[str, int]:
    """Return the result of the Job's podFailurePolicy for a failed pod."""
    ended = [item for item in _containers(pod) if "terminated" in item["state"]]
    codes = [_exit_code(item) for item in ended]
    conditions = {item["type"] for item in pod["status"].get("conditions", [])}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if {item["type"] for item in rule.get("onPodConditions", [])} & conditions:
            return rule["action"], 0
        on_exit_codes = rule.get("onExitCodes", {})
        for container in ended:
            concerned = on_exit_codes.get("containerName", container["name"]) == container["name"]
            if concerned and _exit_code(container) in on_exit_codes.get("values", []):
                return rule["action"], _exit_code(container)
    return "Count", codes[-1] if codes else 0
