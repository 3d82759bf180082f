"""The simulator behaves like a kubelet and a Job controller."""

from typing import Any

from property.simulator import World
from tunemill_api.failures import Reason
from tunemill_operator.engine.bad_nodes import avoiding

INIT = "train"
REGULAR = "evaluate"


def a_pod(world: World, *, init: str = "", regular: str = "prepare") -> dict[str, Any]:
    """Return the live pod, with these containers instead of its own."""
    world.settle()
    (job,) = world.live_jobs()
    pod_spec = job["spec"]["template"]["spec"]
    container = pod_spec["containers"][0]
    pod_spec["initContainers"] = [{**container, "name": init}] if init else []
    pod_spec["containers"] = [{**container, "name": regular}]
    world.pods.clear()
    world.job_controller()
    (pod,) = world.live_pods()
    return pod


def ready(pod: dict[str, Any]) -> str:
    """Return the status of the condition Ready."""
    found: str = next(item["status"] for item in pod["status"]["conditions"] if item["type"] == "Ready")
    return found


def test_a_pod_is_pending_while_its_init_containers_run() -> None:
    """Only with its regular containers it is Running and Ready."""
    world = World()
    pod = a_pod(world, init=INIT, regular=REGULAR)
    world.start(pod)
    assert (pod["status"]["phase"], ready(pod)) == ("Pending", "False")
    world.end(pod, 0)
    assert (pod["status"]["phase"], ready(pod)) == ("Pending", "False")
    world.start(pod)
    assert (pod["status"]["phase"], ready(pod)) == ("Running", "True")
    world.end(pod, 0)
    assert (pod["status"]["phase"], ready(pod)) == ("Succeeded", "False")


def test_a_failed_init_container_fails_its_pod() -> None:
    """Later containers never start."""
    world = World()
    pod = a_pod(world, init=INIT, regular=REGULAR)
    world.start(pod)
    world.end(pod, 65)
    assert pod["status"]["phase"] == "Failed"
    world.start(pod)
    assert "waiting" in pod["status"]["containerStatuses"][0]["state"]


def test_a_native_sidecar_is_terminated_after_the_regular_containers() -> None:
    """Its exit code has no effect."""
    world = World()
    world.native_sidecars = ["mesh"]
    pod = a_pod(world)
    world.start(pod)
    assert "running" in pod["status"]["initContainerStatuses"][0]["state"]
    world.end(pod, 0)
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    assert pod["status"]["phase"] == "Succeeded"


def test_a_classic_sidecar_keeps_its_pod_running() -> None:
    """Until the pod is deleted; then its exit code is one of the pod's."""
    world = World()
    world.classic_sidecars = ["log-agent"]
    pod = a_pod(world)
    world.start(pod)
    assert ready(pod) == "True"
    world.end(pod, 0)
    assert (pod["status"]["phase"], ready(pod)) == ("Running", "False")
    world.end_sidecars(pod)
    assert pod["status"]["phase"] == "Failed"


def test_a_pod_failure_policy_applies_to_the_named_container() -> None:
    """The exit code of a sidecar does not fail a Job."""
    world = World()
    world.classic_sidecars, world.sidecar_exit_code = ["log-agent"], 65
    pod = a_pod(world)
    world.start(pod)
    world.end(pod, 0)
    world.end_sidecars(pod)
    world.job_controller()
    assert len(world.live_jobs()) == 1
    (again,) = world.live_pods()
    world.start(again)
    world.fail(again, Reason.DATASET_MALFORMED)
    world.end_sidecars(again)
    world.job_controller()
    assert not world.live_jobs()


def test_a_pod_runs_on_a_node_that_its_affinity_allows() -> None:
    """Otherwise it is Unschedulable and does not start."""
    world = World()
    world.settle()
    (job,) = world.live_jobs()
    for avoided, node in ((["node-a"], "node-b"), (["node-a", "node-b"], "node-c"), (world.nodes, None)):
        job["spec"]["template"]["spec"] = avoiding({**job["spec"]["template"]["spec"], "affinity": {}}, avoided)
        world.pods.clear()
        world.job_controller()
        (pod,) = world.live_pods()
        assert pod["spec"].get("nodeName") == node
    world.start(pod)
    assert pod["status"]["phase"] == "Pending"


def test_a_ttl_deletes_a_finished_job_with_its_pods() -> None:
    """Not before its time."""
    world = World()
    world.ttl = 60
    world.settle()
    world.run_pod()
    world.job_controller()
    assert len(world.jobs) == 1
    world.seconds += 60
    world.job_controller()
    assert (world.jobs, world.pods) == ({}, {})
