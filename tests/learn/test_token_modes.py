"""Modes for tags that a base model lacks, including tags as ordinary text."""

from pathlib import Path

import pytest
from learn.figures import at_least, at_most
from learn.runs import Recipe, a_trained_run
from learn.tasks import a_task, adapter
from learn.training import TAGS
from transformers import AutoTokenizer
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny.cached import cached_base


@pytest.mark.learns
def test_tags_as_text_are_learnt(seed: int, tmp_path: Path):
    """A base model without tags learns to write them as several tokens, around the right call."""
    task = a_task(cached_base("gemma2"), tmp_path, as_text=True)
    assert len(AutoTokenizer.from_pretrained(task.tokenizer).tokenize(TAGS[0])) > 1
    model = task.model()
    assert task.exact(model, 16) == 0
    trained = task.train(tmp_path / "run", adapter("LoRA"), model, maxSteps=90, learningRate="1e-2", seed=seed).model
    at_least("exact match", task.exact(trained), 0.1)


@pytest.mark.long
@pytest.mark.learns
def test_a_run_learns_with_tags_as_text(seed: int, tmp_path: Path):
    """With the stages and the schemas of tools in the prompts; the vocabulary is unchanged."""
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
