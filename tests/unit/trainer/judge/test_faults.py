"""The faults of replies, with their messages."""

import json

import pytest
from tunemill_trainer.data.rows import Call, Tool
from tunemill_trainer.judge.faults import Fault, FaultKind, fault_of
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply

TOOLS = tuple(
    Tool(name, "", {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}})
    for name in ("weather", "timer")
)
OSLO = Call("weather", {"city": "Oslo", "days": 2})


def says(*calls: Call) -> str:
    """A reply with these calls."""
    return "".join(f"<tool_call>{json.dumps(call.to_json())}</tool_call>" for call in calls)


def fault(
    text: str, *wanted: Call, finished: bool | None = None, reply_format: ReplyFormat = ReplyFormat.HERMES
) -> Fault:
    """The fault of a reply."""
    return fault_of(text, parse_reply(text, reply_format), wanted, TOOLS, finished=finished)


@pytest.mark.parametrize(
    ("text", "wanted", "kind", "message"),
    [
        (says(OSLO), [OSLO], FaultKind.NONE, ""),
        ("Hello!", [], FaultKind.NONE, ""),
        (says(OSLO), [], FaultKind.UNWANTED_CALL, "expected no call, found a call to weather"),
        ("Hello!", [OSLO], FaultKind.MISSED_CALL, "expected a call to weather, found none"),
        ("<tool_call>{}</tool_call>", [OSLO], FaultKind.BROKEN_CALL, "a call needs a name, which must be a string"),
        ("<tool_call>{}</tool_call>", [], FaultKind.BROKEN_CALL, "a call needs a name, which must be a string"),
        (
            says(Call("fly", {})),
            [OSLO],
            FaultKind.HALLUCINATED_TOOL,
            "found a call to fly, which is not an available tool",
        ),
        (says(OSLO, OSLO), [OSLO], FaultKind.TOO_MANY_CALLS, "expected a call to weather, found weather, weather"),
        (says(OSLO), [OSLO, OSLO], FaultKind.TOO_FEW_CALLS, "expected a call to weather, weather, found weather"),
        (says(Call("timer", {})), [OSLO], FaultKind.WRONG_TOOL, "expected a call to weather, found timer"),
        (
            says(Call("weather", {"city": "Oslo"})),
            [OSLO],
            FaultKind.MISSING_ARGUMENT,
            "weather.days is missing, expected 2",
        ),
        (
            says(Call("weather", {**OSLO.arguments, "wind": 1})),
            [OSLO],
            FaultKind.EXTRA_ARGUMENT,
            "weather.wind is not expected, found 1",
        ),
        (
            says(Call("weather", {"city": "Oslo", "days": "2"})),
            [OSLO],
            FaultKind.WRONG_TYPE,
            'weather.days: expected 2, found "2"',
        ),
        (
            says(Call("weather", {"city": "Rome", "days": 2})),
            [OSLO],
            FaultKind.WRONG_VALUE,
            'weather.city: expected "Oslo", found "Rome"',
        ),
        (
            says(Call("weather", {"city": "Oslo", "days": 2.0})),
            [OSLO],
            FaultKind.WRONG_TYPE,
            "weather: found a number such as 2.0 where the schema requires an integer",
        ),
        (
            says(Call("weather", {"city": "oslo", "days": 2})),
            [OSLO],
            FaultKind.SPELLING,
            'weather.city: expected "Oslo", found "oslo"',
        ),
    ],
)
def test_every_fault_is_distinguished(text: str, wanted: list[Call], kind: FaultKind, message: str):
    """The kind and the message, with the place in the call."""
    assert fault(text, *wanted) == Fault(kind, message)


def test_the_fault_is_in_the_call_that_has_no_pair():
    """Of several calls, the message is about the wrong one, not the first one that differs."""
    rome, paris = Call("weather", {"city": "Rome"}), Call("weather", {"city": "Paris"})
    assert fault(says(rome, OSLO), OSLO, paris).message == 'weather.city: expected "Paris", found "Rome"'


def test_the_place_is_found_in_nested_objects():
    """The message has the path of the value."""
    found, wanted = ({"at": {"port": {"name": name}}} for name in ("east", "west"))
    message = fault(says(Call("timer", found)), Call("timer", wanted)).message
    assert message == 'timer.at.port.name: expected "west", found "east"'


@pytest.mark.parametrize("text", ['<tool_call>{"name": "wea', "I would say th"])
def test_a_truncated_reply_is_reported(text: str):
    """An incomplete reply may have become a call."""
    assert fault(text, OSLO, finished=False).kind is FaultKind.CUT_OFF
    assert fault(text, OSLO, finished=True).kind is not FaultKind.CUT_OFF


def test_calls_for_a_lenient_parser_are_mentioned():
    """In a code fence, or as a Python literal: the model knows the tool, but no client receives the call."""
    fenced = fault(f"```json\n{json.dumps(OSLO.to_json())}\n```", OSLO)
    assert (fenced.kind, fenced.lenient) == (FaultKind.MISSED_CALL, True)
    literal = fault(f"<tool_call>{OSLO.to_json()}</tool_call>", OSLO)
    assert (literal.kind, literal.lenient) == (FaultKind.BROKEN_CALL, True)
    assert literal.message.endswith("only a lenient parser finds weather")


def test_arguments_that_the_server_drops_are_named():
    """FunctionGemma writes a number, and vLLM's parser drops it."""
    text = "<start_function_call>call:weather{city:<escape>Oslo<escape>,days:2}<end_function_call>"
    found = fault(text, OSLO, reply_format=ReplyFormat.FUNCTIONGEMMA)
    assert found.kind is FaultKind.MISSING_ARGUMENT
    assert found.message == (
        "weather.days is missing, expected 2; the server drops weather.days, which only a lenient parser finds"
    )
