"""Display of the memory estimate, and refusal of runs that do not fit. The estimate itself is tested in tests/learn."""

import json
from pathlib import Path

import pytest
import yaml
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import DatasetFacts
from tunemill_trainer.__main__ import main
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import memory_plan
from tunemill_trainer.learn.memory_plan import (
    MIB,
    Estimate,
    Lengths,
    MemoryMode,
    Need,
    lengths_of,
    refuse_too_large,
    table,
)


def a_manifest(**spec: dict) -> dict:
    """A fine-tune of Qwen3 0.6B."""
    base = {
        "baseModel": {"id": "Qwen/Qwen3-0.6B"},
        "dataset": {"uri": "s3://team-a-data/calls.jsonl"},
        "publish": {"repository": "acme/tools"},
    }
    return {
        "apiVersion": "tunemill.dev/v1alpha1",
        "kind": "FunctionCallFineTune",
        "metadata": {"name": "tools"},
        "spec": base | spec,
    }


def a_spec(**spec: dict) -> FineTuneSpec:
    """The spec of `a_manifest`."""
    return FineTuneSpec.model_validate(a_manifest(**spec)["spec"])


def an_estimate() -> Estimate:
    """An estimate of 10,000 MiB at full speed and at least 4,000 MiB, of which the weights are 3,000."""
    modes = [(MemoryMode.NONE, 7000), (MemoryMode.SELECTIVE, 5000), (MemoryMode.FULL, 3000), (MemoryMode.ONE_ROW, 1000)]
    train = [Need(mode, {"weights": 3000 * MIB, "activations": mib * MIB}) for mode, mib in modes]
    return Estimate(1000, tuple(train), (Need(MemoryMode.ONE_ROW, {"weights": 3000 * MIB}),))


def test_a_run_that_does_not_fit_is_refused_with_a_remedy():
    """The message has needed and given MiB, the remedy has the field with the largest effect."""
    with pytest.raises(StageError, match=r"train needs at least 4000 MiB \(weights 3000, activations 1000\)") as error:
        refuse_too_large(a_spec(compute={"gpuMemory": "3Gi"}), an_estimate())
    assert error.value.reason is Reason.CUDA_OUT_OF_MEMORY
    assert "3Gi are 3072 MiB" in error.value.message
    assert "spec.baseModel.quantization to NF4" in error.value.failure.remedy
    with pytest.raises(StageError) as error:
        refuse_too_large(a_spec(compute={"gpuMemory": "3Gi"}, adapter={"method": "Full"}), an_estimate())
    assert "spec.adapter.method to LoRA" in error.value.failure.remedy


@pytest.mark.parametrize("compute", [{}, {"gpuMemory": "4000Mi"}, {"gpuMemory": "80Gi"}])
def test_a_run_that_fits_or_names_no_memory_is_not_refused(compute: dict):
    """The field is optional, and a run that needs exactly the given memory fits."""
    refuse_too_large(a_spec(compute=compute), an_estimate())


@pytest.mark.parametrize(
    ("mib", "mode"),
    [
        (3999, None),
        (4000, MemoryMode.ONE_ROW),
        (6000, MemoryMode.FULL),
        (9999, MemoryMode.SELECTIVE),
        (10_000, MemoryMode.NONE),
    ],
)
def test_the_fastest_mode_that_fits_is_shown(mib: int, mode: MemoryMode | None):
    """Nothing is returned if no mode fits."""
    found = an_estimate().fastest(mib)
    assert (found and found.mode) == mode


def test_the_table_names_every_part_and_gpu():
    """The table lists all parts of the memory and all common GPUs."""
    shown = table(an_estimate())
    assert "activations" in shown
    assert "train, no checkpointing" in shown
    assert "10,000 MiB" in shown
    assert any(line.startswith("T4") and line.endswith("yes, no checkpointing") for line in shown.splitlines())


def test_an_estimate_survives_json():
    """The estimate comes from another process as JSON."""
    assert Estimate.from_json(json.loads(json.dumps(an_estimate().to_json()))) == an_estimate()


def test_lengths_are_from_prepare_or_upper_bounds():
    """Without facts of prepare, the lengths are the maximum that the spec allows."""
    facts = DatasetFacts(
        format="OpenAI",
        rows=2,
        train_rows=1,
        evaluation_rows=1,
        longest_row_tokens=700,
        supervised_token_percent="30.0",
    )
    assert lengths_of(a_spec(), facts) == Lengths(700, 5600, 315, 0.3)
    assert lengths_of(a_spec(training={"lossOn": "All"})).supervised == 1
    assert lengths_of(a_spec()).longest == 2048
    assert lengths_of(a_spec(training={"maxLength": 32_000})).pass_tokens == 32_000, "a longer row has its own pass"


def test_the_plan_of_a_manifest_is_printed_and_its_limit_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command but the process that estimates, which tests/learn runs: it loads torch and Transformers."""
    asked: list[tuple[object, ...]] = []

    def estimated(*question: object) -> Estimate:
        asked.append(question)
        return an_estimate()

    monkeypatch.setattr(memory_plan, "estimate_in_child", estimated)
    manifest = tmp_path / "finetune.yaml"
    body = a_manifest(compute={"gpuMemory": "1Gi"}, tokenizer={"addTokens": ["<a>", "<b>"]})
    manifest.write_text(yaml.dump(body))
    code = main(["plan", str(manifest), "--config", str(tmp_path), "--longest", "512"])
    printed = capsys.readouterr()
    assert code == FAILURES[Reason.CUDA_OUT_OF_MEMORY].exit_code
    ((folder, spec, added, lengths),) = asked
    assert (folder, added, lengths) == (tmp_path, 2, lengths_of(a_spec(), longest=512))
    assert isinstance(spec, FineTuneSpec)
    assert spec.base_model.id == "Qwen/Qwen3-0.6B"
    assert "rows of at most 512 tokens, 4096 tokens a forward pass" in printed.out
    assert "10,000 MiB" in printed.out
    assert "1Gi are 1024 MiB" in printed.err
    assert any(line.startswith("T4 ") and "yes" in line for line in printed.out.splitlines())
