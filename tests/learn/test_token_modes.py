"""What is done about the tags that a base lacks: also as ordinary text they are learnt."""

from pathlib import Path

import pytest
from learn.figures import at_least, at_most
from learn.runs import Recipe, a_trained_run
from tunemill_api.stage_report import Stage


@pytest.mark.learns
def test_tags_as_text_are_learnt(seed: int, tmp_path: Path):
    """A base that never saw a tag comes to call the right tool, and its vocabulary is what it was."""
    recipe = Recipe("gemma2", mode="Text").with_seed(seed)
    with a_trained_run(tmp_path, recipe) as run:
        prepared = run.run.prepared
        assert prepared is not None
        assert (prepared.tokenizer_mode, prepared.added_tokens) == ("Text", 0)
        judged = run.stage(Stage.EVALUATE)
        assert judged.report is not None, judged.log
        assert judged.report.evaluation is not None, judged.log
        metrics = {metric.name: metric for metric in judged.report.evaluation.metrics}
        at_most("correct tool of the base", metrics["tool_name_accuracy"].base, 0.05)
        at_least("correct tool", metrics["tool_name_accuracy"].tuned, 0.2)
