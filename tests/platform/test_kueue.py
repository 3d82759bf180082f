"""The operator with a real Kueue: runs wait for quota, are preempted and resume, with reasons in the status."""

from collections.abc import Iterator
from typing import Any

import pytest
from kube.kubelet import Runs, eventually
from kube.operators import Operator
from kube.plane import Namespace, Plane, a_plane
from kube.queues import resource_groups
from kueue import GPU, Queues, a_kueue
from property.builders import a_finetune_body
from tunemill_api.constants import LABEL_PRIORITY, LABEL_QUEUE, PLURAL
from tunemill_api.stage_report import Stage

pytestmark = pytest.mark.usefixtures("operator")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A separate control plane: Kueue's webhooks intercept every Job."""
    with a_plane(tmp_path_factory.mktemp("queues")) as plane:
        yield plane


@pytest.fixture(scope="module")
def queues(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queues]:
    """Kueue, started on first use, with two priorities."""
    with a_kueue(plane.api, plane.kubeconfig, tmp_path_factory.mktemp("kueue")):
        queues = Queues(plane.api)
        queues.rank("low", 1)
        queues.rank("high", 100)
        yield queues


def says(namespace: Namespace, name: str, words: str) -> str:
    """Wait until the object is Queued with this text in its message; return the message."""

    def said() -> str:
        ready = namespace.condition(name, "Ready")
        message: str = ready.get("message", "")
        return message if words in message and namespace.status(name)["phase"] == "Queued" else ""

    try:
        message: str = eventually(said, f"{name} says {words!r}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it says {namespace.status(name)}") from None
    stalled = namespace.condition(name, "Stalled")
    assert stalled["status"] == "False", stalled
    return message


def train_of(namespace: Namespace, name: str) -> Json:
    """Return the status of train."""
    entry: Json = next(entry for entry in namespace.status(name)["stages"] if entry["name"] == "train")
    return entry


def test_without_kueue_a_queued_run_waits_until_kueue_is_installed(
    plane: Plane, namespace: Namespace, request: pytest.FixtureRequest
) -> None:
    """The status says what is missing, and no edit is needed afterwards."""
    plane.kubelet.behave("early", Stage.TRAIN, Runs())
    namespace.apply("early", queue={"name": "team-a"})
    failure = namespace.wait_for("early", "Failed")["failure"]
    assert (failure["reason"], failure["actor"], failure["stage"]) == ("QueueUnavailable", "Platform", "train")
    assert "this cluster has no Kueue" in failure["message"]
    namespace.apply("unqueued")
    namespace.wait_for("unqueued", "Succeeded")
    assert plane.kubelet.starts_of("early", Stage.TRAIN) == 0
    queues: Queues = request.getfixturevalue("queues")
    queues.open(namespace.name, "team-a", 1)
    status = namespace.wait_for("early", "Training")
    assert "failure" not in status


def test_a_run_waits_for_quota_is_preempted_and_resumes(
    plane: Plane, namespace: Namespace, queues: Queues, operator: Operator
) -> None:
    """No retry and no limit is counted; each message has Kueue's reason."""
    queues.open(namespace.name, "busy", 1)
    for name in ("first", "important"):
        plane.kubelet.behave(name, Stage.TRAIN, Runs())
    namespace.apply("first", queue={"name": "busy", "priorityClass": "low"}, retry={"limit": 0})
    namespace.wait_for("first", "Training")
    queue = eventually(lambda: namespace.status("first").get("queue"), "the quota is shown")
    assert (queue["name"], queue["clusterQueue"], queue["flavors"]) == (
        "busy",
        "busy",
        dict.fromkeys((GPU, "cpu", "memory"), "busy"),
    )

    namespace.apply("second", queue={"name": "busy", "priorityClass": "low"})
    message = says(namespace, "second", f"insufficient unused quota for {GPU} in flavor busy, 1 more needed")
    assert "is waiting in the queue busy since 20" in message
    waiting = sum(item["status"].get("phase") == "Queued" for item in plane.api.get(namespace.path(PLURAL))["items"])
    assert f'tunemill_finetunes{{phase="Queued"}} {waiting:.1f}' in operator.probe("/metrics")[1]

    namespace.apply("important", queue={"name": "busy", "priorityClass": "high"})
    namespace.wait_for("important", "Training")
    says(namespace, "first", "Preempted to accommodate a workload")
    eventually(lambda: train_of(namespace, "first").get("preemptions") == 1, "the preemption is counted")
    assert [name for name in plane.kubelet.interrupted if name.startswith("first-train-")]
    assert (train_of(namespace, "first")["state"], train_of(namespace, "first")["attempts"]) == ("Pending", 1)
    eventually(lambda: not namespace.status("first")["queue"].get("clusterQueue"), "the quota is given back")
    eventually(lambda: "Preempted" in namespace.events("first"), "it is an event")

    plane.kubelet.behaviours.clear()
    for name in ("important", "first", "second"):
        namespace.wait_for(name, "Succeeded")
    assert (train_of(namespace, "first")["attempts"], namespace.status("first")["run"]["preemptions"]) == (2, 1)
    assert train_of(namespace, "second")["attempts"] == 1
    assert "queue" not in namespace.status("first")


