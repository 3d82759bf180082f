"""The real vLLM serves a small model of each known family as documented."""

from pathlib import Path

import pytest
from serving.conftest import ROOT
from tunemill_dev.serving import report
from tunemill_dev.serving.cells import Cells, measure
from tunemill_dev.serving.engines import Engines
from tunemill_dev.serving.families import NOT_SERVED, SERVED
from tunemill_dev.serving.training import trained
from tunemill_trainer.bases import catalogue

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", SERVED)
def test_a_family_is_served_as_it_was_trained(name: str, vllm: Engines, table: dict[str, Cells], tmp_path: Path):
    """Template, prompt tokens, parsers, the servability of each kind of adapter, and the calls that a client gets."""
    table[name] = measure(trained(name), vllm, tmp_path)
    assert table[name].right, "\n".join(table[name].notes)


def test_each_family_of_the_catalogue_is_measured_or_explained():
    """A new family needs a measurement or a reason."""
    assert sorted([*SERVED, *NOT_SERVED]) == sorted(family.name for family in catalogue.families())


def test_the_page_has_the_measured_results(table: dict[str, Cells]):
    """`make serving-page` writes it."""
    shown, measured = (ROOT / report.PAGE).read_text(encoding="utf-8"), report.page(ROOT, table)
    assert [line for line in measured.splitlines() if line not in shown.splitlines()] == []
    if set(table) == set(SERVED):
        assert shown == measured
