"""xLAM's format: `query`, and `answers` and `tools` as JSON text; a tool's parameters stand without a JSON schema.

https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k
"""

import re

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.schemas import type_of
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import read_object, read_value

_MAY_LACK = re.compile(r"optional|,\s*default\b", re.IGNORECASE)


def is_one(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return "query" in value and "answers" in value


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row: a question and the calls that answer it.

    Raises:
        RowError: saying what is wrong.
    """
    if not is_one(value):
        raise RowError(Rule.FORMAT, "expected the fields `query` and `answers`")
    with Within("answers"):
        answers = _list(value["answers"], Rule.BROKEN_CALL)
        if not answers:
            raise RowError(Rule.EMPTY_TURN, "`answers` holds no call, and the format has no place for a text")
    with Within("tools"):
        tools = read_tools([_tool(item) for item in _list(value.get("tools"), Rule.BROKEN_TOOL)])
    calls = []
    for index, answer in enumerate(answers):
        with Within("answers", index):
            calls.append(read_call(answer))
    with Within("query"):
        asked = text_of(value["query"])
    return [Message(Role.USER, asked), Message(Role.ASSISTANT, "", calls=tuple(calls))], tools


def _list(value: JsonValue, rule: Rule) -> list[JsonValue]:
    if isinstance(value, str):
        value = read_value(value, rule) if value.strip() else None
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _tool(item: JsonValue) -> JsonObject:
    """Return a tool with a JSON schema; the format lists the parameters bare, with the types of Python."""
    tool = read_object(item, Rule.BROKEN_TOOL, "a tool")
    if "function" in tool:
        tool = read_object(tool["function"], Rule.BROKEN_TOOL, "a tool's function")
    name = tool.get("name")
    bare = read_object(tool.get("parameters") or {}, Rule.BROKEN_TOOL, f"the parameters of {name}")
    if isinstance(bare.get("type"), str) and isinstance(bare.get("properties"), dict):
        return tool
    properties: JsonObject = {}
    required: list[JsonValue] = []
    for parameter, described in bare.items():
        if described is None:
            # A table has a null for every parameter that any other tool has.
            continue
        schema = read_object(described, Rule.BROKEN_TOOL, f"the parameter {parameter} of {name}")
        kind = schema.get("type")
        if "default" not in schema and not (isinstance(kind, str) and _MAY_LACK.search(kind)):
            required.append(parameter)
        # `required` beside a parameter is some copies' own; in JSON schema it means something else.
        typed = type_of(kind) if isinstance(kind, str) else {}
        kept = {key: part for key, part in schema.items() if key not in {"type", "required"} and part is not None}
        properties[parameter] = {**typed, **kept}
    return {**tool, "parameters": {"type": "object", "properties": properties, "required": required}}
