"""The CRDs in the chart."""

from typing import Any

import pytest
import yaml
from chart.rendering import REPOSITORY, render
from tunemill_api.constants import GROUP, PLURAL, PROFILE_PLURAL

FILES = [REPOSITORY / "crds" / f"{GROUP}_{plural}.yaml" for plural in (PROFILE_PLURAL, PLURAL)]


def test_the_chart_installs_the_generated_crds() -> None:
    """The template changes nothing in the schemas."""
    rendered = render().all("CustomResourceDefinition")
    generated = [yaml.safe_load(file.read_text()) for file in FILES]
    assert [(crd["metadata"]["name"], crd["spec"]) for crd in rendered] == [
        (crd["metadata"]["name"], crd["spec"]) for crd in generated
    ]


@pytest.mark.parametrize(
    ("crds", "policy"),
    [({}, "keep"), ({"keep": True}, "keep"), ({"keep": False}, None)],
    ids=["default", "keep", "not"],
)
def test_the_crds_are_kept_on_uninstall_unless_disabled(crds: dict[str, Any], policy: str | None) -> None:
    """Deleting a CRD deletes all of its objects."""
    for crd in render(crds=crds).all("CustomResourceDefinition"):
        assert crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == policy


def test_the_crds_can_be_installed_separately() -> None:
    """For a second release in the cluster, or without permission to create CRDs."""
    assert render(crds={"enabled": False}).all("CustomResourceDefinition") == []
