"""One object from apply to publication, and the effect of edits, with a real API server."""

import pytest
from kube.kubelet import Ends, Runs, eventually
from kube.plane import Namespace, Plane
from tunemill_api.constants import ANNOTATION_REQUESTED_AT, PLURAL
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report

pytestmark = pytest.mark.usefixtures("operator")


def starts(plane: Plane, name: str) -> list[int]:
    """Return how often each stage's container was started."""
    return [plane.kubelet.starts_of(name, stage) for stage in Stage]


def test_an_object_runs_through_all_stages(plane: Plane, namespace: Namespace) -> None:
    """Three Jobs, four stages, each container started once, and a complete status."""
    namespace.apply("happy")
    status = namespace.wait_for("happy", "Succeeded")
    assert starts(plane, "happy") == [1, 1, 1, 1]
    assert len(namespace.jobs("happy")) == 3
    assert status["score"] == "0.9000"
    assert status["gain"] == "+0.8000"
    assert status["published"]["repository"] == "acme/support-tools"
    assert {item["type"]: item["status"] for item in status["conditions"]} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Prepared": "True",
        "Trained": "True",
        "Evaluated": "True",
        "GatePassed": "True",
        "Published": "True",
        "Suspended": "False",
    }
    milestones = {"Prepared", "Trained", "Evaluated", "GatePassed", "Published"}
    eventually(lambda: milestones <= set(namespace.events("happy")), "every milestone is an event")


def test_the_first_status_is_not_ready(namespace: Namespace) -> None:
    """Tools that wait for Ready do not continue too early: it is Unknown or False from the first status on."""
    namespace.apply("early")
    ready = eventually(lambda: namespace.condition("early", "Ready"), "there is a condition Ready")
    assert ready["status"] in {"Unknown", "False"}
    assert ready["observedGeneration"] == 1


def test_only_the_status_of_objects_is_written(namespace: Namespace) -> None:
    """No finalizer and no annotation: the object stays as it is in Git."""
    body = namespace.apply("clean")
    namespace.wait_for("clean", "Succeeded")
    after = namespace.get("clean")
    assert after["spec"] == body["spec"]
    assert "finalizers" not in after["metadata"]
    assert "annotations" not in after["metadata"]
    for child in [*namespace.jobs("clean"), *namespace.pods("clean")]:
        assert not [name for name in child["metadata"].get("annotations", {}) if "kopf" in name]


def test_later_stages_get_the_facts_of_prepare(plane: Plane, namespace: Namespace) -> None:
    """They are in the RunSpec of train, but not in that of prepare."""
    namespace.apply("facts")
    namespace.wait_for("facts", "Succeeded")
    assert plane.kubelet.run_specs["facts", "prepare"].prepared is None
    prepared = plane.kubelet.run_specs["facts", "train"].prepared
    assert prepared is not None
    assert prepared.key == namespace.status("facts")["prepared"]["key"]


