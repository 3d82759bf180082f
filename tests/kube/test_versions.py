"""A CRD and an operator of different versions, as during an upgrade in two steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube.api import ApiError
from kube.kubelet import eventually
from kube.operators import an_operator
from kube.plane import CRD, CRD_PATH, Plane
from property.builders import a_finetune_body, merged
from tunemill_api.constants import API_VERSION, GROUP, PLURAL
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster import control_plane


@pytest.fixture
def own_plane(tmp_path: Path) -> Iterator[Plane]:
    """A control plane whose CRD no other test uses."""
    with control_plane(tmp_path / "plane") as running:
        plane = Plane(running.kubeconfig, running.kubectl)
        plane.kubelet.start()
        yield plane
        plane.kubelet.stop()


def test_an_operator_newer_than_the_crd_works_and_reports_it(own_plane: Plane, tmp_path: Path) -> None:
    """Helm does not upgrade CRDs: unknown status fields are omitted until the CRD is upgraded."""
    crd: dict[str, Any] = yaml.safe_load(CRD.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for fields, gone in (
        (schema["status"]["properties"], ("history", "incumbent")),
        (schema["status"]["properties"]["run"]["properties"], ("gpuSeconds",)),
        (schema["status"]["properties"]["stages"]["items"]["properties"], ("gpus",)),
        (schema["spec"]["properties"], ("stallTimeout",)),
    ):
        for name in gone:
            del fields[name]
    own_plane.api.post(CRD_PATH, crd)
    eventually(lambda: own_plane.api.find(f"/apis/{API_VERSION}/{PLURAL}"), "the CRD is served")
    namespace = own_plane.namespace("versions")
    namespace.apply("early")
    with an_operator(own_plane.kubeconfig, tmp_path / "operator.log", "--no-leader-election") as operator:
        status = namespace.wait_for("early", "Succeeded")
        assert "history" not in status
        assert operator.logged("lacks status.")
        assert operator.logged("the CRD of FineTuneProfile is not installed, no profile applies")
        newer = yaml.safe_load(CRD.read_text())
        own_plane.api.patch(f"{CRD_PATH}/{PLURAL}.{GROUP}", {"spec": newer["spec"]})
        eventually(lambda: served(own_plane, "historyLimit"), "the new CRD is served")
        namespace.edit("early", publish={"repository": "acme/other"})
        status = namespace.wait_for("early", "Succeeded")
        assert status["history"][0]["result"] == "Succeeded"
        assert own_plane.kubelet.starts_of("early", Stage.TRAIN) == 1


def test_an_object_older_than_a_validation_rule_keeps_working(tmp_path: Path) -> None:
    """It violates a rule of the newer CRD. Its status and its other fields can still be written."""
    newer: dict[str, Any] = yaml.safe_load(CRD.read_text())
    older = yaml.safe_load(CRD.read_text())
    remove_rules(older["spec"])
    with control_plane(tmp_path / "plane", controllers=False) as running:
        plane = Plane(running.kubeconfig, running.kubectl)
        plane.api.post(CRD_PATH, older)
        collection = f"/apis/{API_VERSION}/namespaces/default/{PLURAL}"
        eventually(lambda: plane.api.find(f"/apis/{API_VERSION}/{PLURAL}"), "the CRD is served")
        every_block = {"method": "AdaLoRA", "lora": {"rank": 8}, "adalora": {"targetRank": 8}}
        body = merged(a_finetune_body("early", "default"), {"spec": {"adapter": every_block}})
        del body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        plane.api.post(collection, body)
        plane.api.patch(f"{CRD_PATH}/{PLURAL}.{GROUP}", {"spec": newer["spec"]})
        eventually(lambda: refused(plane, collection, body), "the new rules hold for new objects")
        path = f"{collection}/early"
        plane.api.patch(f"{path}/status", {"status": {"phase": "Pending"}})
        plane.api.patch(path, {"metadata": {"labels": {"team": "support"}}})
        plane.api.patch(path, {"spec": {"training": {"epochs": 2}}})
        assert plane.api.get(path)["spec"]["adapter"]["lora"]["rank"] == 8


def remove_rules(schema: Any) -> None:
    """Remove every validation rule from a schema."""
    if isinstance(schema, dict):
        schema.pop("x-kubernetes-validations", None)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        remove_rules(part)


def refused(plane: Plane, collection: str, body: dict[str, Any]) -> bool:
    """Return whether the API server rejects another object like this one."""
    try:
        plane.api.request("POST", f"{collection}?dryRun=All", merged(body, {"metadata": {"name": "late"}}))
    except ApiError as error:
        return error.code == 422
    return False


def served(plane: Plane, field: str) -> bool:
    """Return whether the API server publishes a field of the spec."""
    document = plane.api.get(f"/openapi/v3/apis/{API_VERSION}")
    return field in str(document)
