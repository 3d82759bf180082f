"""Builders for rows and files of the user's data."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from tunemill_trainer.data.files import Data, DataFile
from tunemill_trainer.data.rows import Call, Message, Role, Row, Source, Tool

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


def a_tool(**parameters: Any) -> Tool:
    """The weather tool, or one with other parameters."""
    return Tool("get_weather", "Weather of a city", parameters or WEATHER["parameters"])


def a_row(*messages: Message, tools: tuple[Tool, ...] = ()) -> Row:
    """A canonical row."""
    return Row(messages, tools or (a_tool(),), Source("calls.jsonl", 1))


def user(text: str = "What is the weather?") -> Message:
    """A user turn."""
    return Message(Role.USER, text)


def says(text: str = "It rains.", **fields: Any) -> Message:
    """An assistant turn with text."""
    return Message(Role.ASSISTANT, text, **fields)


def calls(name: str = "get_weather", **arguments: Any) -> Message:
    """An assistant turn with one call."""
    return Message(Role.ASSISTANT, "", calls=(Call(name, arguments),))


def answers(text: str = "7") -> Message:
    """A tool turn."""
    return Message(Role.TOOL, text)


def openai_row(question: str = "What is the weather in Rome?", **arguments: Any) -> dict[str, Any]:
    """A row in OpenAI's format that ends with a call."""
    function = {"name": "get_weather", "arguments": json.dumps(arguments or {"city": "Rome"})}
    call = {"id": "c1", "type": "function", "function": function}
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    }


def a_file(
    folder: Path, content: bytes | str | list[Any], name: str = "calls.jsonl", *, zipped: bool = False
) -> DataFile:
    """A file of the data; a list becomes JSON Lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    raw = content.encode() if isinstance(content, str) else content
    raw = gzip.compress(raw) if zipped else raw
    path = folder / hashlib.sha256(raw + name.encode()).hexdigest()[:8]
    path.write_bytes(raw)
    return DataFile(name, path, hashlib.sha256(raw).hexdigest())


def some_data(folder: Path, content: bytes | str | list[Any], name: str = "calls.jsonl") -> Data:
    """The data of one URI."""
    return Data(f"s3://team-a/{name}", (a_file(folder, content, name),))
