"""Logs of OpenAI's client: the request in `request` or `body`, and the response in `response`.

https://platform.openai.com/docs/api-reference/chat and https://platform.openai.com/docs/guides/batch
The first of several choices is used. Calls may be strings, as Python prints the client's objects.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import openai, responses
from tunemill_trainer.data.formats.turns import message_of
from tunemill_trainer.data.rows import JsonObject, Message, Tool
from tunemill_trainer.data.values import read_object


def matches(value: JsonObject) -> bool:
    """Return whether a row has both a request and a response of the API."""
    response = _response(value)
    sent = _request(value)
    return bool(response.keys() & {"choices", "output"}) and bool(sent.keys() & {"messages", "input"})


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    sent, response = _request(value), _response(value)
    if "choices" not in response:
        if "output" not in response:
            raise RowError(Rule.FORMAT, "expected a response with `choices` or `output`", "response")
        return responses.read({**sent, "output": response["output"]})
    messages, tools = openai.read(sent)
    with Within("response"):
        choices = response["choices"]
        if not isinstance(choices, list) or not choices:
            raise RowError(Rule.FORMAT, "expected at least one choice", "choices")
        choice = read_object(choices[0], Rule.FORMAT, "a choice")
        reply = read_object(choice.get("message"), Rule.FORMAT, "the message of a choice")
        return [*messages, message_of({"role": "assistant", **reply})], tools


def _request(value: JsonObject) -> JsonObject:
    return next((part for part in map(_object, map(value.get, ("request", "body", "kwargs"))) if part), value)


def _response(value: JsonObject) -> JsonObject:
    response = next((part for part in map(_object, map(value.get, ("response", "completion"))) if part), {})
    return _object(response.get("body")) or response


def _object(value: JsonValue) -> JsonObject:
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            return read_object(value, Rule.FORMAT, "a part of a log")
        except RowError:
            return {}
    return value if isinstance(value, dict) else {}
