"""A custom trainer image, from the manifest to its pods."""

from kube.operators import Operator
from kube.plane import Namespace, Plane
from tunemill_api.stage_report import Stage

IMAGE = "registry.example.com/own/trainer:2"


def test_a_custom_image_runs_all_stages_with_the_documented_contract(
    plane: Plane, namespace: Namespace, operator: Operator
) -> None:
    """With the default command, and with the output keys that the status then has."""
    namespace.apply("own", compute={"trainerImage": IMAGE})
    status = namespace.wait_for("own", "Succeeded")
    specs = [pod["spec"] for pod in namespace.pods("own")]
    containers = [item for spec in specs for item in [*spec.get("initContainers", []), *spec["containers"]]]
    assert {item["name"]: (item["image"], item["command"]) for item in containers} == {
        "prepare": (IMAGE, ["tunemill-trainer", "prepare"]),
        "train": (IMAGE, ["tunemill-trainer", "stages", "train", "evaluate"]),
        "publish": (IMAGE, ["tunemill-trainer", "publish"]),
    }
    keys = {entry["name"]: entry["key"] for entry in status["stages"]}
    for stage in (Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH):
        run_spec = plane.kubelet.run_specs["own", stage.value]
        assert run_spec.keys == {name: key for name, key in keys.items() if name != Stage.PREPARE}
