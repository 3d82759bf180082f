"""Finds calls between marks with a state machine, as vLLM does for many formats.

A table defines the transitions: state and mark → next state. Text outside calls is ignored. Within a name or arguments,
a mark without a transition is text. Unclosed calls at the end of the reply count.
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


class State(Enum):
    """The states of the scanner."""

    TEXT = auto()
    BEFORE_NAME = auto()
    NAME = auto()
    ARGUMENTS = auto()
    AFTER_CALL = auto()


@dataclass(frozen=True)
class Transition:
    """A transition.

    Attributes:
        to: the next state.
        begins: whether the mark starts a call.
        kept: whether the mark is itself the first text in the next state.
    """

    to: State
    begins: bool = False
    kept: bool = False


Transitions = Mapping[tuple[State, str], Transition]


@dataclass
class CallText:
    """The text of a call in the reply."""

    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The text of the arguments."""
        return "".join(self.parts)


class Scanner:
    """Finds the calls in replies with a table of transitions.

    Args:
        transitions: the transitions.
        inert: marks without transitions, so that shorter marks do not match parts of them.
    """

    def __init__(self, transitions: Transitions, inert: Iterable[str] = ()) -> None:
        self._transitions = transitions
        marks = sorted({mark for _, mark in transitions} | set(inert), key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def calls(self, text: str) -> list[CallText]:
        """Return the calls that a reply starts."""
        state, found = State.TEXT, list[CallText]()
        for part in self._marks.split(text):
            transition = self._transitions.get((state, part))
            if transition is None:
                _keep(found, state, part)
                continue
            state = transition.to
            if transition.begins:
                found.append(CallText())
            if transition.kept:
                _keep(found, state, part)
        return found


def _keep(found: list[CallText], state: State, part: str) -> None:
    if state is State.NAME:
        found[-1].name += part
    elif state is State.ARGUMENTS:
        found[-1].parts.append(part)


def as_calls(
    found: Iterable[CallText], to_json: Callable[[str], str], tools: Sequence[Tool], *, only_offered: bool = False
) -> ParsedReply:
    """Convert the text of calls to calls, as vLLM does.

    Args:
        found: the calls as text.
        to_json: converts the text of arguments to JSON; raises ValueError.
        tools: the available tools. Arguments are converted to the types in their schemas.
        only_offered: whether to drop calls to other tools.
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
    return calls_of_texts(calls, len(begun) or len(found), "no call has the name of an available tool")


def name_and_arguments(text: str) -> tuple[str, str]:
    """Return name and arguments of a JSON object; an empty name if the text is not such an object."""
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
