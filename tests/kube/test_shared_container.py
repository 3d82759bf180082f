"""Train and evaluate in one container of a running pod, with a real API server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from kube.kubelet import Runs, eventually
from kube.plane import Json, Namespace, Plane
from kube.test_progress import Endpoint, an_endpoint, token_of
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report


@pytest.fixture(scope="module")
def endpoint(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An operator with a progress endpoint."""
    with an_endpoint(plane, tmp_path_factory.mktemp("stages")) as endpoint:
        yield endpoint


def evaluating_pod(plane: Plane, namespace: Namespace, name: str) -> Json:
    """Bring an object to evaluate, which no status shows; return the pod."""
    plane.kubelet.behave(name, Stage.EVALUATE, Runs())
    namespace.apply(name)
    eventually(lambda: plane.kubelet.starts_of(name, Stage.EVALUATE), "evaluate runs")
    return next(pod for pod in namespace.pods(name) if pod["status"]["phase"] == "Running")


def end_of_train(plane: Plane, name: str, key: str = "") -> bytes:
    """Return the report that the pod posts at the end of train."""
    key = key or plane.kubelet.run_specs[name, Stage.TRAIN].keys[Stage.TRAIN]
    report = a_report(Stage.TRAIN, key=key, finished_at=datetime.now(UTC))
    return json.dumps({"report": json.loads(report)}).encode()


def test_the_pod_is_running_and_ready_while_it_trains(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """For disruption budgets and Kueue's waitForPodsReady there is no init container."""
    plane.kubelet.behave("long", Stage.TRAIN, Runs())
    namespace.apply("long")
    namespace.wait_for("long", "Training")
    (pod,) = [pod for pod in namespace.pods("long") if pod["status"]["phase"] == "Running"]
    assert "initContainers" not in pod["spec"]
    assert [(item["name"], item["ready"]) for item in pod["status"]["containerStatuses"]] == [("train", True)]


def test_train_is_done_in_the_status_while_evaluate_runs(
    endpoint: Endpoint, plane: Plane, namespace: Namespace
) -> None:
    """After the pod's report. There is one event, and the end of the pod does not change train."""
    pod = evaluating_pod(plane, namespace, "reported")
    assert (
        endpoint.post(namespace.name, "reported", token_of(namespace, pod), body=end_of_train(plane, "reported")) == 200
    )
    status = namespace.wait_for("reported", "Evaluating")
    assert status["trained"]["steps"] == 12
    states = {entry["name"]: entry["state"] for entry in status["stages"]}
    assert (states["train"], states["evaluate"]) == ("Succeeded", "Running")
    train = next(entry for entry in status["stages"] if entry["name"] == "train")
    plane.kubelet.behaviours.pop(("reported", "evaluate"))
    status = namespace.wait_for("reported", "Succeeded")
    assert next(entry for entry in status["stages"] if entry["name"] == "train") == train
    assert eventually(lambda: namespace.events("reported"), "an event reports it").count("Trained") == 1


def test_without_progress_reports_both_stages_are_read_from_the_message(
    endpoint: Endpoint, plane: Plane, namespace: Namespace
) -> None:
    """A post with another key changes nothing; the termination message has one report per line."""
    pod = evaluating_pod(plane, namespace, "unheard")
    body = end_of_train(plane, "unheard", key="0000000000000000")
    assert endpoint.post(namespace.name, "unheard", token_of(namespace, pod), body=body) == 200
    assert namespace.wait_for("unheard", "Training")["phase"] == "Training"
    plane.kubelet.behaviours.pop(("unheard", "evaluate"))
    status = namespace.wait_for("unheard", "Succeeded")
    assert [entry["attempts"] for entry in status["stages"]] == [1, 1, 1, 1]
    assert status["evaluation"]["rows"] == 10
