"""Reads the YAML metadata of a README.md, and rejects what the real Hub rejects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|\Z)", re.DOTALL)
_RepoId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")]


@dataclass(frozen=True)
class Card:
    """The metadata of a model card, with its errors and warnings."""

    metadata: dict[str, Any]
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_card(readme: str) -> Card:
    """Read the metadata. Never raises."""
    found = _FRONT_MATTER.match(readme)
    if not found:
        return Card({}, warnings=("empty or missing yaml metadata in repo card",))
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return Card({}, errors=(f"the metadata is not YAML: {error}",))
    if metadata is None:
        return Card({}, warnings=("empty or missing yaml metadata in repo card",))
    if not isinstance(metadata, dict):
        return Card({}, errors=(f"the metadata must be a mapping, not a {type(metadata).__name__}",))
    try:
        _Metadata.model_validate(metadata)
    except ValidationError as error:
        reasons = (f'"{".".join(map(str, reason["loc"]))}": {reason["msg"]}' for reason in error.errors())
        return Card(metadata, errors=tuple(reasons))
    return Card(metadata)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Metric(_Strict):
    type: str
    value: object


class _Result(_Strict):
    task: dict[str, Any]
    dataset: dict[str, Any] | None = None
    metrics: list[_Metric]


class _Model(_Strict):
    name: str
    results: list[_Result]


class _Metadata(_Strict):
    """The fields that the Hub's model card specification defines. Other fields are not checked."""

    license: str | list[str] | None = None
    language: str | list[str] | None = None
    tags: list[str] | None = None
    datasets: _RepoId | list[_RepoId] | None = None
    metrics: list[str] | None = None
    base_model: _RepoId | list[_RepoId] | None = None
    library_name: str | None = None
    pipeline_tag: str | None = None
    model_index: list[_Model] | None = Field(default=None, alias="model-index")
