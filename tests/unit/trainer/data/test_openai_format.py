"""Rows in OpenAI's format, with what real files make of it."""

import pytest
from trainer.data.building import WEATHER, openai_row
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.rows import Call, Message, Role


def test_arguments_may_be_text_or_an_object():
    """OpenAI writes arguments as JSON text; many files have the object itself."""
    row = openai_row(city="Rome", days=2)
    as_text, _ = openai.read(row)
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": "Rome", "days": 2}
    assert openai.read(row)[0] == as_text
    assert as_text[1] == Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Rome", "days": 2}),))


def test_nulls_that_a_table_filled_in_are_dropped():
    """Data that went through a table has null for all that other rows have: the model must not learn that."""
    row = openai_row(city="Rome", days=None, minutes=None)
    properties = WEATHER["parameters"]["properties"] | {"minutes": None}
    row["tools"] = [{"function": WEATHER | {"parameters": WEATHER["parameters"] | {"properties": properties}}}]
    messages, (tool,) = openai.read(row)
    assert messages[1].calls[0].arguments == {"city": "Rome"}
    assert "minutes" not in tool.parameters["properties"]


def test_a_null_that_the_schema_allows_or_requires_stays():
    """Null is a value where the tool says so."""
    row = openai_row(city=None, note=None)
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "note": {"type": ["string", "null"]}},
        "required": ["city"],
    }
    row["tools"] = [{"function": WEATHER | {"parameters": parameters}}]
    assert openai.read(row)[0][1].calls[0].arguments == {"city": None, "note": None}


def test_the_older_function_call_is_a_call():
    """Files of 2023 have function_call, functions and the role function."""
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief.", "tool_calls": None},
            {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            },
            {"role": "function", "name": "get_weather", "content": "7"},
        ],
        "functions": [WEATHER],
    }
    messages, tools = openai.read(row)
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL]
    assert messages[1].content == "Weather in Rome?"
    assert messages[2].calls == (Call("get_weather", {"city": "Rome"}),)
    assert (messages[3].name, tools[0].name) == ("get_weather", "get_weather")


def test_reasoning_is_kept_apart_from_the_text():
    """Reasoning stands in a field of its own under several names."""
    turn = {"role": "assistant", "content": "Hi", "reasoning_content": "A greeting."}
    assert openai.read({"messages": [turn]})[0] == [Message(Role.ASSISTANT, "Hi", reasoning="A greeting.")]


def a_conversation(*more):
    """The usual row and what follows its call."""
    row = openai_row()
    row["messages"] += more
    return row


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"messages": []}, Rule.FORMAT, "expected a field `messages`"),
        ({"messages": ["hi"]}, Rule.FORMAT, "expected JSON or a Python literal"),
        ({"messages": [{"role": "martian", "content": "x"}]}, Rule.UNKNOWN_ROLE, "unknown role 'martian'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Rule.FORMAT, "part of type image_url"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, Rule.FORMAT, "weight 0"),
        (a_conversation({"role": "tool", "tool_call_id": "c2", "content": "7"}), Rule.UNKNOWN_CALL_ID, "answers c2"),
        (a_conversation({"role": "user", "content": "And?"}), Rule.UNANSWERED_CALL, "the call c1"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, Rule.BROKEN_CALL, "no name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            Rule.BROKEN_CALL,
            "expected the arguments of f to be an object",
        ),
        ({"messages": [{"role": "user"}], "tools": [{"function": {}}]}, Rule.BROKEN_TOOL, "a tool has no name"),
        (
            {
                "messages": [{"role": "user"}],
                "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "Foo"}}}}],
            },
            Rule.BROKEN_TOOL,
            "no JSON schema",
        ),
    ],
)
def test_a_row_that_cannot_be_read_says_why(row, rule, message):
    """Every trap ends in its own rule, never in a guess."""
    with pytest.raises(RowError) as raised:
        openai.read(row)
    assert raised.value.problem.rule is rule
    assert message in raised.value.problem.message
