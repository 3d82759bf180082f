"""The catalogue of base models: complete, and true to the chat templates that TRL ships."""

from importlib import resources

import pytest
from tunemill_trainer.bases import catalogue
from tunemill_trainer.judge.parse import ALIASES, ReplyFormat

KNOWN = {
    "qwen2_5": ("qwen2", "Qwen2.5"),
    "qwen3": ("qwen3", "Qwen3"),
    "qwen3_instruct_2507": ("qwen3_moe", "Qwen3"),
    "qwen3_5_think": ("qwen3_5", "Qwen3.5"),
    "llama3_1": ("llama", "Llama 3"),
    "llama3_2": ("llama", "Llama 3"),
    "gemma3": ("gemma3_text", "Gemma 3"),
    "gemma4_v5": ("gemma4", "Gemma 4"),
    "gptoss": ("gpt_oss", "gpt-oss"),
    "lfm2_v2": ("lfm2", "LFM2"),
    "nemotron_3_nano": ("nemotron_h", "Nemotron 3"),
}
"""A template of TRL's → the model type of its models, and their family."""


def template(name: str) -> str:
    """Return a chat template as TRL ships it."""
    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "expected"), KNOWN.items(), ids=KNOWN)
def test_a_family_is_found_by_configuration_and_template(name: str, expected: tuple[str, str]):
    """The name of the repository is not used."""
    model_type, family = expected
    found = catalogue.family_of({"model_type": model_type}, template(name))
    assert found is not None
    assert found.name == family


def test_the_text_part_of_a_multimodal_model_counts():
    """Its configuration names the wrapper, and the language model in `text_config`."""
    config = {"model_type": "some_wrapper", "text_config": {"model_type": "gemma3_text"}}
    assert catalogue.family_of(config, "").name == "Gemma 3"


@pytest.mark.parametrize("config", [{}, {"model_type": "gpt2"}, {"model_type": "llama"}, {"text_config": 3}])
def test_other_models_belong_to_no_family(config: dict[str, object]):
    """For example a Llama without Llama 3's chat template."""
    assert catalogue.family_of(config, "{{ messages }}") is None


def test_reasoning_is_enabled_only_if_the_template_supports_it():
    """Qwen3 2507 Instruct has the model type of Qwen3, but does not reason."""
    (family,) = (each for each in catalogue.families() if each.name == "Qwen3")
    assert family.reasoning_parser(template("qwen3")) == "qwen3"
    assert family.reasoning_parser(template("qwen3_instruct_2507")) == ""


def test_every_entry_is_reachable_and_names_a_parser_of_the_server():
    """No entry is hidden by an earlier one, and vLLM has each parser of calls."""
    found = catalogue.families()
    assert len({family.name for family in found}) == len(found)
    for position, family in enumerate(found):
        for model_type in family.types:
            seen = catalogue.family_of({"model_type": model_type}, " ".join(family.marks))
            assert seen in found[: position + 1]
        assert any(catalogue.family_of({"model_type": name}, " ".join(family.marks)) is family for name in family.types)
        assert family.calls is None or family.calls.served
    assert set(ALIASES.values()) <= set(ReplyFormat)
