"""The golden files show the effect of a change to the chart; `make generate` writes, `make lint` checks them."""

import re

from chart.rendering import CHART, REPOSITORY
from tunemill_dev.chart.manifests import GOLDEN


def test_every_template_is_rendered_in_a_golden_file() -> None:
    """Except the CRDs, which are long and compared elsewhere. A new template needs values that render it."""
    golden = "".join(file.read_text() for file in (REPOSITORY / GOLDEN).glob("*[!s].yaml"))
    shown = set(re.findall(r"^# Source: tunemill/templates/(\S+)$", golden, re.MULTILINE))
    assert shown == {file.name for file in (CHART / "templates").glob("*.yaml")} - {"crds.yaml"}
