"""The Berkeley Function-Calling Leaderboard's files, joined: `question`, `function` and `ground_truth`.

https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard
The leaderboard has questions and possible answers in two files; rows join them by `id`. Each argument has a list of
accepted values: the first one is used, and an argument whose first value is empty is omitted. Multi-turn entries are
rejected, because they contain calls but no tool responses.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import message_of
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools
from tunemill_trainer.data.values import read_object, read_value


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of a question with its answer."""
    return {"question", "function", "ground_truth"} <= value.keys()


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row: a request and its calls.

    Raises:
        RowError: the row cannot be read.
    """
    if not matches(value):
        raise RowError(Rule.FORMAT, "expected the fields `question`, `function` and `ground_truth`, joined by `id`")
    with Within("question"):
        messages = [message_of(read_object(turn, Rule.FORMAT, "a turn")) for turn in _first_turns(value["question"])]
    with Within("function"):
        tools = read_tools(value["function"])
    with Within("ground_truth"):
        truth = value["ground_truth"]
        if isinstance(truth, str):
            truth = read_value(truth, Rule.BROKEN_CALL)
        calls = tuple(_call(item) for item in (truth if isinstance(truth, list) else [truth]))
    return [*messages, Message(Role.ASSISTANT, "", calls=calls)], tools


def _first_turns(question: JsonValue) -> list[JsonValue]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if isinstance(question, list) and len(question) == 1 and isinstance(question[0], list):
        return question[0]
    if isinstance(question, list) and question and all(isinstance(turn, dict) for turn in question):
        return question
    raise RowError(Rule.FORMAT, "expected one list of turns; multi-turn entries have no tool responses")


def _call(value: JsonValue) -> Call:
    answer = read_object(value, Rule.BROKEN_CALL, "an answer")
    if len(answer) != 1:
        raise RowError(Rule.BROKEN_CALL, "expected an answer with the name of one tool")
    ((name, accepted),) = answer.items()
    return Call(name, _chosen(read_object(accepted, Rule.BROKEN_CALL, "the arguments of an answer")))


def _chosen(accepted: JsonObject) -> JsonObject:
    """Return the first accepted value of each argument; an empty one means that the argument can be omitted."""
    chosen: JsonObject = {}
    for name, values in accepted.items():
        if not isinstance(values, list) or not values:
            raise RowError(Rule.BROKEN_CALL, "expected a list of accepted values for each argument")
        if values[0] != "":
            chosen[name] = _plain(values[0])
    return chosen


def _plain(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return _chosen(value) if all(isinstance(item, list) for item in value.values()) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
