"""What all models of the API share: camelCase on the wire, unknown fields refused, docstrings as field descriptions."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of the API; immutable, so that the engine's decisions stay functions of values."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return itself: what never changes needs no copy, and pydantic would make one of every default part."""
        return self
