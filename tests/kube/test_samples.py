"""The samples applied like by kubectl: valid for the API server's schema and rules."""

from pathlib import Path

import pytest
import yaml
from kube.plane import PROFILES, Namespace
from tunemill_api.constants import KIND, PLURAL, PROFILE_KIND

SAMPLES = sorted((Path(__file__).parents[2] / "crds" / "samples").glob("*.yaml"))
PATHS = {KIND: PLURAL, "ConfigMap": "configmaps"}
CLUSTER_WIDE = {PROFILE_KIND: PROFILES}


@pytest.mark.parametrize("path", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_a_sample_is_accepted(namespace: Namespace, path: Path) -> None:
    """Without unknown fields, and with every ConfigMap that it refers to."""
    objects = list(yaml.safe_load_all(path.read_text()))
    for body in objects:
        path = CLUSTER_WIDE.get(body["kind"])
        if path is None:
            del body["metadata"]["namespace"]
            path = namespace.path(PATHS[body["kind"]])
        namespace.plane.api.post(f"{path}?fieldValidation=Strict", body)
    (spec,) = [body["spec"] for body in objects if body["kind"] == KIND]
    given = {(body["metadata"]["name"], key) for body in objects for key in body.get("data", {})}
    refs = [spec.get("tools"), spec.get("tokenizer", {}).get("chatTemplate")]
    named = {(ref["configMapKeyRef"]["name"], ref["configMapKeyRef"]["key"]) for ref in refs if ref}
    assert named == given
