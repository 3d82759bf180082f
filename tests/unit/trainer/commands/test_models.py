"""`tunemill models`: the catalogue, and details of one base model."""

import json
from pathlib import Path

import pytest
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, GEMMA, GEMMA_TEMPLATE, a_speaker
from trainer.commands.json_shapes import undocumented, unprinted
from tunemill_trainer.__main__ import tunemill
from tunemill_trainer.bases import catalogue
from tunemill_trainer.commands import models

QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


def a_base(folder: Path, config: dict[str, object], *, gemma: bool = False) -> str:
    """A folder with the configuration and the tokenizer of a base model."""
    speaker = a_speaker(GEMMA, template=GEMMA_TEMPLATE) if gemma else a_speaker(CHATML, template=CHATML_TEMPLATE)
    speaker.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_catalogue_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every family, and the learning rates."""
    assert tunemill(["models"]) == 0
    printed = capsys.readouterr().out
    for family in catalogue.families():
        assert f"{family.name}\n  examples          {family.examples[0]}" in printed
    assert "  LoRA                       2e-4    2e-4    1e-4    5e-5" in printed


def test_a_known_model_has_no_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its family is in the catalogue."""
    assert tunemill(["models", a_base(tmp_path, QWEN3)]) == 0
    printed = capsys.readouterr().out
    assert "  family            Qwen3\n" in printed
    assert "  calls             hermes\n" in printed
    assert "  replies end with  <|im_end|>\n" in printed
    assert "Assumed" not in printed


def test_an_unknown_model_is_described_with_its_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its call format is found by rendering calls; other properties are assumptions."""
    config = {"model_type": "arcee", "architectures": ["ArceeForCausalLM"]}
    assert tunemill(["models", a_base(tmp_path, config)]) == 0
    printed = capsys.readouterr().out
    assert "not in the catalogue" in printed
    assert "- The call format is hermes, found by rendering calls with the base model's chat template." in printed
    assert "- FP16 is precise enough" in printed


def test_a_multimodal_model_is_recognised_by_its_text_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own `model_type` decides whether it is served merged or as adapter."""
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text"},
    }
    assert tunemill(["models", a_base(tmp_path, config, gemma=True), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["multimodal"]) == ("Gemma 3", True)
    assert (found["fp16"], found["ownTemplate"]) == (False, False)
    assert "System role not supported" in found["templateRejectedBecause"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {
            "model_type": "x",
            "architectures": ["XForConditionalGeneration"],
            "text_config": {},
            "is_encoder_decoder": True,
        },
        {},
    ],
    ids=["T5", "BERT", "encoder-decoder with a text part", "without architectures"],
)
def test_a_model_that_cannot_be_trained_is_an_error(
    config: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The known properties are still printed."""
    assert tunemill(["models", a_base(tmp_path, config)]) == 64
    printed = capsys.readouterr()
    assert "cannot be trained" in printed.err
    assert "calls             hermes" in printed.out


def test_a_missing_model_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its name, in one line."""
    assert tunemill(["models", str(tmp_path / "typo")]) == 66
    assert str(tmp_path / "typo") in capsys.readouterr().err


def test_the_json_output_is_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both forms; together they have every documented field."""
    missing = set()
    config = {"model_type": "arcee", "architectures": ["ArceeForCausalLM"]}
    for arguments in ([], [a_base(tmp_path, config)]):
        assert tunemill(["models", *arguments, "--json"]) == 0
        printed = capsys.readouterr().out
        assert undocumented(models.COMMAND, printed) == []
        unseen = unprinted(models.COMMAND, printed)
        missing = unseen & missing if missing else unseen
    assert missing == set()
