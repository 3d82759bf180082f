"""The canonical row: a conversation with typed tool calls. All data set formats are converted to it.

Rows are serialized with the standard library's json, never with Arrow. Arrow gives all rows of a column the same fields
and fills missing ones with null, so a model would learn to write `{"city": "Seoul", "minutes": null}`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self, cast

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]


class Role(StrEnum):
    """The role of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class Call:
    """One tool call of an assistant.

    Attributes:
        name: the name of the tool.
        arguments: the arguments by name.
        identifier: the id of the call in the data. It links a tool message to the call and is not trained on.
    """

    name: str
    arguments: JsonObject
    identifier: str = field(default="", compare=False)

    def to_json(self) -> JsonObject:
        """Return the call as in files and in the model's output."""
        return {"name": self.name, "arguments": self.arguments}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` wrote."""
        return cls(name=str(value["name"]), arguments=cast("JsonObject", value["arguments"]))


@dataclass(frozen=True)
class Tool:
    """A tool that the assistant may call. `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: JsonObject

    @property
    def size(self) -> int:
        """The rough size of the definition in bytes."""
        return len(self.description) + len(repr(self.parameters))

    def to_json(self) -> JsonObject:
        """Return the tool's definition as in files and, inside `<tools>`, in the prompt."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` wrote."""
        return cls(str(value["name"]), str(value["description"]), cast("JsonObject", value["parameters"]))


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: the role.
        content: the text, without reasoning and calls.
        reasoning: the reasoning before the text of an assistant turn.
        calls: the calls of an assistant turn, in order.
        name: the name of the tool that sent a tool message; empty if the data has none.
        learnt: whether the loss includes this assistant turn. The data can exclude a turn.
        answers_to: the id of the call that a tool message responds to; empty if the data has none.
    """

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    learnt: bool = True
    answers_to: str = field(default="", compare=False)

    def to_json(self) -> JsonObject:
        """Return the turn as JSON. Empty fields are omitted, except `content`."""
        value: JsonObject = {"role": self.role.value, "content": self.content}
        if self.reasoning:
            value["reasoning"] = self.reasoning
        if self.calls:
            value["calls"] = [call.to_json() for call in self.calls]
        if self.name:
            value["name"] = self.name
        if not self.learnt:
            value["learnt"] = False
        return value

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            role=Role(str(value["role"])),
            content=str(value["content"]),
            reasoning=str(value.get("reasoning", "")),
            calls=tuple(Call.from_json(call) for call in cast("list[JsonObject]", value.get("calls", []))),
            name=str(value.get("name", "")),
            learnt=bool(value.get("learnt", True)),
        )


@dataclass(frozen=True)
class Source:
    """The place of a row in the data, for messages. Lines and list elements count from 1."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


@dataclass(frozen=True)
class Row:
    """One conversation with the tools that it declares."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    source: Source
