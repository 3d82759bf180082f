"""Parses tool definitions and calls in all forms that data sets use, and checks calls against the tool's schema."""

import json
import marshal
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import cast

from jsonschema.exceptions import SchemaError, UnknownType, ValidationError
from jsonschema.protocols import Validator
from pydantic import JsonValue
from referencing.exceptions import Unresolvable
from tunemill_api.failures import Reason

from tunemill_trainer.data import schemas
from tunemill_trainer.data.caches import TextCache
from tunemill_trainer.data.findings import Problem, RowError, Rule, Within
from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import is_deep, read_object, read_value, shortened
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import OutOfBoundsError, TimeBound

_LONGEST_NAME = 64
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_WITHOUT_REFERENCES = 2
"""A version of marshal in which equal values have equal bytes; five times as fast as JSON."""
_LARGEST = 1 << 20
"""The most bytes of all tools of a row. This is a quarter of a million tokens, more than any model's context."""
_MOST_PROBLEMS = 100
"""The most problems that are reported for one call."""
_TIME = TimeBound(seconds=1.0)
"""The time limit for checking one tool or one call. A regular expression or branching references could take forever;
normal schemas take milliseconds."""


ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs", "tool_input", "tool_arguments")
"""The fields for a call's arguments: OpenAI; Llama and Cohere; LangChain and Gemini; Anthropic; others."""
_NAMES_OF_CALLS = ("name", "tool_name", "function_name", "tool", "function")
_IDENTIFIERS = ("tool_call_id", "call_id", "tool_use_id", "id")
_OF_CALLS = frozenset(
    {*ARGUMENTS, *_NAMES_OF_CALLS, *_IDENTIFIERS, "type", "index", "label", "status", "requestor", "caller"}
)
"""The known fields of a call. Without a known field for arguments, any other field may hold them in an unknown form."""
_WRAPPERS_OF_CALLS = ("function", "functionCall", "function_call")
_PARAMETERS = (
    "parameters",
    "input_schema",
    "inputSchema",
    "args_schema",
    "schema",
    "params",
    "arguments",
    "args",
    "input",
)
"""The fields for the schema of a tool's arguments: OpenAI, Anthropic, MCP, LangChain, others."""
_LISTS_OF_TOOLS = ("function_declarations", "functionDeclarations", "tools")
"""Fields with which one object lists several tools, as in Gemini's API."""


def read_tools(value: JsonValue) -> tuple[Tool, ...]:
    """Parse a row's `tools` field: one tool or a list, with or without OpenAI's wrapper, also as a JSON string.

    Raises:
        RowError: BROKEN_TOOL.
    """
    if value is None or value in ("", []):
        return ()
    try:
        packed = marshal.dumps(value, _WITHOUT_REFERENCES)
    except ValueError as error:
        raise RowError(Rule.BROKEN_TOOL, "a tool is nested too deeply") from error
    if len(packed) > _LARGEST:
        raise RowError(
            Rule.BROKEN_TOOL, f"expected tools of at most {_LARGEST >> 10} KiB in a row, found {len(packed) >> 10} KiB"
        )
    return _read_tools(packed)


