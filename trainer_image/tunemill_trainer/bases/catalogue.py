"""The catalogue of known base models, and which of its families a base model belongs to.

A family is found by the model type of the configuration and by texts of the chat template, never by the repository's
name: many users train copies under other names. A base model outside the catalogue works, too: its chat template is
probed for a format of calls, and nothing is known about its precision and its reasoning.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tunemill_trainer.judge.parse import ReplyFormat

_THINKS = "<think>"


class Family(BaseModel):
    """Base models that are fine-tuned and served alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    name: str
    examples: tuple[str, ...]
    """Models on the Hub."""
    types: tuple[str, ...]
    """Values of `model_type` in the configuration, or in its `text_config`."""
    marks: tuple[str, ...] = ()
    """Texts that all stand in the chat template."""
    calls: ReplyFormat | None = None
    """The format in which the chat template writes tool calls; None when it has no place for tools."""
    reasoning: str = ""
    """vLLM's parser of reasoning; empty when the family does not reason."""
    thinks: str = _THINKS
    """Text of chat templates whose models reason: not all models of a family do."""
    fp16: bool = True
    """Whether FP16, whose largest number is 65504, is wide enough."""
    merged: tuple[str, ...] = ()
    """Model types of which vLLM needs the merged model: an adapter of all linear layers has layers that
    `release.servability` does not take, such as those of linear attention."""
    stops: tuple[str, ...] = Field(min_length=1)
    """Tokens that end a reply."""

    def reasoning_parser(self, template: str) -> str:
        """Return vLLM's parser of reasoning for a model with this chat template; empty when it does not reason."""
        return self.reasoning if self.thinks in template else ""


@cache
def families() -> tuple[Family, ...]:
    """Return the catalogue, in the order in which families are tried."""
    text = resources.files(__package__).joinpath("families.yaml").read_text(encoding="utf-8")
    return tuple(Family.model_validate(entry) for entry in yaml.safe_load(text))


Template = str | Mapping[str, str] | None
"""A chat template, several by name, or none, as a tokenizer has it."""


def family_of(config: Mapping[str, Any], template: Template) -> Family | None:
    """Return the family of a base model; None if it is not in the catalogue.

    Args:
        config: the model's config.json.
        template: the chat template of its tokenizer.
    """
    types = model_types(config)
    text = text_of(template)
    for family in families():
        if types & set(family.types) and all(mark in text for mark in family.marks):
            return family
    return None


def text_of(template: Template) -> str:
    """Return the text of all chat templates of a model; empty if it has none."""
    return "\n".join(template.values()) if isinstance(template, Mapping) else template or ""


def model_types(config: Mapping[str, Any]) -> set[str]:
    """Return the model type, and that of the text part of a multimodal model."""
    text = config.get("text_config")
    parts = (config, text if isinstance(text, Mapping) else {})
    return {str(part["model_type"]) for part in parts if part.get("model_type")}


def types_out_of_range_in_fp16() -> frozenset[str]:
    """Return the model types that FP16 breaks."""
    return frozenset(name for family in families() if not family.fp16 for name in family.types)
