"""Tool definitions and calls: read from what data sets hold, and calls checked against their tool's JSON schema."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable
from tunemill_api.failures import Reason

from tunemill_trainer.data.findings import Problem, RowError, Rule
from tunemill_trainer.data.memo import Memo
from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import is_deep, read_object, read_value, shortened
from tunemill_trainer.errors import StageError

JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
PYTHON_TYPES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "sequence": "array",
    "dict": "object",
    "mapping": "object",
    "hashmap": "object",
}
"""What public data calls the types of JSON schema."""

_LONGEST_NAME = 64
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_CACHED = 1024
"""Definitions that are kept. Rows repeat their tools; a file with ever new ones must not fill the memory."""
_MEANINGFUL_NULLS = {"default", "const", "example"}


def read_tools(value: JsonValue) -> tuple[Tool, ...]:
    """Return the tools of a row's `tools` field: a list or one tool, bare or wrapped as OpenAI has it, also as text.

    Raises:
        RowError: BROKEN_TOOL.
    """
    if value is None or value in ("", []):
        return ()
    return _read_tools(value if isinstance(value, str) else json.dumps(value))


def given_tools(text: str, where: str) -> tuple[Tool, ...]:
    """Return the tools that the user gives for all rows, with the names that servers take.

    Args:
        text: JSON: a list of definitions, or one.
        where: the text is from, for the message.

    Raises:
        StageError: InvalidSpec.
    """
    try:
        tools = tuple(replace(tool, name=served_name(tool.name) or tool.name) for tool in read_tools(text.strip()))
    except RowError as error:
        raise StageError(Reason.INVALID_SPEC, f"{where}: {error.problem.message}") from error
    if not tools:
        raise StageError(Reason.INVALID_SPEC, f"expected at least one tool in {where}, found none")
    return tools


def read_call(value: JsonValue) -> Call:
    """Return a call: an object with name and arguments, bare or wrapped as OpenAI has it, the arguments also as text.

    Raises:
        RowError: BROKEN_CALL.
    """
    call = read_object(value, Rule.BROKEN_CALL, "a call")
    if "function" in call:
        call = read_object(call["function"], Rule.BROKEN_CALL, "a call's function")
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if not isinstance(name, str) or not name:
        raise RowError(Rule.BROKEN_CALL, f"a call has no name: {shortened(json.dumps(call))}")
    if arguments is None or arguments == "":
        arguments = {}
    read = read_object(arguments, Rule.BROKEN_CALL, f"the arguments of {name}")
    if is_deep(read):
        raise RowError(Rule.BROKEN_CALL, f"the arguments of {name} are nested too deeply to be read")
    return Call(name, read)


def served_name(name: str) -> str:
    """Return a tool's name as servers take it, or an empty string when nothing of it can be kept.

    OpenAI's API takes letters, digits, _ and -, at most 64; the open servers also take the dot that many data sets use.
    """
    served = _NOT_IN_NAMES.sub("_", name.strip())[:_LONGEST_NAME]
    return served if any(letter.isalnum() for letter in served) else ""


def without_nulls(call: Call, tools: Sequence[Tool]) -> Call:
    """Return the call without values that are null although their tool neither requires them nor allows null.

    Data that went through a table has a null for every argument that any other row has, and a model would learn it.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return call
    return Call(call.name, cast("JsonObject", _without_nulls(call.arguments, tool.parameters)))


def _without_nulls(value: JsonValue, schema: JsonValue) -> JsonValue:
    """Return a value without the nulls that its schema does not know; where it has no properties, all is meant."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_without_nulls(item, schema.get("items")) for item in value]
    properties = schema.get("properties")
    if not (isinstance(value, dict) and isinstance(properties, dict)):
        return value
    required = schema.get("required")

    def meant(name: str) -> bool:
        described = properties.get(name)
        needed = isinstance(required, list) and name in required
        return needed or (isinstance(described, dict) and _validator(described).is_valid(None))

    return {
        name: _without_nulls(item, properties.get(name))
        for name, item in value.items()
        if item is not None or meant(name)
    }


def call_problems(call: Call, tools: Sequence[Tool]) -> Iterator[Problem]:
    """Yield what is wrong with a call in the light of the tools that the row offers."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        offered = ", ".join(tool.name for tool in tools) or "no tool"
        yield Problem(Rule.UNKNOWN_TOOL, f"{call.name} is called, and the row offers {shortened(offered)}")
        return
    properties = cast("JsonObject", tool.parameters.get("properties", {}))
    if tool.parameters.get("additionalProperties") is None and "patternProperties" not in tool.parameters:
        for name in sorted(call.arguments.keys() - properties.keys()):
            yield Problem(Rule.EXTRA_ARGUMENT, f"{call.name} is called with {name}, which its schema does not have")
    try:
        for error in _validator(tool.parameters).iter_errors(call.arguments):
            yield _schema_problem(call, error)
    except Unresolvable as error:
        yield Problem(Rule.BROKEN_TOOL, f"the schema of {call.name} points to something that is not in it: {error}")