def test_gpus_are_counted_as_by_kueue(plane: Plane, namespace: Namespace, queues: Queues) -> None:
    """Train and evaluate share the GPU of one pod: one GPU, not two."""
    queues.open(namespace.name, "counted", 2)
    plane.kubelet.behave("pair", Stage.TRAIN, Runs())
    namespace.apply("pair", queue={"name": "counted"})
    namespace.wait_for("pair", "Training")
    (workload,) = queues.workloads(namespace.name)
    (podset,) = workload["status"]["admission"]["podSetAssignments"]
    assert podset["resourceUsage"][GPU] == "1"


def test_a_group_waits_is_preempted_and_resumes_as_a_whole(plane: Plane, namespace: Namespace, queues: Queues) -> None:
    """Its pods are one Workload with the quota of all of them, and restart in the same Job."""
    queues.open(namespace.name, "wide", 3)
    for name in ("group", "urgent"):
        plane.kubelet.behave(name, Stage.TRAIN, Runs())
    nodes = {"nodes": 2, "gpus": 2}
    namespace.apply("group", queue={"name": "wide", "priorityClass": "low"}, compute=nodes, retry={"limit": 0})
    says(namespace, "group", "> maximum capacity (3)")
    assert not [pod for pod in namespace.pods("group") if "-train-" in pod["metadata"]["name"]]
    queues.resize("wide", 4)
    namespace.wait_for("group", "Training")
    eventually(lambda: namespace.status("group")["queue"].get("quota", {}).get(GPU) == "4", "the quota of all is shown")
    (job,) = namespace.live_jobs("group")

    namespace.apply("urgent", queue={"name": "wide", "priorityClass": "high"})
    namespace.wait_for("urgent", "Training")
    says(namespace, "group", "Preempted to accommodate a workload")
    eventually(lambda: train_of(namespace, "group").get("restarts") == {"Preempted": 1}, "it is one restart")
    plane.kubelet.behaviours.clear()
    for name in ("urgent", "group"):
        namespace.wait_for(name, "Succeeded")
    (again,) = [item for item in namespace.jobs("group") if "-train-" in item["metadata"]["name"]]
    assert again["metadata"]["uid"] == job["metadata"]["uid"]
    assert (train_of(namespace, "group")["attempts"], namespace.status("group")["run"]["preemptions"]) == (2, 1)


def test_a_run_larger_than_the_quota_waits_until_it_is_raised(namespace: Namespace, queues: Queues) -> None:
    """A platform team closes a queue with a quota of 0."""
    queues.open(namespace.name, "closed", 0)
    namespace.apply("large", queue={"name": "closed"})
    says(namespace, "large", "> maximum capacity (0)")
    queues.resize("closed", 1)
    namespace.wait_for("large", "Succeeded")


def test_a_resource_not_covered_by_the_queue_is_named(namespace: Namespace, queues: Queues) -> None:
    """Quota without CPUs admits no pod that requests CPUs. Kueue names any of several missing resources."""
    quotas = {GPU: 1, "memory": "100Gi"}
    queues.open(namespace.name, "narrow", 1, resourceGroups=resource_groups("narrow", quotas))
    namespace.apply("thirsty", queue={"name": "narrow"})
    says(namespace, "thirsty", "resource cpu unavailable in ClusterQueue")


def test_a_missing_queue_is_reported_and_recovers(namespace: Namespace, queues: Queues) -> None:
    """Either the user or the platform team can correct it, and then the run continues."""
    queues.open(namespace.name, "right", 1)
    namespace.apply("typo", queue={"name": "rihgt"})
    failure = namespace.wait_for("typo", "Failed")["failure"]
    assert (failure["reason"], failure["actor"]) == ("QueueNotFound", "User")
    assert failure["message"] == f"LocalQueue rihgt does not exist in the namespace {namespace.name}"
    namespace.edit("typo", queue={"name": "right"})
    namespace.wait_for("typo", "Succeeded")


