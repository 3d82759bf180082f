"""Rows in OpenAI's format, with the variants in real files."""

import json

import pytest
from trainer.data.building import WEATHER, openai_row
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.rows import Call, Message, Role


def test_arguments_may_be_text_or_an_object():
    """OpenAI uses a JSON string; many files have an object."""
    row = openai_row(city="Rome", days=2)
    as_text, _ = openai.read(row)
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": "Rome", "days": 2}
    assert openai.read(row)[0] == as_text
    assert as_text[1] == Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Rome", "days": 2}),))


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


def test_reasoning_is_separate_from_the_text():
    """Reasoning is in a separate field, with several names."""
    turn = {"role": "assistant", "content": "Hi", "reasoning_content": "A greeting."}
    assert openai.read({"messages": [turn]})[0] == [Message(Role.ASSISTANT, "Hi", reasoning="A greeting.")]


def test_a_turn_with_weight_0_is_kept_but_excluded_from_training():
    """OpenAI's way to keep a mistake in the history without training on it."""
    row = openai_row()
    row["messages"][1]["weight"] = 0
    row["messages"] += [{"role": "tool", "tool_call_id": "c1", "content": "7"}, {"role": "assistant", "content": "7"}]
    assert [message.learnt for message in openai.read(row)[0]] == [True, False, True, True]


@pytest.mark.parametrize("answer", [{"degrees": 7}, 7, [{"degrees": 7}], False])
def test_a_tool_can_respond_with_any_value(answer):
    """It becomes the text that a client would send."""
    row = openai_row()
    row["messages"].append({"role": "tool", "tool_call_id": "c1", "content": answer})
    assert json.loads(openai.read(row)[0][-1].content) == answer


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"messages": []}, Rule.FORMAT, "expected a field `messages`"),
        ({"messages": ["hi"]}, Rule.FORMAT, "expected a turn of `messages` to be an object"),
        ({"messages": [{"role": "martian", "content": "x"}]}, Rule.UNKNOWN_ROLE, "unknown role 'martian'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Rule.FORMAT, "part of type image_url"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, Rule.FORMAT, "weight to be 0 or 1"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, Rule.BROKEN_CALL, "no name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            Rule.BROKEN_CALL,
            "expected the arguments of f to be an object",
        ),
        ({"messages": [{"role": "user"}], "tools": [{"function": {}}]}, Rule.BROKEN_TOOL, "the tool has no name"),
        (
            {
                "messages": [{"role": "user"}],
                "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "Foo"}}}}],
            },
            Rule.BROKEN_TOOL,
            "not a valid JSON schema",
        ),
    ],
)
def test_an_unreadable_row_is_reported_with_the_reason(row, rule, message):
    """Every mistake has its rule; nothing is guessed."""
    with pytest.raises(RowError) as raised:
        openai.read(row)
    assert raised.value.problem.rule is rule
    assert message in raised.value.problem.message
