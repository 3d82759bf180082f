"""Parses calls as Python prints the objects of OpenAI's client. Many logs contain them instead of JSON.

`[ChatCompletionMessageToolCall(id='c1', function=Function(arguments='{}', name='f'), type='function')]`, also in newer
names such as ChatCompletionMessageFunctionToolCall. https://github.com/openai/openai-python
"""

import ast

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.values import LONGEST_LITERAL, as_json, shortened

BEGIN = "ToolCall("
"""Every list of such calls contains this."""


def calls(text: str) -> JsonValue:
    """Parse the printed calls to objects.

    Raises:
        RowError: BROKEN_CALL.
    """
    try:
        if len(text) > LONGEST_LITERAL:
            raise ValueError("too long")
        return as_json(_value(ast.parse(text.strip(), mode="eval").body), Rule.BROKEN_CALL)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(
            Rule.BROKEN_CALL, f"expected calls as printed by OpenAI's client, found {shortened(text)}"
        ) from error


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