def contract_problems(offered: Sequence[Tool], contract: Sequence[Tool]) -> Iterator[Problem]:
    """Yield where the tools that a row offers differ from those that the model will be served with."""
    agreed = {tool.name: tool for tool in contract}
    for tool in offered:
        if tool.name not in agreed:
            yield Problem(Rule.BREAKS_CONTRACT, f"the row offers {tool.name}, which is not among the given tools")
        elif tool.parameters != agreed[tool.name].parameters:
            yield Problem(Rule.BREAKS_CONTRACT, f"the parameters of {tool.name} are not those of the given tool")


def _schema_problem(call: Call, error: ValidationError) -> Problem:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    rule = {"required": Rule.MISSING_ARGUMENT, "additionalProperties": Rule.EXTRA_ARGUMENT}.get(str(error.validator))
    return Problem(rule or Rule.WRONG_ARGUMENT, f"{call.name}{where}: {shortened(error.message)}")


@lru_cache(maxsize=_CACHED)
def _read_tools(text: str) -> tuple[Tool, ...]:
    """Read the tools of a row. Rows repeat their tools: the same text is read once."""
    value = read_value(text, Rule.BROKEN_TOOL)
    tools: dict[str, Tool] = {}
    for item in value if isinstance(value, list) else [value]:
        try:
            tool = _read_tool(item)
        except RecursionError as error:
            raise RowError(Rule.BROKEN_TOOL, "a tool is nested too deeply to be read") from error
        if tools.setdefault(tool.name, tool) != tool:
            raise RowError(Rule.BROKEN_TOOL, f"two tools have the name {tool.name}")
    return tuple(tools.values())


def _read_tool(item: JsonValue) -> Tool:
    value = read_object(item, Rule.BROKEN_TOOL, "a tool")
    if "function" in value:
        value = read_object(value["function"], Rule.BROKEN_TOOL, "a tool's function")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(Rule.BROKEN_TOOL, f"a tool has no name: {shortened(json.dumps(value))}")
    parameters = _schema(read_object(value.get("parameters") or {}, Rule.BROKEN_TOOL, f"the parameters of {name}"))
    parameters.setdefault("type", "object")
    parameters.setdefault("properties", {})
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise RowError(
            Rule.BROKEN_TOOL, f"the parameters of {name} are no JSON schema: {shortened(error.message)}"
        ) from error
    if parameters["type"] != "object":
        raise RowError(Rule.BROKEN_TOOL, f"the parameters of {name} must be of type object")
    return Tool(name, str(value.get("description") or ""), parameters)


def _schema(node: JsonObject) -> JsonObject:
    """Return a schema with JSON's type names, without the nulls that a table filled in."""
    cleaned = {key: value for key, value in node.items() if value is not None or key in _MEANINGFUL_NULLS}
    kind = cleaned.get("type")
    if kind == "any":
        del cleaned["type"]
    elif isinstance(kind, str):
        cleaned["type"] = PYTHON_TYPES.get(kind.lower(), kind.lower())
    if isinstance(properties := cleaned.get("properties"), dict):
        cleaned["properties"] = {name: _schema(item) for name, item in properties.items() if isinstance(item, dict)}
    if isinstance(items := cleaned.get("items"), dict):
        cleaned["items"] = _schema(items)
    return cleaned


def _make_validator(schema: JsonObject) -> Draft202012Validator:
    # With a registry of its own it resolves references inside the schema and fetches none from the network.
    return Draft202012Validator(schema, registry=Registry())


_validator = Memo(_make_validator)