def given_tools(text: str, where: str) -> tuple[Tool, ...]:
    """Parse the tools that the user gives for all rows, and replace characters that servers do not accept in names.

    Args:
        text: one definition or a list of them, as JSON.
        where: the source of the text, for messages.

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
    """Parse a call: an object with name and arguments, with or without OpenAI's wrapper; arguments may be a string.

    Raises:
        RowError: BROKEN_CALL.
    """
    call = read_object(value, Rule.BROKEN_CALL, "a call")
    wrapper = next((key for key in _WRAPPERS_OF_CALLS if isinstance(call.get(key), dict | str)), None)
    if wrapper is None or (isinstance(call[wrapper], str) and "{" not in str(call[wrapper])):
        return _read_call(call, identifier_of(call))
    with Within(wrapper):
        inner = read_object(call[wrapper], Rule.BROKEN_CALL, "a call's function")
        return _read_call(inner, identifier_of(call) or identifier_of(inner))


def identifier_of(value: JsonObject) -> str:
    """Return the id of a call, or of the call that a tool message responds to; empty if there is none."""
    found = (value.get(field) for field in _IDENTIFIERS)
    return next((str(each) for each in found if isinstance(each, str | int) and str(each)), "")


def _read_call(call: JsonObject, identifier: str) -> Call:
    name = next((call[field] for field in _NAMES_OF_CALLS if call.get(field) is not None), None)
    if not isinstance(name, str) or not name:
        raise RowError(Rule.BROKEN_CALL, f"the call has no name: {shortened(json.dumps(call))}")
    field = next((field for field in ARGUMENTS if call.get(field) is not None), None)
    arguments = call[field] if field else None
    strange = call.keys() - _OF_CALLS
    if field is None and strange:
        raise RowError(
            Rule.BROKEN_CALL,
            f"the call to {name} has no arguments, but unknown fields: {shortened(', '.join(sorted(strange)))}",
        )
    if arguments is None or arguments == "":
        arguments = {}
    with Within(field or "arguments"):
        read = read_object(arguments, Rule.BROKEN_CALL, f"the arguments of {name}")
        if is_deep(read):
            raise RowError(Rule.BROKEN_CALL, f"the arguments of {name} are nested too deeply")
    return Call(name, read, identifier)


def served_name(name: str) -> str:
    """Return a tool's name with characters that servers accept; an empty string if no such name can be made.

    OpenAI's API accepts at most 64 letters, digits, _ and -. Open-source servers also accept the dot, which many data
    sets use.
    """
    served = _NOT_IN_NAMES.sub("_", name.strip())[:_LONGEST_NAME]
    return served if any(letter.isalnum() for letter in served) else ""


def without_nulls(call: Call, tools: Sequence[Tool]) -> Call:
    """Return the call without null arguments that the tool's schema neither requires nor allows to be null.

    Data from a table has a null for every argument that any other row has. A model would learn to write them.

    Raises:
        RowError: BROKEN_TOOL.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return call
    try:
        with _TIME:
            checker = schemas.checker(tool.parameters)
            kept = _without_nulls(call.arguments, cast("JsonObject", checker.schema), checker)
    except MemoryError:
        raise  # the row's memory bound reports it
    except Exception as error:  # as in call_problems
        raise RowError(Rule.BROKEN_TOOL, _unusable(call.name, error)) from error
    return Call(call.name, cast("JsonObject", kept))


def _without_nulls(value: JsonValue, schema: JsonValue, checker: Validator) -> JsonValue:
    """Return a value without the nulls that its schema does not allow. Objects without `properties` are kept as is."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_without_nulls(item, schema.get("items"), checker) for item in value]
    properties = schema.get("properties")
    if not (isinstance(value, dict) and isinstance(properties, dict)):
        return value
    required = schema.get("required")

    def meant(name: str) -> bool:
        needed = isinstance(required, list) and name in required
        return needed or schemas.allows_null(checker, properties.get(name))

    return {
        name: _without_nulls(item, properties.get(name), checker)
        for name, item in value.items()
        if item is not None or meant(name)
    }


def call_problems(call: Call, tools: Sequence[Tool]) -> list[Problem]:
    """Return the problems of a call, checked against the tools that the row declares."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        offered = ", ".join(tool.name for tool in tools) or "no tools"
        return [Problem(Rule.UNKNOWN_TOOL, f"{call.name} is not declared; the row declares {shortened(offered)}")]
    try:
        if schemas.quick_check(tool.parameters)(call.arguments):
            return []
        with _TIME:
            checker = schemas.checker(tool.parameters)
            found = (problem for error in checker.iter_errors(call.arguments) for problem in _of_schema(call, error))
            return list(islice(found, _MOST_PROBLEMS))
    except MemoryError:
        raise  # the row's memory bound reports it
    except Exception as error:  # noqa: BLE001 - a schema with an invalid part can raise anything
        return [Problem(Rule.BROKEN_TOOL, _unusable(call.name, error))]


def contract_problems(offered: Sequence[Tool], contract: Sequence[Tool]) -> Iterator[Problem]:
    """Yield a problem for each tool of a row that differs from spec.tools, the tools that the model is served with."""
    agreed = {tool.name: tool for tool in contract}
    for tool in offered:
        if tool.name not in agreed:
            yield Problem(Rule.BREAKS_CONTRACT, f"the row declares {tool.name}, which spec.tools does not declare")
        elif tool.parameters != agreed[tool.name].parameters:
            yield Problem(Rule.BREAKS_CONTRACT, f"the parameters of {tool.name} differ from those in spec.tools")


def _of_schema(call: Call, error: ValidationError) -> Iterator[Problem]:
    where = call.name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    match error.validator:
        case "additionalProperties":
            undeclared = _undeclared(cast("JsonObject", error.instance), cast("JsonObject", error.schema))
            for name in sorted(undeclared):
                yield Problem(
                    Rule.EXTRA_ARGUMENT, f"{where} has the argument {name}, which its schema does not declare"
                )
        case "unevaluatedProperties":
            yield Problem(Rule.EXTRA_ARGUMENT, f"{where}: {shortened(error.message)}")
        case "required":
            yield Problem(Rule.MISSING_ARGUMENT, f"{where}: {shortened(error.message)}")
        case _:
            yield Problem(Rule.WRONG_ARGUMENT, f"{where}: {shortened(error.message)}")


