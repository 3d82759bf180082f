"""Preference training: a model learns from its mistakes, and the better adapter is kept."""

import json
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learn.runs import Recipe, TrainedRun
from learn.tasks import CPU, Task, a_task, adapter
from learn.training import Ended, a_world, run_spec, run_stage
from safetensors.torch import load_file
from transformers import AutoTokenizer
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import PreferenceFacts
from tunemill_api.training import Training
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.ast_matching import ast_match
from tunemill_trainer.judge.mistakes import Pair
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.learn import dpo, models, sft
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.learn.loss import target_figures
from tunemill_trainer.learn.passes import Pass
from tunemill_trainer.learn.plan import plan
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.storage.base_files import ADAPTER_WEIGHTS

PAIRS = 32


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base model with random weights and added tokens; a wrong answer is that of another request."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("task"))


def pairs_of(task: Task) -> list[Pair]:
    """Each request with its answer and that of another one."""
    answers = [say for _, say in task.pairs[: PAIRS + 1]]
    return [
        Pair(ask, right, wrong)
        for (ask, right), wrong in zip(task.pairs[:PAIRS], answers[1:], strict=True)
        if right != wrong
    ]


def adapter_of(task: Task, folder: Path, method: str) -> Path:
    """An adapter after two steps, so that it differs from the base model."""
    result = task.train(folder / "run", adapter(method), task.model(), count=16, maxSteps=2, learningRate="1e-2")
    save_trained(result.model, BaseModel("acme/tiny", "0"), task.tokenizer, folder / "adapter", torch.float32)
    return folder / "adapter" / ADAPTER_WEIGHTS


def trained(task: Task, folder: Path, method: str, start: Path, *, pass_tokens: int = 16_384) -> dpo.Result:
    """Train on the pairs for two epochs."""
    training = Training(learning_rate="5e-3" if method == "LoRA" else "5e-2", epochs=2, batch_size=8, warmup_ratio="0")
    schedule = replace(plan(training, len(pairs_of(task))), micro_batch_tokens=pass_tokens)
    model, tokenizer = task.model(), AutoTokenizer.from_pretrained(task.tokenizer)
    config = adapter_config(adapter(method), model, task.tokens, schedule.steps)
    assert config is not None
    run = sft.Run(training, schedule, CPU, torch.float32, folder, start=start)
    return dpo.train(run, model, config, tokenizer, pairs_of(task), 0.1, [])


def difference(model: Any, pair: Pair) -> float:
    """Log-probability of the expected answer minus that of the wrong one."""
    found = []
    for answer in (pair.chosen_ids, pair.rejected_ids):
        ids = torch.tensor([[*pair.prompt_ids, *answer]])
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]
        found.append(float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()))
    return found[0] - found[1]


