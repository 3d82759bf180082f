"""API-Bank: `instruction` and `input` with descriptions of APIs and a dialogue as text, and `output`.

https://huggingface.co/datasets/liminghao1630/API-Bank
Lines of the dialogue begin with User:, AI: or API-Request:. A request is `[Name(key='value')]`; in the dialogue, `->`
and the response of the API follow. Test rows have `expected_output` instead of `output`.
"""

import json
import re
from contextlib import suppress

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import toolace
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools
from tunemill_trainer.data.values import shortened

_REQUEST = "API-Request:"
_LINE = re.compile(r"^(User|AI|API-Request):[ \t]*", re.MULTILINE)
_ASKED = re.compile(r"^Generate (?:API Request|AI response|the next reply)\S*\s*\Z", re.MULTILINE | re.IGNORECASE)
_DECODER = json.JSONDecoder()


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format and mentions API requests."""
    texts = [value.get("instruction"), value.get("output", value.get("expected_output"))]
    return (
        "input" in value
        and all(isinstance(text, str) for text in texts)
        and any(_REQUEST in str(text) for text in texts)
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    field = "output" if value.get("output") is not None else "expected_output"
    with Within("instruction"):
        instruction = text_of(value.get("instruction"))
    with Within("input"):
        dialogue = text_of(value.get("input"))
        descriptions, dialogue = _descriptions(dialogue)
    described, _ = _descriptions(instruction)
    with Within("instruction"):
        tools = read_tools([_tool(each) for each in [*described, *descriptions]])
    names = {tool.name for tool in tools}
    with Within("input"):
        messages = _turns(_ASKED.sub("", dialogue), names)
    with Within(field):
        reply = _turns(text_of(value.get(field)), names)
        if len(reply) != 1 or reply[0].role is not Role.ASSISTANT:
            raise RowError(Rule.FORMAT, "expected one API request or one reply")
    if not messages:
        raise RowError(Rule.FORMAT, "expected a dialogue with lines that begin with User:", "input")
    return [*messages, *reply], tools


def _descriptions(text: str) -> tuple[list[JsonObject], str]:
    """Return the descriptions of APIs in a text, each a JSON object on a separate line, and the rest of the text."""
    found: list[JsonObject] = []
    rest: list[str] = []
    for line in text.split("\n"):
        value = None
        if line.startswith("{"):
            with suppress(ValueError, RecursionError):
                value, _ = _DECODER.raw_decode(line)
        if isinstance(value, dict) and value.keys() & {"name", "apiCode", "api_name"}:
            found.append(value)
        else:
            rest.append(line)
    return found, "\n".join(rest)


def _tool(api: JsonObject) -> JsonObject:
    name = next((api[field] for field in ("name", "apiCode", "api_name") if field in api), None)
    parameters = api.get("input_parameters", api.get("parameters"))
    return {"name": name, "description": api.get("description"), "parameters": parameters}


def _turns(text: str, tools: set[str]) -> list[Message]:
    begin, *parts = _LINE.split(text.strip())
    if begin.strip():
        raise RowError(Rule.FORMAT, f"expected a line that begins with User: or AI:, found {shortened(begin.strip())}")
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        if speaker == "User":
            messages.append(Message(Role.USER, content.strip()))
        elif speaker == "AI":
            messages.append(Message(Role.ASSISTANT, content.strip()))
        else:
            request, arrow, answer = content.strip().partition("]->")
            written = f"{request}]" if arrow else request
            calls = toolace.calls_in(written, tools)
            if not calls:
                raise RowError(Rule.BROKEN_CALL, f"expected a request in brackets, found {shortened(written)}")
            messages.append(Message(Role.ASSISTANT, "", calls=calls))
            messages += [Message(Role.TOOL, answer.strip())] if arrow else []
    return messages
