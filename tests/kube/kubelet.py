"""A fake kubelet without containers: it binds pods of stages to a node and sets the status that a test defines."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import urllib3
from kube.api import STRATEGIC_PATCH, Api, ApiError
from property.builders import a_failure_report
from tunemill_api.constants import ANNOTATION_RUN_SPEC, ENV_NODES, LABEL_FINETUNE
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report
from tunemill_operator.engine.objects import ANNOTATION_INDEX

NODE = "fake-node"
JOB_UID = "batch.kubernetes.io/controller-uid"
LIVE_PODS = f"/api/v1/pods?labelSelector={LABEL_FINETUNE}&fieldSelector=status.phase!=Succeeded,status.phase!=Failed"
Json = dict[str, Any]


@dataclass(frozen=True)
class Ends:
    """The container runs and terminates."""

    code: int = 0
    message: str = ""
    """The termination message; empty takes the report of a success."""
    reason: str = ""


@dataclass(frozen=True)
class Waits:
    """The container does not start."""

    reason: str = "ContainerCreating"
    message: str = ""


@dataclass(frozen=True)
class Runs:
    """The container runs until the test changes it, or until its pod is deleted."""


Behaviour = Ends | Waits | Runs


def fails(stage: Stage, reason: Reason, message: str = "it went wrong") -> Ends:
    """Return the termination of a stage with this failure reason."""
    return Ends(int(FAILURES[reason].exit_code), a_failure_report(stage, reason, message))


@dataclass
class Kubelet:
    """Runs in a separate thread until stopped."""

    api: Api
    behaviours: dict[tuple[str, str], Behaviour] = field(default_factory=dict)
    """How a container behaves, by the object's name and the stage; the others end well."""
    started: list[tuple[str, str, str]] = field(default_factory=list)
    """Every container that was started: the object's name, the stage, the pod's uid."""
    run_specs: dict[tuple[str, str], RunSpec] = field(default_factory=dict)
    """The RunSpec that a pod was last given, by the object's name and the stage."""
    of_index: dict[tuple[str, str, int], Behaviour] = field(default_factory=dict)
    """How the container of one of several pods behaves, by the object's name, the stage and the pod's index."""
    interrupted: list[str] = field(default_factory=list)
    """The names of the pods that were ended by a deletion."""
    left_alone: set[str] = field(default_factory=set)
    """Namespaces whose pods are none of its business."""
    _last_start: dict[tuple[str, str], str] = field(default_factory=dict)
    _live: dict[str, str] = field(default_factory=dict)
    """The uids of the pods that had not ended when it last looked, by their paths."""
    _reports: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Results of the finished stages of running containers, by the pod's uid and its name."""
    _groups: dict[str, set[str]] = field(default_factory=dict)
    """The pods that found each other, by the uid of each: those of a Job with several nodes."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lost: set[str] = field(default_factory=set)
    """The pods that have lost another one of their group."""

    def behave(self, name: str, stage: Stage, behaviour: Behaviour) -> None:
        """Set how the stage's container of an object behaves from now on."""
        self.behaviours[name, stage.value] = behaviour

    def starts_of(self, name: str, stage: Stage) -> int:
        """Return how often the stage's container of an object was started."""
        return sum(item[:2] == (name, stage.value) for item in self.started)

    def start(self) -> None:
        """Register the node and start."""
        self.api.post("/api/v1/nodes", {"metadata": {"name": NODE}})
        self._thread = threading.Thread(target=self._work, name="kubelet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            try:
                # Filtered by the server: a pod has its whole RunSpec with it.
                others = "".join(f",metadata.namespace!={name}" for name in [*self.left_alone])
                pods = self.api.get(f"{LIVE_PODS}{others}")["items"]
                self._remove_ended(pods)
                self._join(pods)
                for pod in pods:
                    self._look_after(pod)
            except (ApiError, urllib3.exceptions.HTTPError):  # a pod has gone, or the API server is restarted
                continue

    def _remove_ended(self, pods: list[Json]) -> None:
        """Remove pods that terminated after their deletion, as a node does."""
        live = {_path(pod): pod["metadata"]["uid"] for pod in pods}
        for path, uid in [*self._live.items()]:
            if live.get(path) != uid:
                pod = self.api.find(path)
                if pod and pod["metadata"]["uid"] == uid and "deletionTimestamp" in pod["metadata"]:
                    self.api.delete(path, {"gracePeriodSeconds": 0})
                del self._live[path]
        self._live |= live

    def _join(self, pods: list[Json]) -> None:
        """Let the pods of each Job with several nodes connect, once all of them run."""
        running: dict[str, set[str]] = {}
        live = {pod["metadata"]["uid"] for pod in pods if pod.get("status", {}).get("phase") == "Running"}
        for pod in pods:
            uid, job = pod["metadata"]["uid"], pod["metadata"]["labels"].get(JOB_UID, "")
            if _nodes(pod) > 1 and uid in live and uid not in self._groups:
                running.setdefault(job, set()).add(uid)
                if len(running[job]) == _nodes(pod):
                    self._groups |= dict.fromkeys(running[job], running[job])
        self._lost = {uid for uid, group in self._groups.items() if not group <= live}

    def _look_after(self, pod: Json) -> None:
        name, phase = pod["metadata"]["labels"][LABEL_FINETUNE], pod.get("status", {}).get("phase")
        if "deletionTimestamp" in pod["metadata"]:
            self._end_deleted(pod, phase)
            return
        if not pod["spec"].get("nodeName"):
            self._bind(pod)
            return
        status = self._status(name, pod)
        if status is not None:
            self._write(pod, status)

    def _status(self, name: str, pod: Json) -> Json | None:
        """Return the pod's next status; None if it does not change."""
        spec, known = pod["spec"], _known(pod)
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        for item in containers:
            container, stages = item["name"], _stages_of(item)
            state = known.get(container, {})
            if "terminated" in state:
                continue
            reports = self._reports.setdefault((pod["metadata"]["uid"], container), [])
            stage = stages[len(reports)]
            behaviour = self._behaviour(name, stage, pod)
            if isinstance(behaviour, Waits):
                wanted = {"waiting": {"reason": behaviour.reason, "message": behaviour.message}}
                return None if state == wanted else _pod_status(pod, {**known, container: wanted}, "Pending")
            if "running" not in state:
                pod_of_stage = (name, f"{stage} {_index(pod)}")
                if self._last_start.get(pod_of_stage) == _now():
                    return None  # no real node starts a stage twice within a second, which is as fine as times are
                self._last_start[pod_of_stage] = _now()
                self._note_start(name, stage, pod)
                return _pod_status(pod, {**known, container: {"running": {"startedAt": _now()}}}, "Running")
            if isinstance(behaviour, Runs) or (behaviour.code == 0 and stage != stages[-1]):
                if isinstance(behaviour, Ends):  # the container continues with its next stage, which no status shows
                    reports.append(behaviour.message or a_report(Stage(stage), finished_at=datetime.now(UTC)))
                    self._note_start(name, stages[len(reports)], pod)
                return None
            ended = _terminated(state, behaviour, Stage(stage), reports)
            last = behaviour.code != 0 or item is containers[-1]
            phase = ("Failed" if behaviour.code else "Succeeded") if last else "Running"
            return _pod_status(pod, {**known, container: ended}, phase)
        return None

    def _behaviour(self, name: str, stage: str, pod: Json) -> Behaviour:
        """Return how a container behaves. Pods of a group wait for each other, and for the first one to end."""
        index, uid = _index(pod), pod["metadata"]["uid"]
        behaviour = self.of_index.get((name, stage, index), self.behaviours.get((name, stage), Ends()))
        if _nodes(pod) == 1 or isinstance(behaviour, Waits) or _known(pod) == {}:
            return behaviour
        if uid in self._lost:
            return fails(Stage(stage), Reason.PEER_LOST)
        if isinstance(behaviour, Ends) and (uid not in self._groups or (index > 0 and behaviour.code == 0)):
            return Runs()
        return behaviour

    def _note_start(self, name: str, stage: str, pod: Json) -> None:
        run_spec = RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])
        self.run_specs[name, stage] = run_spec
        start = (name, stage, pod["metadata"]["uid"])
        if start not in self.started:  # the status of an earlier try was not taken
            self.started.append(start)

    def _end_deleted(self, pod: Json, phase: str | None) -> None:
        """Terminate a pod that is being deleted: SIGTERM, a checkpoint, exit code 75."""
        metadata = pod["metadata"]
        if phase == "Running":
            known = _known(pod)
            container = next((name for name, state in known.items() if "running" in state), None)
            if container:
                self.interrupted.append(metadata["name"])
                reports = self._reports.get((metadata["uid"], container), [])
                items = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
                stages = next(_stages_of(item) for item in items if item["name"] == container)
                stage = Stage(stages[len(reports)])
                message = a_failure_report(stage, Reason.INTERRUPTED)
                ended = _terminated(known[container], Ends(75, message), stage, reports)
                self._write(pod, _pod_status(pod, {**known, container: ended}, "Failed"))
        self.api.delete(_path(pod), {"gracePeriodSeconds": 0})

    def _bind(self, pod: Json) -> None:
        body = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": NODE}}
        self.api.post(f"{_path(pod)}/binding", body)

    def _write(self, pod: Json, status: Json) -> None:
        self.api.patch(f"{_path(pod)}/status", {"status": status}, STRATEGIC_PATCH)


