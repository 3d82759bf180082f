"""Train with prepared rows: a trained adapter that can be loaded, and errors with a remedy."""

import json
import math
from pathlib import Path

import pytest
from learn.figures import at_most
from learn.runs import TrainedRun
from learn.training import ALL_TAGS, BASE, World, a_world, prepare, run_spec, run_stage
from safetensors.torch import load_file
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_dev.tiny.cached import cached_base


def test_the_adapter_is_committed_with_the_record_of_its_training(extended_run: TrainedRun, tmp_path: Path) -> None:
    """The loss decreases, every step is recorded, and the adapter has no embedding matrix."""
    run = extended_run
    output = tmp_path / "output"
    trained = TrainedFacts.model_validate(run.world.workspace().fetch(Stage.TRAIN, run.train_key, output).facts)
    steps = run.run.spec.training.max_steps
    assert trained.steps == steps
    at_most("share of the first loss", float(trained.loss) / float(trained.first_loss), 0.2)
    config = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert run.run.prepared
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, run.run.prepared.base_model_revision)
    history = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == list(range(1, steps + 1))
    assert {"loss", "learning_rate", "grad_norm", "epoch", "tokens"} <= history[0].keys()
    assert list((output / "tensorboard").iterdir())
    # 128 by 1400 numbers of four bytes alone would be 717 kB.
    weights = load_file(output / "adapter" / "adapter_model.safetensors")
    assert not [name for name, tensor in weights.items() if tensor.shape[0] > 1000 or tensor.shape[-1] > 1000]


@pytest.mark.parametrize(
    ("kind", "tied", "extend"),
    [
        ("qwen3", True, True),
        ("qwen3", False, True),
        ("gemma3", True, True),
        ("gemma3", True, False),
        ("llama", False, False),
    ],
)
def test_training_works_with_every_kind_of_vocabulary(tmp_path: Path, kind: str, tied: bool, extend: bool) -> None:
    """With tied and untied heads, with new tags and with those of the base model."""
    base = cached_base(kind, () if extend else ALL_TAGS, tied=tied, steps=0)
    with a_world(tmp_path, base) as world:
        facts = prepare(world, base, tmp_path / "prepared", extend=extend)
        ended = run_stage(Stage.TRAIN, world, run_spec(world.spec(maxSteps=12), facts), tmp_path / "work")
    assert ended.code == 0, ended.log
    assert float(ended.report.trained.loss) < float(ended.report.trained.first_loss)


def test_a_too_high_learning_rate_is_reported(world: World, base: Path, tmp_path: Path) -> None:
    """A diverging run fails early and permanently, with the field to change, and leaves no checkpoint."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=60, learningRate="1", warmupRatio="0", checkpoint={"everySteps": 1})
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 64, ended.log
    assert ended.report.failure.reason == Reason.TRAINING_DIVERGED
    assert "with a peak learning rate of 1" in ended.report.failure.message
    assert "spec.training.learningRate" in ended.report.failure.remedy
    key = keys.train_key(facts.key, spec)
    assert world.workspace().latest_checkpoint(key, tmp_path / "none") is None


def test_a_missing_gpu_is_detected_before_any_download(world: World, base: Path, tmp_path: Path) -> None:
    """With the exit code for another node, and without requests to workspace and Hub for the model."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=2).model_copy(update={"compute": world.spec().compute.model_copy(update={"gpus": 1})})
    ended = run_stage(
        Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work", environment={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert ended.code == 71
    assert ended.report.failure.reason == Reason.CUDA_UNAVAILABLE
    assert not (tmp_path / "work" / "hub").exists()


def test_a_missing_target_module_is_refused(world: World, base: Path, tmp_path: Path) -> None:
    """With InvalidSpec and the modules of the model."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=2)
    lora = spec.adapter.lora.model_copy(update={"target_modules": ["q_proj", "no_such_layer"]})
    spec = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"lora": lora})})
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 64, ended.log
    assert ended.report.failure.reason == Reason.INVALID_SPEC
    assert "no_such_layer" in ended.report.failure.message
    assert "up_proj" in ended.report.failure.message


def test_the_loss_is_finite_in_bfloat16(world: World, base: Path, tmp_path: Path) -> None:
    """The adapter's own weights stay in FP32, as they would not change otherwise."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=12, precision="BF16")
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 0, ended.log
    assert math.isfinite(float(ended.report.trained.loss))
    assert float(ended.report.trained.loss) < float(ended.report.trained.first_loss)
