"""When2Call: training rows with `messages` and tools as JSON strings, and test rows with four `answers` each.

https://huggingface.co/datasets/nvidia/When2Call
The text contains calls as `<TOOLCALL>[…]</TOOLCALL>`. `correct_answer` names the right answer of a test row.
"""

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.values import read_object

_TAG = "<TOOLCALL>"


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of a test row, or the tag of this format."""
    if {"question", "answers", "correct_answer"} <= value.keys():
        return True
    turns = value.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and _TAG in str(turn["content"])
        for turn in turns
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row. Calls in tags are still text; `reading` converts them.

    Raises:
        RowError: the row cannot be read.
    """
    if "correct_answer" not in value:
        return openai.read(value)
    with Within("question"):
        request = text_of(value.get("question"))
    with Within("answers"):
        answers = read_object(value.get("answers"), Rule.FORMAT, "`answers`")
        right = value.get("correct_answer")
        if not isinstance(right, str) or right not in answers:
            raise RowError(Rule.FORMAT, "expected `correct_answer` to name one of the answers")
        reply = text_of(answers[right])
    return [Message(Role.USER, request), Message(Role.ASSISTANT, reply)], openai.tools_of(value)
