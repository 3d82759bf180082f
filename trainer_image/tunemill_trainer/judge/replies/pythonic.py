"""`[name(argument="text", other=3), name()]`: Llama 3.2 and 4, ToolACE.

The reply must start with the list. The first call must directly follow the bracket, and its name must consist of
letters, digits and `_`. Arguments are literals with keywords; the server drops positional arguments.
"""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import LONGEST_LITERAL
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, read_each

BEGIN = re.compile(r"\[\s*[A-Za-z][\w.]*\(")

_EMPTY = r"[a-zA-Z]\w*\(\)"
_SHAPE = re.compile(rf"\[(?:{_EMPTY},\s*)*(?:{_EMPTY}\s*)*(?:(?<=\))\s*(\])|[a-zA-Z]\w*\([a-zA-Z]\w*=)")
"""Equivalent to vLLM's pattern: calls without arguments, up to the end of the list or the first argument of a call."""
_END = re.compile(r"\)\s*\]")
_JSON_NAMES: dict[str, JsonValue] = {"true": True, "false": False, "null": None}


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    shape = _SHAPE.match(text)
    if shape is None or not (shape[1] or _END.search(text, shape.end())):
        if not BEGIN.match(text.lstrip()):
            return NO_CALL
        return broken(_begun(text), "the reply does not start with a closed list of calls with plain names")
    return read_statement(text)


def read_statement(text: str) -> ParsedReply:
    """Return the calls of the list that is the first statement of a text in Python syntax."""
    begun = _begun(text)
    if len(text) > LONGEST_LITERAL:
        return broken(begun, f"the list of calls is longer than {LONGEST_LITERAL >> 10} Ki characters")
    try:
        statements = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return broken(begun, f"the reply is not a list of calls: {error}")
    listed = statements[0].value if statements and isinstance(statements[0], ast.Expr) else None
    if not isinstance(listed, ast.List):
        return broken(begun, "the reply is not only a list of calls")
    return calls_of_list(listed, begun)


def parse(text: str) -> list[ast.stmt]:
    """Parse text in Python syntax.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the text cannot be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about escapes in the model's strings
        return ast.parse(text).body


def calls_of_list(listed: ast.List, begun: int) -> ParsedReply:
    """Return the calls of a list in Python syntax."""
    reply = read_each(listed.elts, _call)
    nodes = [node for node in listed.elts if isinstance(node, ast.Call)]
    lost = [
        f"{call.name}.{position}"
        for call, node in zip(reply.calls, nodes, strict=False)
        for position in range(1, len(node.args) + 1)
    ]
    return ParsedReply(reply.calls, max(reply.blocks, begun if reply.error else 1), reply.error, tuple(lost))


def _begun(text: str) -> int:
    return len(re.findall(r"[\[,]\s*[A-Za-z][\w.]*\(", text))


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("the list contains an element that is not a call")
    arguments: dict[object, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("a call has ** among its arguments")
        try:
            arguments[keyword.arg] = _value(keyword.value)
        except ValueError as error:
            raise ValueError(f"the argument {keyword.arg} {error}") from error
    # As in the server, keys that are numbers become strings.
    return Call(_name(node.func), cast("JsonObject", json.loads(json.dumps(arguments, ensure_ascii=False))))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("the name of a call is not plain")


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, str | bool | int | float):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _value(operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(_is_key(key) for key in keys):
            return {cast("ast.Constant", key).value: _value(item) for key, item in zip(keys, values, strict=True)}
        case ast.JoinedStr(values=parts) if all(isinstance(part, ast.Constant) for part in parts):
            return "".join(str(cast("ast.Constant", part).value) for part in parts)
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
    raise ValueError("is not a literal")


def _is_key(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | bool | int | float))
