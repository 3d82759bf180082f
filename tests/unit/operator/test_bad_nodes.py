"""A node on which a stage fails at once is avoided, reported and counted. It does not end the run."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_world_at, condition, entry, labels, run_to_the_end
from tunemill_api.failures import FAILURES, FINAL_EXIT_CODES, Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase
from tunemill_operator.engine.bad_nodes import avoiding
from tunemill_operator.engine.limits import AVOIDED_FOR
from tunemill_operator.telemetry.metrics import Metrics


def node_of(world: World) -> str:
    """Return the node of the live pod."""
    (pod,) = world.live_pods()
    name: str = pod["spec"].get("nodeName", "")
    return name


@pytest.mark.parametrize("reason", [Reason.CUDA_UNAVAILABLE, Reason.DISK_FULL])
def test_node_failures_are_not_final(reason: Reason) -> None:
    """Their exit codes do not fail the Job."""
    assert FAILURES[reason].retryable
    assert FAILURES[reason].exit_code not in FINAL_EXIT_CODES


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.PUBLISH])
@pytest.mark.parametrize("reason", [Reason.CUDA_UNAVAILABLE, Reason.DISK_FULL])
def test_the_next_pod_runs_on_another_node(stage: Stage, reason: Reason) -> None:
    """The status and a Warning event name the node, and the run is published."""
    world = a_world_at(stage)
    bad = node_of(world)
    world.fail(world.live_pods()[0], reason, "XID 79")
    world.settle()
    assert node_of(world) != bad
    assert [(node.name, node.reason, node.failures) for node in entry(world, stage).suspect_nodes] == [(bad, reason, 1)]
    assert world.events.count("Warning SuspectNode") == 1
    assert world.status.failure is None
    run_to_the_end(world)


def test_the_job_is_deleted_after_the_status_names_the_node() -> None:
    """An operator that dies in between does not forget the suspect node."""
    world = a_world_at(Stage.TRAIN)
    bad = node_of(world)
    world.fail(world.live_pods()[0], Reason.CUDA_UNAVAILABLE)
    assert world.reconcile(steps=0).actions == ()
    assert world.reconcile().actions == ()
    assert f"(node {bad})" in condition(world, "Reconciling").message
    assert len(world.reconcile(steps=1).actions) == 1
    world.settle()
    assert entry(world, Stage.TRAIN).retries == 1
    assert node_of(world) != bad


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_too_many_bad_nodes_end_the_run(limit: int) -> None:
    """The failure names every node that was tried, and stays when the Job is cleaned up."""
    world = a_world_at(Stage.TRAIN, retry={"limit": limit})
    for _ in range(8):
        for pod in world.live_pods():
            world.fail(pod, Reason.CUDA_UNAVAILABLE, "CUDA does not work here: XID 79")
        world.settle()
        world.seconds += 10
        for pod in world.live_pods():
            world.start(pod)
    assert labels(world).count("train") == limit + 1
    assert world.status.phase is Phase.FAILED
    assert (world.status.failure.reason, world.status.failure.final) == (Reason.CUDA_UNAVAILABLE, True)
    assert world.status.failure.message.endswith(f"Nodes tried: {', '.join(world.nodes[: limit + 1])}")
    world.clean_up()
    world.settle()
    assert world.status.failure.reason == Reason.CUDA_UNAVAILABLE
    world.request("the nodes are repaired")
    world.settle()
    world.run_pod()
    world.settle()
    assert entry(world, Stage.TRAIN).suspect_nodes == []
    assert node_of(world) == "node-a"


def test_a_failed_device_allocation_makes_the_node_suspect() -> None:
    """The kubelet rejects the pod before any container starts; the Job controller would use the same node again."""
    world = World()
    world.settle()
    world.reject(world.live_pods()[0], "UnexpectedAdmissionError", "no healthy devices present")
    world.settle()
    assert node_of(world) == "node-b"
    assert entry(world, Stage.PREPARE).suspect_nodes[0].reason == Reason.NODE_REJECTED_POD
    run_to_the_end(world)


def test_a_failed_container_runtime_hook_makes_the_node_suspect() -> None:
    """The image is not at fault."""
    world = a_world_at(Stage.TRAIN)
    said = "nvidia-container-cli: initialization error: nvml error: driver not loaded"
    world.end(world.live_pods()[0], 128, said, "StartError")
    world.settle()
    assert entry(world, Stage.TRAIN).suspect_nodes[0].reason == Reason.CUDA_UNAVAILABLE
    assert node_of(world) == "node-b"


def test_a_suspect_node_is_used_again_if_no_other_fits() -> None:
    """The message says why the pod waits. After a delay the node is allowed again, and the limit still applies."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 1})
    world.nodes = ["node-a"]
    world.fail(world.live_pods()[0], Reason.CUDA_UNAVAILABLE, "XID 79")
    world.settle()
    assert world.status.phase is Phase.QUEUED
    assert "the run avoids node-a, where it failed before" in condition(world, "Reconciling").message
    wait = world.plan().requeue_after
    assert wait is not None
    assert wait <= AVOIDED_FOR
    world.seconds += int(AVOIDED_FOR.total_seconds())
    world.settle()
    assert node_of(world) == "node-a"
    world.start(world.live_pods()[0])
    world.fail(world.live_pods()[0], Reason.CUDA_UNAVAILABLE, "XID 79")
    world.settle()
    assert world.status.failure.reason == Reason.CUDA_UNAVAILABLE
    assert entry(world, Stage.TRAIN).suspect_nodes[0].failures == 2
    assert labels(world).count("train") == 3


