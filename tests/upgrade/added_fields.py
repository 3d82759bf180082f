"""A later version of the API: every part of the spec has one more field, with a default."""

from copy import copy
from functools import cache, reduce
from operator import or_
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import create_model
from tunemill_api.base import ApiModel

ADDED = "added_later"


@cache
def with_added_fields(model: type[ApiModel]) -> type[ApiModel]:
    """Return a model with one more defaulted field in itself and in each part, in lists and optional parts, too."""
    return _patched(model, {})


def _patched(model: type[ApiModel], done: dict[type, type[ApiModel]]) -> type[ApiModel]:
    if model in done:
        return done[model]
    fields: dict[str, Any] = {ADDED: (str, "new")}
    for name, info in model.model_fields.items():
        annotation = _substituted(info.annotation, done)
        if annotation != info.annotation:
            later = copy(info)
            later.annotation = annotation
            if isinstance(info.default, ApiModel):
                later.default = _patched(type(info.default), done).model_validate(
                    info.default.model_dump(by_alias=True, exclude_unset=True)
                )
            fields[name] = (annotation, later)
    done[model] = create_model(model.__name__, __base__=model, **fields)
    return done[model]


def _substituted(annotation: Any, done: dict[type, type[ApiModel]]) -> Any:
    if isinstance(annotation, type) and not isinstance(annotation, GenericAlias) and issubclass(annotation, ApiModel):
        return _patched(annotation, done)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return annotation
    if origin is Annotated:
        return Annotated[(_substituted(arguments[0], done), *arguments[1:])]
    later = tuple(_substituted(argument, done) for argument in arguments)
    if later == arguments:
        return annotation
    return reduce(or_, later) if origin in {Union, UnionType} else origin[later]