@pytest.mark.parametrize(
    ("what", "change", "expected"),
    [
        ("nothing", {}, [1, 1, 1, 1]),
        ("another-repository", {"publish": {"repository": "acme/other"}}, [1, 1, 1, 2]),
        ("more-rows-judged", {"evaluation": {"maxRows": 20}}, [1, 2, 2, 2]),
        ("learning-rate", {"training": {"learningRate": "2e-4"}}, [1, 2, 2, 2]),
        ("gate", {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.5"}]}}, [1, 1, 1, 1]),
        ("memory", {"podTemplates": {"train": {"resources": {"limits": {"memory": "8Gi"}}}}}, [1, 1, 1, 1]),
    ],
)
def test_an_edit_runs_only_the_affected_stages(
    plane: Plane, namespace: Namespace, what: str, change: dict[str, object], expected: list[int]
) -> None:
    """Jobs of unchanged stages are not created again; train runs before evaluate and exits early."""
    name = f"edit-{what}"
    namespace.apply(name)
    namespace.wait_for(name, "Succeeded")
    namespace.edit(name, **change)
    namespace.wait_for(name, "Succeeded")
    assert starts(plane, name) == expected


def test_a_request_reruns_only_prepare_if_the_data_is_unchanged(plane: Plane, namespace: Namespace) -> None:
    """The annotation runs prepare; with the same key, no other stage runs."""
    namespace.apply("again")
    first = namespace.wait_for("again", "Succeeded")["run"]["id"]
    namespace.annotate("again", ANNOTATION_REQUESTED_AT, "2026-11-21T12:00:00Z")
    eventually(lambda: namespace.status("again")["run"]["id"] != first, "there is another run")
    namespace.wait_for("again", "Succeeded")
    assert starts(plane, "again") == [2, 1, 1, 1]


def test_an_edit_while_training_stops_the_pod_before_another_starts(plane: Plane, namespace: Namespace) -> None:
    """The pod is stopped, and the next one starts when it has terminated."""
    plane.kubelet.behave("midway", Stage.TRAIN, Runs())
    namespace.apply("midway")
    namespace.wait_for("midway", "Training")
    (before,) = [pod for pod in namespace.pods("midway") if pod["status"]["phase"] == "Running"]
    namespace.edit("midway", training={"learningRate": "3e-4"})
    eventually(lambda: before["metadata"]["name"] in plane.kubelet.interrupted, "the pod is interrupted")
    assert len(namespace.live_jobs("midway")) <= 1
    namespace.wait_for("midway", "Training")
    assert len(namespace.live_jobs("midway")) == 1
    assert starts(plane, "midway") == [1, 2, 0, 0]
    assert plane.kubelet.run_specs["midway", "train"].spec.training.learning_rate == "3e-4"


def test_suspend_stops_and_unsuspend_resumes(plane: Plane, namespace: Namespace) -> None:
    """With spec.suspend the pod saves a checkpoint and ends. Without it the same Job is created again."""
    plane.kubelet.behave("pause", Stage.TRAIN, Runs())
    namespace.apply("pause")
    namespace.wait_for("pause", "Training")
    namespace.edit("pause", suspend=True)
    namespace.wait_for("pause", "Suspended")
    eventually(lambda: namespace.condition("pause", "Suspended")["status"] == "True", "it has stopped")
    assert not namespace.live_jobs("pause")
    assert not [pod for pod in namespace.pods("pause") if pod["status"]["phase"] == "Running"]
    assert plane.kubelet.interrupted
    plane.kubelet.behaviours.pop(("pause", "train"))
    namespace.edit("pause", suspend=False)
    status = namespace.wait_for("pause", "Succeeded")
    assert starts(plane, "pause") == [1, 2, 1, 1]
    assert {entry["name"]: entry["attempts"] for entry in status["stages"]}["train"] == 2


def test_an_object_can_be_created_suspended(namespace: Namespace) -> None:
    """No Job is created until it is unsuspended."""
    namespace.apply("asleep", suspend=True)
    namespace.wait_for("asleep", "Suspended")
    assert not namespace.jobs("asleep")


def test_a_deadline_stops_a_run_and_a_longer_one_resumes_it(plane: Plane, namespace: Namespace) -> None:
    """The running time of stages counts."""
    plane.kubelet.behave("slow", Stage.TRAIN, Runs())
    namespace.apply("slow", maxRuntime="4s")
    status = namespace.wait_for("slow", "Failed")
    assert status["failure"]["reason"] == "DeadlineExceeded"
    eventually(lambda: not namespace.live_jobs("slow"), "the Job is gone")
    plane.kubelet.behaviours.pop(("slow", "train"))
    namespace.edit("slow", maxRuntime="1h")
    namespace.wait_for("slow", "Succeeded")


def test_a_gate_holds_the_result_until_it_is_lowered(plane: Plane, namespace: Namespace) -> None:
    """A model that misses a gate is not published. Lowering the gate publishes it without training again."""
    gates = [{"metric": "exact_match", "min": "0.95"}]
    namespace.apply("bar", evaluation={"gates": gates})
    status = namespace.wait_for("bar", "Held")
    assert status["failure"]["reason"] == "GateNotPassed"
    assert "exact_match >= 0.95" in status["failure"]["message"]
    assert starts(plane, "bar") == [1, 1, 1, 0]
    namespace.edit("bar", evaluation={"gates": [{"metric": "exact_match", "min": "0.8"}]})
    namespace.wait_for("bar", "Succeeded")
    assert starts(plane, "bar") == [1, 1, 1, 1]


def test_a_draft_is_held_until_its_gate_is_lowered(plane: Plane, namespace: Namespace) -> None:
    """The API server stores status.draft, and no status.published. Then publish runs once more."""
    plane.kubelet.behave("sketch", Stage.PUBLISH, Ends(message=a_report(Stage.PUBLISH, draft=True)))
    evaluation = {"gates": [{"metric": "hallucinated_tool_rate", "max": "0.02"}], "onGateFailure": "Draft"}
    namespace.apply("sketch", evaluation=evaluation)
    status = namespace.wait_for("sketch", "Held")
    assert status["draft"]["branch"] == "tunemill-draft-1234"
    assert "published" not in status
    assert namespace.condition("sketch", "Published")["reason"] == "Draft"
    assert namespace.condition("sketch", "Stalled")["status"] == "True"
    plane.kubelet.behaviours.pop(("sketch", "publish"))
    namespace.edit("sketch", evaluation={"gates": []})
    status = namespace.wait_for("sketch", "Succeeded")
    assert "draft" not in status
    assert status["published"]["branch"] == "main"
    assert starts(plane, "sketch") == [1, 1, 1, 2]


def test_deleting_an_object_deletes_its_jobs_and_pods(plane: Plane, namespace: Namespace) -> None:
    """By the garbage collector, through owner references. The name can be reused at once."""
    plane.kubelet.behave("gone", Stage.TRAIN, Runs())
    namespace.apply("gone")
    namespace.wait_for("gone", "Training")
    namespace.delete("gone")
    plane.kubelet.behaviours.pop(("gone", "train"))
    namespace.apply("gone")
    namespace.wait_for("gone", "Succeeded")
    namespace.delete("gone")
    eventually(lambda: not namespace.jobs("gone") and not namespace.pods("gone"), "nothing is left")
    assert plane.api.find(namespace.path(PLURAL, "gone")) is None
