"""What is done about the tags that a base lacks: also as ordinary text they are learnt."""

from pathlib import Path

from learn.runs import a_trained_run
from tunemill_api.stage_report import Stage


def test_tags_as_text_are_learnt(tmp_path: Path):
    """A base that never saw a tag comes to call the right tool, and its vocabulary is what it was.

    It takes more steps than with tokens of their own: name accuracy was 0.37 after the 140 of these runs.
    """
    with a_trained_run(tmp_path, "gemma2", mode="Text") as run:
        prepared = run.run.prepared
        assert prepared is not None
        assert (prepared.tokenizer_mode, prepared.added_tokens) == ("Text", 0)
        judged = run.stage(Stage.EVALUATE)
        assert judged.report is not None, judged.log
        assert judged.report.evaluation is not None, judged.log
        metrics = {metric.name: metric for metric in judged.report.evaluation.metrics}
        assert float(metrics["tool_name_accuracy"].base) <= 0.05
        assert float(metrics["tool_name_accuracy"].tuned) >= 0.2