@pytest.mark.parametrize(
    ("affinity", "terms"),
    [
        ({}, 1),
        ({"podAntiAffinity": {"x": []}}, 1),
        (
            {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]},
                        ]
                    },
                }
            },
            2,
        ),
        ({"nodeAffinity": "nonsense"}, 1),
    ],
)
def test_the_users_node_affinity_stays_required(affinity: dict[str, Any], terms: int) -> None:
    """Terms are alternatives, so the exclusion is added to each."""
    merged = avoiding({"affinity": affinity, "containers": []}, ["a", "b"])["affinity"]
    required = merged["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(required) == terms
    excluded = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["a", "b"]}
    assert all(term["matchExpressions"][-1] == excluded for term in required)
    for name in affinity:
        assert name in merged
    if terms == 2:
        assert required[0]["matchExpressions"][0]["key"] == "gpu"
        assert required[1]["matchFields"][0]["values"] == ["c"]
        assert "preferredDuringSchedulingIgnoredDuringExecution" in merged["nodeAffinity"]


def test_an_empty_node_selector_term_still_matches_no_node() -> None:
    """With an exclusion added it would match every other node."""
    term: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}
    merged = avoiding({"affinity": {"nodeAffinity": term}}, ["a"])
    assert merged["affinity"]["nodeAffinity"] == term


def test_without_suspect_nodes_no_affinity_is_added() -> None:
    """The pod is unchanged."""
    assert avoiding({"containers": []}, []) == {"containers": []}


def test_the_metric_of_suspect_nodes_has_bounded_cardinality() -> None:
    """An autoscaler gives every node a new name: after some hundred they are counted together."""
    metrics = Metrics("test", "host")
    world = a_world_at(Stage.TRAIN)
    before = world.status
    world.fail(world.live_pods()[0], Reason.CUDA_UNAVAILABLE)
    world.reconcile()
    metrics.status_written(before, world.status)
    labels = {"node": "node-a", "reason": "CudaUnavailable"}
    assert metrics.registry.get_sample_value("tunemill_suspect_node_failures_total", labels) == 1
    assert metrics.registry.get_sample_value("tunemill_failures_total", {"stage": "train"}) is None
    assert {metrics._node_label(f"node-{number}") for number in range(1000)} >= {"other"}
    assert len({metrics._node_label(f"node-{number}") for number in range(1000)}) <= 201
