"""`[name(argument="text", other=3), name()]`: Llama 3.2 and 4, ToolACE.

The whole reply must be one Python list of calls, from its first character on. Arguments are literals by name; the
server leaves out those without a name.
"""

import ast
import re
import warnings

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.values import LONGEST_LITERAL
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, read_each

BEGIN = re.compile(r"\[\s*[A-Za-z][\w.]*\(")

_JSON_NAMES: dict[str, JsonValue] = {"true": True, "false": False, "null": None}


def read(text: str) -> ParsedReply:
    """Return the calls of a reply."""
    if not BEGIN.match(text):
        return NO_CALL
    begun = len(re.findall(r"[\[,]\s*[A-Za-z][\w.]*\(", text))
    if len(text) > LONGEST_LITERAL:
        return broken(
            begun, f"the reply is longer than the {LONGEST_LITERAL >> 10} Ki characters that are read as calls"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about escapes in the model's strings
            statements = ast.parse(text.rstrip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return broken(begun, f"the reply is no list of calls: {error}")
    listed = statements[0].value if len(statements) == 1 and isinstance(statements[0], ast.Expr) else None
    if not isinstance(listed, ast.List):
        return broken(begun, "something follows the list of calls")
    reply = read_each(listed.elts, _call)
    nodes = [node for node in listed.elts if isinstance(node, ast.Call)]
    lost = [
        f"{call.name}.{position}"
        for call, node in zip(reply.calls, nodes, strict=False)
        for position in range(1, len(node.args) + 1)
    ]
    return ParsedReply(reply.calls, max(reply.blocks, 1), reply.error, tuple(lost))


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("the list holds something that is no call")
    arguments: dict[str, JsonValue] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("a call has ** among its arguments")
        try:
            arguments[keyword.arg] = _value(keyword.value)
        except ValueError as error:
            raise ValueError(f"the argument {keyword.arg} {error}") from error
    return Call(_name(node.func), arguments)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("a call has no plain name")


def _value(node: ast.expr) -> JsonValue:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | bool | int | float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _value(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return {str(key): _value(item) for key, item in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    raise ValueError("is no literal")
