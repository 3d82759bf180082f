"""Rows in Glaive format: a conversation as one string, arguments in single quotes."""

import json

import pytest
from trainer.data.building import WEATHER
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import glaive
from tunemill_trainer.data.rows import Call, Message, Role

SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"


TOOLS = json.dumps(WEATHER, indent=4) + "\n" + json.dumps({"name": "other"})


def glaive_row(*turns, system=SYSTEM + TOOLS):
    """A row whose turns end as the data set's do."""
    return {"system": system, "chat": "\n\n\n".join(turns) + " <|endoftext|>\n\n\n"}


def test_a_whole_conversation():
    """Consecutive tools, a call with escaped quotes, a response, a text."""
    call = """<functioncall> {"name": "get_weather", "arguments": '{"city": "L\\'Aquila", "days": 2}'} <|endoftext|>"""
    messages, tools = glaive.read(
        glaive_row("USER: Weather?\nIn L'Aquila.", f"ASSISTANT: {call}", 'FUNCTION RESPONSE: {"t": 3}', "ASSISTANT: 3.")
    )
    assert [tool.name for tool in tools] == ["get_weather", "other"]
    assert messages == [
        Message(Role.SYSTEM, "You are a helpful assistant."),
        Message(Role.USER, "Weather?\nIn L'Aquila."),
        Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "L'Aquila", "days": 2}),)),
        Message(Role.TOOL, '{"t": 3}'),
        Message(Role.ASSISTANT, "3."),
    ]


@pytest.mark.parametrize(
    ("block", "arguments"),
    [
        ("""{"name": "f", "arguments": '{}'}""", {}),
        ("""{"name": "f"}""", {}),
        ("""{"name": "f", "arguments": {"a": [1, "'"]}}""", {"a": [1, "'"]}),
        ("""{"name": "f", "arguments": '{"a": "}\\'", "b": null}'}""", {"a": "}'", "b": None}),
        ("""{"name": "f", "arguments": "{\\"a\\": 1}"}""", {"a": 1}),
    ],
)
def test_calls_in_every_spelling(block, arguments):
    """Quoted, bare, as an object, as JSON in JSON."""
    messages, _ = glaive.read(glaive_row("USER: x", f"ASSISTANT: I look. <functioncall> {block}", system=""))
    assert messages[1] == Message(Role.ASSISTANT, "I look.", calls=(Call("f", arguments),))


def test_a_conversation_without_functions():
    """Half of the data set are conversations without tools."""
    system = "SYSTEM: You are a helpful assistant, with no access to external functions."
    messages, tools = glaive.read(glaive_row("USER: Hi", "ASSISTANT: The USER: said Hi", system=system))
    assert tools == ()
    assert [message.content for message in messages] == ["You are a helpful assistant.", "Hi", "The USER: said Hi"]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"system": SYSTEM}, Rule.FORMAT),
        ({"system": "", "chat": "Hello"}, Rule.FORMAT),
        (glaive_row("USER: x", system=SYSTEM + '{"name": "f"'), Rule.BROKEN_TOOL),
        (glaive_row("USER: x", "ASSISTANT: <functioncall> f(1)"), Rule.BROKEN_CALL),
        (
            glaive_row("USER: x", """ASSISTANT: <functioncall> {"name": "f", "arguments": '{"a": }'}"""),
            Rule.BROKEN_CALL,
        ),
    ],
)
def test_an_unreadable_row_is_reported_with_the_reason(row, rule):
    """Every mistake has its rule; nothing is guessed."""
    with pytest.raises(RowError) as raised:
        glaive.read(row)
    assert raised.value.problem.rule is rule
