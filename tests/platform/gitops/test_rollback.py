"""Commits, gates before a tag, and reverts of a repository."""

import json

import pytest
from kube.kubelet import Ends, eventually
from kube.plane import Json, Namespace, Plane
from property.builders import a_spec
from tunemill_api.constants import API_VERSION, KIND, PLURAL
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report

pytestmark = pytest.mark.usefixtures("operator")

FIRST = a_spec(publish={"tag": "v1"}, evaluation={"gates": [{"metric": "exact_match", "min": "0.8"}]})
SECOND = a_spec(
    publish={"tag": "v2"},
    evaluation={"gates": [{"metric": "exact_match", "min": "0.8"}]},
    training={"learningRate": "2e-4"},
)


def commit(namespace: Namespace, name: str, spec: Json) -> None:
    """Apply a manifest as Flux does after a commit."""
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    path = f"{namespace.path(PLURAL, name)}?fieldManager=kustomize-controller&force=true"
    namespace.plane.api.patch(path, body, "application/apply-patch+yaml")


def starts(plane: Plane, name: str) -> list[int]:
    """Return how often each stage's container was started."""
    return [plane.kubelet.starts_of(name, stage) for stage in Stage]


def push(plane: Plane, name: str, revision: str) -> None:
    """Let publish push this commit."""
    report = json.loads(a_report(Stage.PUBLISH))
    report["published"]["revision"] = revision
    plane.kubelet.behave(name, Stage.PUBLISH, Ends(message=json.dumps(report)))


def find_their_outputs(plane: Plane, name: str, **facts: str) -> None:
    """Let train and evaluate find existing outputs in the workspace, as the real stages do for a known key."""
    for stage in (Stage.TRAIN, Stage.EVALUATE):
        report = a_report(stage, executed=False, **(facts if stage is Stage.EVALUATE else {}))
        plane.kubelet.behave(name, stage, Ends(message=report))


def test_a_revert_publishes_the_previous_model_without_training(plane: Plane, namespace: Namespace) -> None:
    """The keys are those of the first commit, so train and evaluate find their outputs; only publish has work."""
    push(plane, "support", "aaaa")
    commit(namespace, "support", FIRST)
    first = namespace.wait_for("support", "Succeeded")
    assert plane.kubelet.run_specs["support", "publish"].spec.publish.tag == "v1"
    push(plane, "support", "bbbb")
    commit(namespace, "support", SECOND)
    second = namespace.wait_for("support", "Succeeded")
    assert plane.kubelet.run_specs["support", "publish"].spec.publish.tag == "v2"
    assert starts(plane, "support") == [1, 2, 2, 2]

    find_their_outputs(plane, "support")
    push(plane, "support", "cccc")
    commit(namespace, "support", FIRST)
    reverted = namespace.wait_for("support", "Succeeded")
    assert starts(plane, "support") == [1, 3, 3, 3]
    assert plane.kubelet.run_specs["support", "publish"].spec.publish.tag == "v1"
    keys = [{entry["name"]: entry["key"] for entry in status["stages"]} for status in (first, second, reverted)]
    assert keys[0] == keys[2]
    assert keys[0]["train"] != keys[1]["train"]
    executed = {entry["name"]: entry["executed"] for entry in reverted["stages"]}
    assert executed == {"prepare": True, "train": False, "evaluate": False, "publish": True}
    assert reverted["published"]["revision"] == "cccc"
    assert [(entry["id"], entry["revision"]) for entry in reverted["history"]] == [
        (first["run"]["id"], "cccc"),
        (second["run"]["id"], "bbbb"),
    ]


def test_a_revert_before_a_publication_starts_nothing(plane: Plane, namespace: Namespace) -> None:
    """The reverted commit raised a gate and was held. The object is Ready again at once."""
    commit(namespace, "bar", FIRST)
    first = namespace.wait_for("bar", "Succeeded")
    commit(namespace, "bar", a_spec(**FIRST | {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.95"}]}}))
    held = namespace.wait_for("bar", "Held")
    assert held["published"] == first["published"]
    commit(namespace, "bar", FIRST)
    reverted = namespace.wait_for("bar", "Succeeded")
    assert reverted["published"] == first["published"]
    assert starts(plane, "bar") == [1, 1, 1, 1]


def test_a_revert_is_compared_with_the_published_model_if_promote_is_ifbetter(
    plane: Plane, namespace: Namespace
) -> None:
    """With promote IfBetter the newer model stays if it is as good; with Always the revert is published."""
    schedule = {"schedule": "0 0 1 1 *", "promote": "IfBetter"}
    commit(namespace, "rival", FIRST | {"retrain": schedule})
    namespace.wait_for("rival", "Succeeded")
    commit(namespace, "rival", SECOND | {"retrain": schedule})
    second = namespace.wait_for("rival", "Succeeded")
    assert starts(plane, "rival") == [1, 2, 2, 2]

    find_their_outputs(plane, "rival", published="0.9000")
    commit(namespace, "rival", FIRST | {"retrain": schedule})
    eventually(lambda: namespace.condition("rival", "Ready").get("reason") == "NotBetter", "the newer model stays")
    assert namespace.status("rival")["published"] == second["published"]
    assert starts(plane, "rival") == [1, 3, 3, 2]
    commit(namespace, "rival", FIRST | {"retrain": schedule | {"promote": "Always"}})
    eventually(lambda: starts(plane, "rival") == [1, 3, 3, 3], "the revert is published, and nothing is judged again")
    assert plane.kubelet.run_specs["rival", "publish"].spec.publish.tag == "v1"
