"""Training that continues from a published adapter, on new rows, with the real stages."""

import json
import math
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from learn.figures import at_least
from learn.runs import TrainedRun
from learn.tasks import CPU
from learn.training import run_spec, run_stage
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig
from tunemill_api import gates, keys
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, PublishedFacts
from tunemill_api.training import Adapter
from tunemill_dev.tiny import rows
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import adapter_fit, models
from tunemill_trainer.learn.adapter import adapter_config, load_weights
from tunemill_trainer.learn.models import ModelLoader
from tunemill_trainer.learn.order import row_order
from tunemill_trainer.learn.sft import read_rows
from tunemill_trainer.prepared import Prepared, Tokens
from tunemill_trainer.release import provenance
from tunemill_trainer.storage.base_files import ADAPTER_WEIGHTS

PUBLISHED = "acme/week-1"
STEPS = 12
"""The adapter was trained for 140."""


@dataclass(frozen=True)
class Continued:
    """A run that continued from the adapter of another one.

    Attributes:
        first: the run that trained the adapter.
        second: the run that continued.
        adapter: the folder of the adapter that it continued from.
        folder: has the outputs of the second run, by stage.
        evaluation: the metrics of the second run.
    """

    first: TrainedRun
    second: TrainedRun
    adapter: Path
    folder: Path
    evaluation: EvaluationFacts

    def history(self, run: TrainedRun) -> list[dict[str, float]]:
        """Return the logged training history of a run."""
        output = self.folder / f"history-{run.train_key}"
        run.world.workspace().fetch(Stage.TRAIN, run.train_key, output)
        return [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def continued(extended_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """Publish the adapter of a finished run, add rows, and continue with 12 steps, which SIGTERM interrupts."""
    folder, world = tmp_path_factory.mktemp("continued"), extended_run.world
    world.workspace().fetch(Stage.TRAIN, extended_run.train_key, folder / "first")
    extended_run.api.create_repo(PUBLISHED)
    extended_run.api.upload_folder(repo_id=PUBLISHED, folder_path=folder / "first" / "adapter")
    new = "".join(json.dumps(row) + "\n" for row in rows(160, seed=77, offered=2, talk=0.2))
    world.s3().put_object(Bucket=world.bucket, Key="calls-2.jsonl", Body=new.encode())
    spec = extended_run.run.spec.model_dump(mode="json", by_alias=True)
    spec["baseModel"]["adapter"] = {"id": PUBLISHED}
    spec["dataset"]["uri"] = f"s3://{world.bucket}/calls*.jsonl"
    # The vocabulary and all settings but dropout are those of the adapter.
    spec["tokenizer"] = {}
    spec["adapter"] = {"lora": {"dropout": "0"}}
    spec["training"] |= {"maxSteps": STEPS, "learningRate": "2e-3", "checkpoint": {"everySteps": 4}}
    spec["evaluation"]["maxRows"] = 80
    spec["evaluation"]["gates"] = [{"metric": "exact_match", "maxLossVsAdapter": "0.1"}]
    spec["publish"] |= {"repository": "acme/week-2", "artifacts": ["Adapter"]}
    run = run_spec(FineTuneSpec.model_validate(spec), None)
    prepared = run_stage(Stage.PREPARE, world, run, folder / "prepare")
    assert prepared.code == 0, prepared.log
    assert prepared.report is not None
    second = TrainedRun(world, run.model_copy(update={"prepared": prepared.report.prepared}), folder)
    stopped = second.stage(Stage.TRAIN, lambda line: signal.SIGTERM if "the checkpoint of step 4 to" in line else None)
    assert stopped.code == 75, stopped.log
    trained = second.stage(Stage.TRAIN)
    assert trained.code == 0, trained.log
    assert trained.report is not None
    assert trained.report.trained is not None
    assert trained.report.trained.resumed_from_step >= 4
    judged = second.stage(Stage.EVALUATE)
    assert judged.code == 0, judged.log
    assert judged.report is not None
    assert judged.report.evaluation is not None
    return Continued(extended_run, second, folder / "first" / "adapter", folder, judged.report.evaluation)


ADAPTERS = {
    "LoRA": Adapter.model_validate({"lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]}}),
    "IA3": Adapter.model_validate({"method": "IA3"}),
}
NO_NEW_TOKENS = Tokens("Reuse", (), (), 0, 0)


def an_adapter(base: Path, adapter: Adapter) -> Any:
    """Return a base model with a new adapter, all of whose weights are random."""
    model = models.load_base(base, CPU, torch.float32)
    tuned = get_peft_model(model, adapter_config(adapter, model, NO_NEW_TOKENS, steps=1))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return tuned


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_weights_of_a_published_adapter_are_loaded(base: Path, method: str, tmp_path: Path) -> None:
    """A new adapter gets the weights of PEFT's file. Other files are rejected with the difference."""
    adapter = ADAPTERS[method]
    published = an_adapter(base, adapter)
    published.save_pretrained(tmp_path)
    path, state = tmp_path / ADAPTER_WEIGHTS, get_peft_model_state_dict(published)
    loaded = an_adapter(base, adapter)
    load_weights(loaded, path)
    found = get_peft_model_state_dict(loaded)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    name = next(iter(state))
    for changed, problem in (
        ({**state, name: state[name] * math.nan}, "NaN or infinite"),
        ({**state, name: state[name][:-1].contiguous()}, f"expected the tensor {name} with the shape"),
        ({other: tensor for other, tensor in state.items() if other != name}, "found none"),
    ):
        save_file(changed, path)
        with pytest.raises(StageError, match=re.escape(problem)) as error:
            load_weights(loaded, path)
        assert error.value.reason is Reason.BASE_MODEL_UNSUPPORTED


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_settings_that_fit_the_tensors_are_found_from_shapes(base: Path, method: str) -> None:
    """All linear layers are tried first. Tensors of another rank or base model fit none."""
    config, adapter = AutoConfig.from_pretrained(base), ADAPTERS[method]
    state = get_peft_model_state_dict(an_adapter(base, adapter))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    all_linear = Adapter.model_validate(
        {
            "method": method,
            method.lower(): {"targetModules": ["all-linear"]} | ({"rank": 4} if method == "LoRA" else {}),
        }
    )
    assert adapter_fit.first_fitting(config, [all_linear, adapter], [], shapes) == 1
    larger = {name: (shape[0] + 1, *shape[1:]) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="expected the tensor base_model"):
        adapter_fit.first_fitting(config, [all_linear, adapter], [], larger)
    config.num_hidden_layers = 10_000_000
    with pytest.raises(ValueError, match="10000000 layers"):
        adapter_fit.first_fitting(config, [adapter], [], shapes)


def test_the_settings_of_the_adapter_are_used(continued: Continued, tmp_path: Path) -> None:
    """Rank, added tokens and chat template are not in the spec; they come from the adapter's repository."""
    found, first = continued.second.run.prepared, continued.first.run.prepared
    assert found is not None
    assert first is not None
    assert found.adapter is not None
    assert (found.adapter.method, found.adapter.rank, found.adapter.alpha) == ("LoRA", 16, 32)
    assert found.adapter.target_modules == ["all-linear"]
    assert (found.tokenizer_mode, found.added_tokens) == (first.tokenizer_mode, first.added_tokens)
    config = json.loads((continued.adapter / "adapter_config.json").read_text())
    continued.second.world.workspace().fetch(Stage.TRAIN, continued.second.train_key, tmp_path)
    made = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {name for name in config if made[name] != config[name]} <= {"target_modules"}
    assert set(made["target_modules"]) == set(config["target_modules"])
    own, other = (folder / "chat_template.jinja" for folder in (continued.adapter, tmp_path / "adapter"))
    assert own.read_text() == other.read_text()


def test_training_starts_from_the_weights_of_the_adapter(continued: Continued, tmp_path: Path) -> None:
    """The loss of the first step is that of the published adapter on the rows of this step."""
    second = continued.second
    assert second.run.prepared is not None
    second.world.workspace().fetch(Stage.PREPARE, second.run.prepared.key, tmp_path)
    prepared = Prepared(tmp_path)
    found, training = read_rows(prepared.train_path), second.run.spec.training
    base = Path(
        HfApi(endpoint=second.world.hub_url).snapshot_download(
            second.run.spec.base_model.id, local_dir=tmp_path / "base"
        )
    )
    model = ModelLoader(base, CPU, torch.float32).tuned(continued.adapter, prepared.tokens())
    losses = []
    for at in row_order(found["length"][:], training.seed, training.batch_size):
        ids, labels = (torch.tensor([found[int(at)][name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none")[labels[0, 1:] != -100])
    expected = float(torch.cat(losses).mean())
    history = continued.history(second)
    assert history[0]["step"] == 1
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.learns
def test_a_continued_training_needs_fewer_steps(continued: Continued) -> None:
    """It starts below the loss of a training from the base model after the same steps, and stays right."""
    from_base = continued.history(continued.first)[STEPS - 1]["loss"]
    assert continued.history(continued.second)[0]["loss"] < from_base / 2
    exact = next(metric for metric in continued.evaluation.metrics if metric.name == "exact_match")
    at_least("exact match of the adapter", exact.adapter, 0.5)
    at_least("exact match", exact.tuned, 0.5)
    (decision,) = gates.decide(continued.second.run.spec.evaluation.gates, continued.evaluation)
    assert decision.gate == "exact_match >= adapter - 0.1"
    assert decision.passed, decision.message


def test_old_held_out_rows_stay_held_out(continued: Continued, tmp_path: Path) -> None:
    """Rows held out by the first run are not trained on by the second one."""
    held_out = []
    for run in (continued.first, continued.second):
        assert run.run.prepared is not None
        output = tmp_path / run.run.prepared.key
        run.world.workspace().fetch(Stage.PREPARE, run.run.prepared.key, output)
        # A request may be in the old and in the new file, with other tools.
        held_out.append({case.messages[-1].content for case in Prepared(output).cases()})
    assert held_out[0] < held_out[1]


def test_the_release_names_the_adapter(continued: Continued, tmp_path: Path) -> None:
    """The card and the provenance have its commit, and the published adapter was verified as users load it."""
    ended = continued.second.stage(Stage.PUBLISH)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    facts: PublishedFacts | None = ended.report.published
    assert facts is not None
    api, commit = continued.second.api, continued.second.api.model_info(PUBLISHED).sha
    folder = Path(api.snapshot_download(facts.repository, revision=facts.revision, local_dir=tmp_path))
    card = (folder / "README.md").read_text()
    assert f"[{PUBLISHED}]({continued.second.world.hub_url}/{PUBLISHED}) (commit `{commit[:12]}`)" in card
    assert "| | base | adapter | tuned |" in card
    made = provenance.Statement.model_validate_json((folder / provenance.PROVENANCE).read_bytes())
    named = {each.name: each for each in made.predicate.build_definition.resolved_dependencies}
    assert named[provenance.START_ADAPTER].digest == {"gitCommit": commit}
    assert f"{provenance.START_ADAPTER}: adapter_model.safetensors" in named


def test_the_same_run_has_the_same_keys(continued: Continued) -> None:
    """The operator computes the keys from the user's spec. A second prepare finds the first one's output."""
    second, world = continued.second, continued.second.world
    again = run_stage(
        Stage.PREPARE, world, second.run.model_copy(update={"prepared": None}), continued.folder / "again"
    )
    assert again.code == 0, again.log
    assert again.report is not None
    assert not again.report.executed
    assert again.report.prepared == second.run.prepared
    assert keys.evaluate_key(second.train_key, second.run.spec) in "".join(
        item["Key"] for item in world.s3().list_objects_v2(Bucket=world.bucket, Prefix="tunemill/evaluate/")["Contents"]
    )