def test_training_on_pairs_prefers_the_expected_answers(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The reference is the start adapter, passes can have any size, and a pair that fits no device is an error."""
    start = adapter_of(task, tmp_path, "LoRA")
    whole = trained(task, tmp_path / "whole", "LoRA", start)
    first, last = whole.history[0], whole.history[-1]
    # The policy equals the reference: the margin is 0.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["rewards/margins"] > first["rewards/margins"] + 0.1
    supervised = models.load_adapter(task.model(), start.parent)
    gained = [difference(whole.model, pair) > difference(supervised, pair) for pair in pairs_of(task)]
    assert sum(gained) > 0.8 * len(gained)
    save_trained(whole.model, BaseModel("acme/tiny", "0"), task.tokenizer, tmp_path / "preferred", torch.float32)
    before, after = (load_file(folder / ADAPTER_WEIGHTS) for folder in (start.parent, tmp_path / "preferred"))
    assert [name for name in before if "embed_tokens" in name], "the rows of added tokens"
    assert not [name for name, tensor in before.items() if torch.equal(tensor, after[name])]

    failed = []

    def small(model: Any, batch: Pass, also: tuple[str, ...]) -> Any:
        if batch.inputs["input_ids"].shape[0] > 4:
            failed.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return target_figures(model, batch, also)

    monkeypatch.setattr(dpo, "target_figures", small)
    cut = trained(task, tmp_path / "cut", "LoRA", start)
    assert failed
    for one, other in zip(whole.history, cut.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)

    def none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dpo, "target_figures", none)
    with pytest.raises(StageError, match="a pair of two rows") as error:
        trained(task, tmp_path / "none", "LoRA", start)
    assert error.value.reason is Reason.OUT_OF_MEMORY


def test_training_on_pairs_continues_an_ia3_adapter(tmp_path: Path):
    """The reference is the start adapter, not the base model."""
    task = a_task(cached_base("qwen3", steps=0), tmp_path, as_text=True)
    result = trained(task, tmp_path / "dpo", "IA3", adapter_of(task, tmp_path, "IA3"))
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.history[-1]["rewards/margins"] > 0


STEPS, PROMPTS = 16, 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    """A run before train, whose supervised training is too short for only right calls."""
    folder = tmp_path_factory.mktemp("preference")
    recipe = Recipe("gemma2", mode="Extend")
    with a_world(folder / "world", cached_base("gemma2")) as world:
        lines = "".join(json.dumps(row) + "\n" for row in rows(200, seed=11, offered=2, talk=0.2))
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=lines.encode())
        spec = recipe.spec(world).model_dump(mode="json", by_alias=True)
        spec["dataset"] |= {"validation": {"fraction": "0.1"}, "evaluation": {"fraction": "0.1"}}
        spec["training"] |= {"maxSteps": STEPS, "preference": {"maxPrompts": PROMPTS, "learningRate": "1e-3"}}
        spec["training"]["batchSize"] = 8
        wanted = FineTuneSpec.model_validate(spec)
        prepared = run_stage(Stage.PREPARE, world, run_spec(wanted, None), folder / "prepare")
        assert prepared.code == 0, prepared.log
        assert prepared.report is not None
        yield TrainedRun(world, run_spec(wanted, prepared.report.prepared), folder)


def preference(ended: Ended) -> PreferenceFacts:
    """Return the results."""
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.trained is not None
    assert ended.report.trained.preference is not None
    return ended.report.trained.preference


def test_a_model_learns_from_its_mistakes_and_resumes(run: TrainedRun, tmp_path: Path):
    """Pairs are mistakes on training rows, collected once, and the result is evaluated on other rows."""

    def stop(line: str) -> int | None:
        return signal.SIGTERM if f"the checkpoint of step {STEPS + 1} to" in line else None

    stopped = run.stage(Stage.TRAIN, stop)
    assert stopped.code == 75, stopped.log
    assert run.world.workspace().latest_checkpoint(run.train_key, tmp_path / "checkpoint") == STEPS + 1
    pairs = [Pair(**json.loads(line)) for line in (tmp_path / "checkpoint" / "pairs.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint" / "output" / "adapter")
    for pair in pairs:
        chosen, rejected = (parse_reply(tokenizer.decode(ids[:-1])) for ids in (pair.chosen_ids, pair.rejected_ids))
        assert not (chosen.blocks == rejected.blocks and ast_match(rejected.calls, chosen.calls, ()))

    ended = run.stage(Stage.TRAIN)
    assert "training prompts" not in ended.log, "answered again"
    found = preference(ended)
    assert (found.prompts, found.pairs) == (PROMPTS, len(pairs))
    assert found.steps == math.ceil(len(pairs) / 8)
    assert found.cases > 0
    assert found.kept == (float(found.exact_after) > float(found.exact_before))
    assert ended.report.trained.steps == ended.report.trained.resumed_from_step == STEPS
    run.world.workspace().fetch(Stage.TRAIN, run.train_key, tmp_path / "output")
    record = [json.loads(line) for line in (tmp_path / "output" / "preference.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in record] == list(range(1, found.steps + 1))
    supervised, kept = (
        load_file(folder / "adapter" / ADAPTER_WEIGHTS)
        for folder in (tmp_path / "checkpoint" / "output", tmp_path / "output")
    )
    same = all(torch.equal(tensor, kept[name]) for name, tensor in supervised.items())
    assert same is not found.kept
