"""Parses JSON values that a row contains as strings: JSON, or Python literals."""

import ast
import json
import math
import re
import warnings
from contextlib import suppress
from typing import NoReturn

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import JsonObject

_JSON_NAMES = {"true": True, "false": False, "null": None}
_DEEPEST = 64
_CONTAINERS = (dict, list)

HALF_PAIR = r"a lone surrogate (\ud800 to \udfff), which is not valid text"
"""JSON escapes can encode a lone surrogate, but tokenizers and UTF-8 files cannot hold one."""
_ESCAPE = re.compile(r"\\[uU]")

LONGEST_LITERAL = 128 << 10
"""The most characters of a Python literal, or of calls in Python syntax. Python's parser takes up to 600 times as many
bytes (1 MiB of `1,1,…`: 573 MiB) and cannot be interrupted. JSON, which takes a twentieth of that, may be longer."""


def read_value(text: str, rule: Rule, expected: str = "JSON or a Python literal") -> JsonValue:
    """Parse text that is JSON, a Python literal such as {'a': True}, or a mixture such as {'a': true}.

    Many public data sets were written with Python's str() instead of json.dumps().

    Args:
        text: the text.
        rule: the rule of the error if the text is neither.
        expected: what the error message says was expected.

    Raises:
        RowError: the text cannot be parsed.
    """
    text = text.strip()
    for parse in (json.loads, _python_literal):
        # TypeError: sets and keys of lists and objects, such as {{"a": 1}}.
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = as_json(parse(text), rule)
            is_text = not (_ESCAPE.search(text) and holds_surrogates(value))
            break
    else:
        if len(text) > LONGEST_LITERAL:
            expected = f"{expected} of at most {LONGEST_LITERAL >> 10} Ki characters"
        raise RowError(rule, f"expected {expected}, found {shortened(text)}")
    if not is_text:
        raise RowError(rule, f"expected {expected}, found {HALF_PAIR}")
    return value


def read_object(value: JsonValue, rule: Rule, what: str) -> JsonObject:
    """Return a JSON object, parsing it first if it is a string.

    Raises:
        RowError: the value is not an object. `rule` is the error's rule, and `what` names the value in the message.
    """
    if isinstance(value, str):
        value = read_value(value, rule, f"{what} to be an object, as JSON or a Python literal")
    if not isinstance(value, dict):
        raise RowError(rule, f"expected {what} to be an object, found {shortened(json.dumps(value))}")
    return value


def as_json(value: object, rule: Rule) -> JsonValue:
    """Convert a Python value to a JSON value; tuples become lists.

    Raises:
        RowError: JSON has no such value: sets, bytes, NaN and others.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: as_json(item, rule) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, rule) for item in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise RowError(rule, f"not a JSON value: {shortened(repr(value))}")


def is_deep(value: JsonValue) -> bool:
    """Return whether a value is nested deeper than any tool needs. Deep recursion would exhaust Python's stack."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(_DEEPEST):
        level = [
            part
            for each in level
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, _CONTAINERS)
        ]
        if not level:
            return False
    return True


def holds_surrogates(value: object) -> bool:
    """Return whether a string in a JSON value has a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def refuse_constant(constant: str) -> NoReturn:
    """Reject NaN and the infinities; for json's `parse_constant`."""
    raise ValueError(f"{constant} is not JSON")


def shortened(text: str) -> str:
    """Return the first 80 characters of a text, for messages."""
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(rule: Rule, message: str) -> NoReturn:
    """Raise a RowError; for use in an expression."""
    raise RowError(rule, message)


def _python_literal(text: str) -> object:
    if len(text) > LONGEST_LITERAL:
        raise ValueError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the row's strings
        parsed = ast.parse(text, mode="eval")
    return ast.literal_eval(_JsonNames().visit(parsed))


class _JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _JSON_NAMES:
            return ast.copy_location(ast.Constant(_JSON_NAMES[node.id]), node)
        return node
