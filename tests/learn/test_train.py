"""What training makes of prepared rows: an adapter that learnt and loads anywhere, errors that say what to do."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learn.training import TAGS, World, a_world, example, prepare, run_spec, run_stage
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny import make_base, rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with random weights, for what does not need to be learnt."""
    return make_base(tmp_path_factory.mktemp("base"), "gemma2", steps=0)


@pytest.fixture
def world(tmp_path: Path, base: Path) -> Iterator[World]:
    """Its services."""
    with a_world(tmp_path, base) as running:
        yield running


def exact_answers(adapter: Path, hub_url: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the share of unseen requests that the adapter answers with exactly the right call."""
    torch.set_num_threads(1)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub_url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, cache_dir=adapter.parent / "cache").eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    right = 0
    asked = [example(row) for row in rows(24, seed=77, talk=0)]
    for prompt, answer in asked:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
        reply = model.generate(**ids, max_new_tokens=60, do_sample=False, eos_token_id=stop, pad_token_id=0)
        right += tokenizer.decode(reply[0, ids["input_ids"].shape[1] :]) == answer
    return right / len(asked)


@pytest.mark.timeout(3600)
def test_the_adapter_learns_the_calls_and_loads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that new tags are learnt, and that AutoPeft finds base, commit and vocabulary from the committed files."""
    base = make_base(tmp_path / "base", "gemma2")
    with a_world(tmp_path, base) as world:
        facts = prepare(world, base, tmp_path / "prepared", extend=True, count=1200)
        spec = world.spec(maxSteps=170, batchSize=24, checkpoint={"everySteps": 500})
        ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
        assert ended.code == 0, ended.log
        trained = ended.report.trained
        assert trained.steps == 170
        assert float(trained.loss) < 0.2 * float(trained.first_loss)
        output = tmp_path / "output"
        world.workspace().fetch(Stage.TRAIN, ended.report.key, output)
        config = json.loads((output / "adapter" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny", facts.base_model_revision)
        history = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in history] == list(range(1, 171))
        assert {"loss", "learning_rate", "grad_norm", "epoch", "tokens"} <= history[0].keys()
        assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert list((output / "tensorboard").iterdir())
        # No embedding matrix is in the adapter: 128 by 1400 numbers alone would be 717 kB.
        assert (output / "adapter" / "adapter_model.safetensors").stat().st_size < 700_000
        assert exact_answers(output / "adapter", world.hub_url, monkeypatch) >= 0.8


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
def test_every_shape_of_vocabulary_trains(tmp_path: Path, kind: str, tied: bool, extend: bool) -> None:
    """Proves that the loss falls with a head of its own and without, with new tags and with those of the base."""
    torch.set_num_threads(1)
    base = make_base(tmp_path / "base", kind, tied=tied, tags=() if extend else TAGS, steps=0)
    with a_world(tmp_path, base) as world:
        facts = prepare(world, base, tmp_path / "prepared", extend=extend)
        ended = run_stage(Stage.TRAIN, world, run_spec(world.spec(maxSteps=12), facts), tmp_path / "work")
    assert ended.code == 0, ended.log
    assert float(ended.report.trained.loss) < float(ended.report.trained.first_loss)


def test_a_learning_rate_that_is_too_high_is_said_to_be(world: World, base: Path, tmp_path: Path) -> None:
    """Proves that a diverging run ends early, for good, with the field to change; and leaves no checkpoint behind."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=60, learningRate="1", warmupRatio="0", checkpoint={"everySteps": 1})
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 64, ended.log
    assert ended.report.failure.reason == Reason.TRAINING_DIVERGED
    assert "learningRate" in ended.report.failure.message
    key = keys.train_key(facts.key, spec)
    assert world.workspace().latest_checkpoint(key, tmp_path / "none") is None


def test_a_gpu_that_is_not_there_is_found_before_anything_is_downloaded(
    world: World, base: Path, tmp_path: Path
) -> None:
    """Proves the exit code that no retry heals, and that neither workspace nor Hub were asked for the model."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=2).model_copy(update={"compute": world.spec().compute.model_copy(update={"gpus": 1})})
    ended = run_stage(
        Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work", environment={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert ended.code == 78
    assert ended.report.failure.reason == Reason.CUDA_UNAVAILABLE
    assert not (tmp_path / "work" / "hub").exists()


@pytest.mark.parametrize(
    ("target", "named"), [("no_such_layer", "q_proj"), ("embed_tokens", "q_proj"), ("lm_head", "q_proj")]
)
def test_a_target_module_that_cannot_carry_an_adapter_is_refused(
    world: World, base: Path, tmp_path: Path, target: str, named: str
) -> None:
    """Proves that wrong module names end in InvalidSpec with those that the model offers."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=2)
    lora = spec.adapter.lora.model_copy(update={"target_modules": ["q_proj", target]})
    spec = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"lora": lora})})
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 64, ended.log
    assert ended.report.failure.reason == Reason.INVALID_SPEC
    assert target in ended.report.failure.message
    assert named in ended.report.failure.message


def test_the_loss_is_a_number_in_bfloat16(world: World, base: Path, tmp_path: Path) -> None:
    """Proves that half-precision weights train: the adapter's own stay in FP32, or they would not move."""
    facts = prepare(world, base, tmp_path / "prepared", extend=True)
    spec = world.spec(maxSteps=12, precision="BF16")
    ended = run_stage(Stage.TRAIN, world, run_spec(spec, facts), tmp_path / "work")
    assert ended.code == 0, ended.log
    assert math.isfinite(float(ended.report.trained.loss))
    assert float(ended.report.trained.loss) < float(ended.report.trained.first_loss)
