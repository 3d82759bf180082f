"""Finds calls that stand between marks: a table says which mark leads from where to where.

vLLM reads many formats so. Outside of a call text does not matter; within a name or arguments, a mark that leads
nowhere from there is text. What is not closed when the reply ends counts as it is.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, calls_of_texts
from tunemill_trainer.judge.replies.schema_types import with_schema_types

_NAME_FIELD = re.compile(r'"name"\s*:\s*"([^"]*)"')


class Place(Enum):
    """Where in a reply the scan is."""

    TEXT = auto()
    BEFORE_NAME = auto()
    NAME = auto()
    ARGUMENTS = auto()
    AFTER_CALL = auto()


@dataclass(frozen=True)
class Step:
    """What a mark does.

    Attributes:
        to: where the scan goes on.
        begins: a call begins with the mark.
        kept: the mark itself is the first text of the place that it leads to.
    """

    to: Place
    begins: bool = False
    kept: bool = False


Steps = Mapping[tuple[Place, str], Step]


@dataclass
class Written:
    """A call as it stands in the reply."""

    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The text of its arguments."""
        return "".join(self.parts)


class Scanner:
    """Splits replies by a table of steps.

    Args:
        steps: what each mark does at each place.
        inert: marks that do nothing, but of which no shorter mark may be read as a part.
    """

    def __init__(self, steps: Steps, inert: Iterable[str] = ()) -> None:
        self._steps = steps
        marks = sorted({mark for _, mark in steps} | set(inert), key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def calls(self, text: str) -> list[Written]:
        """Return the calls that are begun in a reply."""
        place, found = Place.TEXT, list[Written]()
        for part in self._marks.split(text):
            step = self._steps.get((place, part))
            if step is None:
                _keep(found, place, part)
                continue
            place = step.to
            if step.begins:
                found.append(Written())
            if step.kept:
                _keep(found, place, part)
        return found


def _keep(found: list[Written], place: Place, part: str) -> None:
    if place is Place.NAME:
        found[-1].name += part
    elif place is Place.ARGUMENTS:
        found[-1].parts.append(part)


def as_calls(
    found: Iterable[Written], to_json: Callable[[str], str], tools: Sequence[Tool], *, only_offered: bool = False
) -> ParsedReply:
    """Return the calls that vLLM makes of those that were found.

    Args:
        found: the calls as they stand in the reply.
        to_json: turns the text of arguments into JSON; raises ValueError.
        tools: what may be called; arguments take the types of its schema.
        only_offered: a call of any other tool is left out.
    """
    found = list(found)
    if not found:
        return NO_CALL
    offered = {tool.name for tool in reversed(tools)}
    begun = [call for call in found if call.name.strip() or call.arguments]
    calls: list[tuple[str, JsonValue]] = []
    for call in begun:
        name, arguments = call.name.strip(), call.arguments
        if not name and (match := _NAME_FIELD.search(arguments)):
            name = match[1].strip()
        if not arguments.strip():
            arguments = "{}"
        elif name:
            try:
                arguments = to_json(arguments)
            except ValueError:
                arguments = name_and_arguments(arguments)[1]
        else:
            name, arguments = name_and_arguments(arguments)
        if name and (name in offered or not (only_offered and tools)):
            calls.append((name, with_schema_types(arguments, name, tools)))
    return calls_of_texts(calls, len(begun) or len(found), "no call that is begun has the name of an offered tool")


def name_and_arguments(text: str) -> tuple[str, str]:
    """Return what a JSON object with a name says; an empty name when it is none."""
    text = text.strip()
    try:
        value = json.loads(text)
    except ValueError:
        return "", text
    if not isinstance(value, dict):
        return "", text
    name = value.get("name", "")
    if not isinstance(name, str):
        name = ""
    for key in ("arguments", "parameters"):
        if key in value:
            return name, value[key] if isinstance(value[key], str) else json.dumps(value[key], ensure_ascii=False)
    return name, json.dumps({key: item for key, item in value.items() if key != "name"}, ensure_ascii=False)