def _undeclared(instance: JsonObject, schema: JsonObject) -> Iterator[str]:
    """Yield the keys of an object that neither `properties` nor `patternProperties` of its schema allow."""
    names, patterns = (cast("JsonObject", schema.get(key, {})) for key in ("properties", "patternProperties"))
    return (name for name in instance if name not in names and not any(re.search(each, name) for each in patterns))


def _unusable(name: str, error: Exception) -> str:
    if isinstance(error, ArithmeticError):
        return f"a call to {name} cannot be checked against its schema: a number is too large"
    if isinstance(error, OutOfBoundsError):
        return f"checking a call to {name} against its schema {error}"
    if isinstance(error, RecursionError):
        return f"the schema of {name} is infinitely recursive"
    if isinstance(error, Unresolvable):
        return f"the schema of {name} has a reference that cannot be resolved: {shortened(str(error))}"
    if isinstance(error, UnknownType):
        return f"the schema of {name} has an unknown type: {shortened(repr(error.type))}"
    return f"a call to {name} cannot be checked: a part of its schema is invalid ({type(error).__name__})"


def _unpack_tools(packed: bytes) -> tuple[Tool, ...]:
    value = cast("JsonValue", marshal.loads(packed))  # noqa: S302 - read_tools packed it
    if isinstance(value, str):
        value = read_value(value, Rule.BROKEN_TOOL)
    tools: dict[str, Tool] = {}
    for index, item in enumerate(_listed_tools(value)):
        with Within("", index):
            try:
                tool = _read_tool(marshal.dumps(item, _WITHOUT_REFERENCES))
            except RecursionError as error:
                raise RowError(Rule.BROKEN_TOOL, "a tool is nested too deeply") from error
            if tools.setdefault(tool.name, tool) != tool:
                raise RowError(Rule.BROKEN_TOOL, f"two tools have the name {tool.name}")
    return tuple(tools.values())


def _listed_tools(value: JsonValue) -> Iterator[JsonValue]:
    for item in value if isinstance(value, list) else [value]:
        inner = None
        if isinstance(item, dict) and "name" not in item:
            inner = next((item[key] for key in _LISTS_OF_TOOLS if isinstance(item.get(key), list)), None)
        yield from cast("list[JsonValue]", inner) if inner is not None else [item]


def _unpack_tool(packed: bytes) -> Tool:
    value = read_object(cast("JsonValue", marshal.loads(packed)), Rule.BROKEN_TOOL, "a tool")  # noqa: S302 - as above
    for wrapper in ("function", "toolSpec"):
        if wrapper in value:
            value = read_object(value[wrapper], Rule.BROKEN_TOOL, "a tool's function")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(Rule.BROKEN_TOOL, f"the tool has no name: {shortened(json.dumps(value))}")
    try:
        with _TIME:
            parameters = schemas.cleaned(_written_parameters(name, value))
            parameters.setdefault("type", "object")
            schemas.check_schema(parameters)
    except OutOfBoundsError as error:
        raise RowError(Rule.BROKEN_TOOL, f"reading the parameters of {name} {error}") from error
    except SchemaError as error:
        raise RowError(
            Rule.BROKEN_TOOL, f"the parameters of {name} are not a valid JSON schema: {shortened(error.message)}"
        ) from error
    kind = parameters["type"]
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise RowError(Rule.BROKEN_TOOL, f"the parameters of {name} must be of type object")
    return Tool(name, str(value.get("description") or ""), parameters | {"type": "object"})


def _written_parameters(name: str, tool: JsonObject) -> JsonObject:
    """Return the schema of a tool's arguments, from any of the fields and forms that data sets use."""
    field = next((field for field in _PARAMETERS if tool.get(field) not in (None, "", [])), None)
    if field is None:
        keys = [key for key in ("properties", "required") if tool.get(key)]
        return {"type": "object", "properties": {}, **{key: tool[key] for key in keys}}
    written = tool[field]
    if isinstance(written, list):
        return schemas.from_parameter_list(written, name)
    if isinstance(written, str):
        written = read_value(written, Rule.BROKEN_TOOL) or {}
    read = read_object(written, Rule.BROKEN_TOOL, f"the parameters of {name}")
    if isinstance(read.get("json"), dict) and len(read) == 1:  # Bedrock's
        read = cast("JsonObject", read["json"])
    if not read:
        return {"type": "object", "properties": {}}
    return read if schemas.is_schema(read) else schemas.from_bare_parameters(read, name)


_read_tools = TextCache(_unpack_tools)
"""Parses the tools of a row, cached, because most rows have the same tools."""
_read_tool = TextCache(_unpack_tool)
"""Parses one tool, cached: rows with different lists share tools, and checking a schema takes milliseconds."""