def test_a_missing_priority_class_is_reported_and_recovers(namespace: Namespace, queues: Queues) -> None:
    """Kueue creates no Workload for the Job, and says so only in its own log."""
    queues.open(namespace.name, "ranked", 1)
    namespace.apply("urgent", queue={"name": "ranked", "priorityClass": "urgent"})
    failure = namespace.wait_for("urgent", "Failed")["failure"]
    assert failure["reason"] == "QueueUnavailable"
    assert "the WorkloadPriorityClass urgent exists" in failure["message"]
    queues.rank("urgent", 1000)
    namespace.wait_for("urgent", "Succeeded")


def test_a_stopped_queue_admits_nothing_and_can_evict_running_jobs(
    plane: Plane, namespace: Namespace, queues: Queues
) -> None:
    """As for a maintenance of the GPU nodes."""
    queues.open(namespace.name, "paused", 1, stopPolicy="Hold")
    plane.kubelet.behave("patient", Stage.TRAIN, Runs())
    namespace.apply("patient", queue={"name": "paused"})
    says(namespace, "patient", "ClusterQueue paused is inactive")
    queues.change("paused", stopPolicy="None")
    namespace.wait_for("patient", "Training")
    queues.change("paused", stopPolicy="HoldAndDrain")
    says(namespace, "patient", "The ClusterQueue is stopped")
    plane.kubelet.behaviours.clear()
    queues.change("paused", stopPolicy="None")
    namespace.wait_for("patient", "Succeeded")
    assert train_of(namespace, "patient")["preemptions"] == 1


def test_a_deactivated_workload_waits_until_it_is_activated(plane: Plane, namespace: Namespace, queues: Queues) -> None:
    """By an administrator."""
    queues.open(namespace.name, "managed", 1)
    plane.kubelet.behave("aside", Stage.TRAIN, Runs())
    namespace.apply("aside", queue={"name": "managed"})
    namespace.wait_for("aside", "Training")
    workload = namespace.status("aside")["queue"]["workload"]
    queues.activate(namespace.name, workload, active=False)
    says(namespace, "aside", f"the Workload {workload} is deactivated")
    plane.kubelet.behaviours.clear()
    queues.activate(namespace.name, workload, active=True)
    namespace.wait_for("aside", "Succeeded")


def test_a_queued_run_can_be_edited_suspended_and_deleted(namespace: Namespace, queues: Queues) -> None:
    """There is one Job and one Workload at a time, and none is left in the queue."""
    queues.open(namespace.name, "full", 0)
    namespace.apply("fickle", queue={"name": "full"})
    says(namespace, "fickle", "is waiting in the queue full")
    (before,) = queues.workloads(namespace.name)
    namespace.edit("fickle", training={"learningRate": "3e-4"})
    eventually(lambda: before["metadata"]["name"] not in names(queues, namespace), "the obsolete one has gone")
    says(namespace, "fickle", "is waiting in the queue full since")
    assert (len(names(queues, namespace)), len(namespace.live_jobs("fickle"))) == (1, 1)

    namespace.edit("fickle", suspend=True)
    namespace.wait_for("fickle", "Suspended")
    eventually(lambda: not names(queues, namespace), "it has left the queue")
    namespace.edit("fickle", suspend=False)
    says(namespace, "fickle", "is waiting in the queue full since")

    namespace.delete("fickle")
    eventually(lambda: not names(queues, namespace) and not namespace.jobs("fickle"), "nothing is left")


def test_a_queue_label_queues_an_object(plane: Plane, namespace: Namespace, queues: Queues) -> None:
    """As for every kind that Kueue supports."""
    queues.open(namespace.name, "labelled", 1)
    body = a_finetune_body("labelled", namespace.name)
    body["metadata"] = {"name": "labelled", "labels": {LABEL_QUEUE: "labelled", LABEL_PRIORITY: "high"}}
    plane.kubelet.behave("labelled", Stage.TRAIN, Runs())
    plane.api.post(namespace.path(PLURAL), body)
    status = namespace.wait_for("labelled", "Training")
    assert status["queue"]["clusterQueue"] == "labelled"
    (workload,) = queues.workloads(namespace.name)
    assert workload["spec"]["priorityClassRef"]["name"] == "high"


def test_prepare_waits_if_kueue_manages_every_job(namespace: Namespace, queues: Queues) -> None:
    """A LocalQueue named default manages all Jobs of its namespace without a queue."""
    queues.open(namespace.name, "default", 1, stopPolicy="Hold")
    namespace.apply("unnamed")
    says(namespace, "unnamed", "ClusterQueue default is inactive")
    queues.change("default", stopPolicy="None")
    namespace.wait_for("unnamed", "Succeeded")


def names(queues: Queues, namespace: Namespace) -> list[str]:
    """Return the names of the Workloads of a namespace."""
    return [workload["metadata"]["name"] for workload in queues.workloads(namespace.name)]
