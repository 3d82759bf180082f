"""Writes the files that are generated from the chart: `python -m tunemill_dev.chart ROOT`.

`--check` writes nothing and fails if a file is out of date.
"""

from pathlib import Path

from tunemill_api import generated

from tunemill_dev.chart.manifests import INSTALL, golden_files, install_manifest
from tunemill_dev.chart.profile_policy import POLICY, profile_policy
from tunemill_dev.chart.values_page import PAGE, values_page


def generated_files(root: Path) -> dict[str, str]:
    """Return the content of every generated file by its path relative to the repository."""
    return {PAGE: values_page(), INSTALL: install_manifest(), **golden_files(root)}


def parts_of_the_chart(_root: Path) -> dict[str, str]:
    """Return the generated files that the chart reads. They are written before the chart is rendered."""
    return {POLICY: profile_policy()}


if __name__ == "__main__":
    raise SystemExit(generated.main(__doc__, parts_of_the_chart) or generated.main(__doc__, generated_files))
