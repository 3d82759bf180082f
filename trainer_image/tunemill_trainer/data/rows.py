"""The canonical row: a conversation with typed tool calls, whatever format it came in.

It is written and read with the standard library's json, never through Arrow: Arrow gives all rows of a column the same
fields and fills the missing ones with null, so that a model would learn to write `{"city": "Seoul", "minutes": null}`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self, cast

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class Call:
    """One tool call of an assistant.

    Attributes:
        name: of the tool.
        arguments: by name.
        identifier: that the data gives the call; it serves to find the call's answer, and is not learnt.
    """

    name: str
    arguments: JsonObject
    identifier: str = field(default="", compare=False)

    def to_json(self) -> JsonObject:
        """Return the call as it stands in files and in the model's output."""
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
        """How large the definition is, in bytes, roughly."""
        return len(self.description) + len(repr(self.parameters))

    def to_json(self) -> JsonObject:
        """Return the tool's definition as it stands in files and, inside `<tools>`, in the prompt."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` wrote."""
        return cls(str(value["name"]), str(value["description"]), cast("JsonObject", value["parameters"]))


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: what is said, apart from reasoning and calls.
        reasoning: what an assistant thinks first.
        calls: what an assistant calls, in its order.
        name: the tool that a tool message comes from, where the data says it.
        learnt: whether the loss is on what an assistant says; the data may say no of a turn.
        answers_to: the identifier of the call that a tool message answers, where the data says it.
    """

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    learnt: bool = True
    answers_to: str = field(default="", compare=False)

    def to_json(self) -> JsonObject:
        """Return the turn without the fields that are empty; `content` is always there."""
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
    """Where a row stands, so that a message can send the user there; lines and elements of a list count from 1."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


@dataclass(frozen=True)
class Row:
    """One conversation with the tools that it offers."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    source: Source