def _nodes(pod: Json) -> int:
    """Return how many pods run together."""
    env = {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0].get("env", [])}
    return int(env.get(ENV_NODES, 1))


def _index(pod: Json) -> int:
    return int(pod["metadata"]["labels"].get(ANNOTATION_INDEX, 0))


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _known(pod: Json) -> dict[str, Json]:
    status = pod.get("status", {})
    items = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return {item["name"]: item["state"] for item in items}


def _pod_status(pod: Json, states: dict[str, Json], phase: str) -> Json:
    def container(item: Json) -> Json:
        state = states.get(item["name"], {"waiting": {"reason": "PodInitializing"}})
        return {
            "name": item["name"],
            "state": state,
            "ready": "running" in state,
            "restartCount": 0,
            "image": item["image"],
            "imageID": "",
        }

    return {
        "phase": phase,
        "startTime": _now(),
        "initContainerStatuses": [container(item) for item in pod["spec"].get("initContainers", [])],
        "containerStatuses": [container(item) for item in pod["spec"]["containers"]],
    }


def _stages_of(container: Json) -> list[str]:
    """Return the stages that a container runs, by its command."""
    arguments: list[str] = container["command"][1:]
    return arguments[1:] if arguments[0] == "stages" else arguments


def _terminated(state: Json, ends: Ends, stage: Stage, reports: list[str]) -> Json:
    said = ends.message or ("" if ends.code else a_report(stage, finished_at=datetime.now(UTC)))
    return {
        "terminated": {
            "exitCode": ends.code,
            "reason": ends.reason or ("Error" if ends.code else "Completed"),
            "message": "\n".join([*reports, said] if said else reports),
            "startedAt": state["running"]["startedAt"],
            "finishedAt": _now(),
        }
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def eventually(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    """Wait until the condition holds and return its value.

    Raises:
        AssertionError: with `what` when it does not hold in time.
    """
    deadline = datetime.now(UTC).timestamp() + seconds
    pause = threading.Event()
    while True:
        if value := condition():
            return value
        if datetime.now(UTC).timestamp() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        pause.wait(0.1)
