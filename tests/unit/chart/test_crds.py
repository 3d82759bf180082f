"""The CRD in the chart."""

from typing import Any

import pytest
import yaml
from chart.rendering import REPOSITORY, render
from tunemill_api.constants import GROUP, PLURAL

GENERATED = yaml.safe_load((REPOSITORY / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())


def test_the_chart_installs_the_generated_crd() -> None:
    """Not a number or a rule of the schema changes on its way through the template."""
    rendered = render().one("CustomResourceDefinition")
    assert rendered["spec"] == GENERATED["spec"]
    assert rendered["metadata"]["name"] == GENERATED["metadata"]["name"]


@pytest.mark.parametrize(
    ("crds", "policy"),
    [({}, "keep"), ({"keep": True}, "keep"), ({"keep": False}, None)],
    ids=["default", "keep", "not"],
)
def test_the_crd_outlives_the_release_unless_told_otherwise(crds: dict[str, Any], policy: str | None) -> None:
    """Deleting a CRD deletes all of its objects, so that has to be asked for."""
    annotations = render(crds=crds).one("CustomResourceDefinition")["metadata"].get("annotations", {})
    assert annotations.get("helm.sh/resource-policy") == policy


def test_the_crd_can_be_left_to_somebody_else() -> None:
    """A second release in the cluster, or an installer without the right to make CRDs."""
    assert render(crds={"enabled": False}).all("CustomResourceDefinition") == []
