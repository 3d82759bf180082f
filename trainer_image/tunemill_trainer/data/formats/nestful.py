"""NESTFUL: `input`, and `output` and `tools` as JSON strings; a call may use the result of an earlier one.

https://huggingface.co/datasets/ibm-research/nestful
All calls form one assistant turn, in order. Their labels are not trained on: `$var_2.result$` means the result of the
second call, so rows with labels in another order are rejected.
"""

import json

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import calls_of, text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools
from tunemill_trainer.data.values import read_value


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return {"input", "output", "tools"} <= value.keys() and bool(value.keys() & {"sample_id", "gold_answer"})


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row: a request and its calls.

    Raises:
        RowError: the row cannot be read.
    """
    if "input" not in value or "output" not in value:
        raise RowError(Rule.FORMAT, "expected the fields `input`, `output` and `tools`")
    with Within("input"):
        request = text_of(value["input"])
    with Within("output"):
        output = value["output"]
        listed = read_value(output, Rule.BROKEN_CALL) if isinstance(output, str) else output
        _refuse_other_labels(listed)
        calls = calls_of(listed)
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    return [Message(Role.USER, request), Message(Role.ASSISTANT, "", calls=tuple(calls))], tools


def _refuse_other_labels(calls: JsonValue) -> None:
    refers = (
        "$var" in json.dumps([call.get("arguments") for call in calls if isinstance(call, dict)])
        if isinstance(calls, list)
        else False
    )
    if not refers or not isinstance(calls, list):
        return
    labels = [call.get("label") for call in calls if isinstance(call, dict)]
    if any(str(label).strip("$") != f"var_{number}" for number, label in enumerate(labels, start=1)):
        raise RowError(Rule.BROKEN_CALL, "expected the calls to be labelled $var_1, $var_2 and so on, in their order")
