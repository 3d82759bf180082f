"""Rows of the Hermes family, with the variants in public data sets."""

import json

import pytest
from trainer.data.building import WEATHER
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import hermes
from tunemill_trainer.data.rows import Call, Message, Role

HERMES_PROMPT = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "Don't make assumptions about values.\n<tools>\n{tools}\n</tools>\n"
    "Use the following pydantic model json schema for each tool call you will make: "
    "{{'title': 'FunctionCall', 'properties': {{'name': {{'type': 'string'}}}}}} "
    "For each function call return a json object with function name and arguments within <tool_call></tool_call> XML "
    "tags as follows:\n<tool_call>\n{{tool_call}}\n</tool_call>\nAlways answer in French."
)


def sharegpt(*turns, **fields):
    """A row with from and value."""
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns], **fields}


def test_json_and_python_calls_in_one_turn():
    """The Hermes data mixes both, with quotes in values."""
    answer = (
        "<tool_call>\n{'arguments': {'city': \"L'Aquila\", 'days': 3}, 'name': 'get_weather'}\n</tool_call>\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    messages, _ = hermes.read(sharegpt(("human", "Weather?"), ("gpt", answer)))
    assert messages[1] == Message(
        Role.ASSISTANT,
        "",
        calls=(Call("get_weather", {"city": "L'Aquila", "days": 3}), Call("get_weather", {"city": "Rome"})),
    )


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps([{"type": "function", "function": WEATHER}]),
        str([{"type": "function", "function": WEATHER}]),
        json.dumps(WEATHER) + "\n" + json.dumps(WEATHER | {"name": "other"}),
        json.dumps(WEATHER | {"description": "a\u2028b\x85c"}, ensure_ascii=False)
        + "\n"
        + json.dumps(WEATHER | {"name": "other"}),
    ],
    ids=["json", "python", "lines", "lines with unicode breaks"],
)
def test_tools_come_from_the_system_prompt(tools):
    """Instructions about tags are removed, because the chat template has them. Other instructions stay."""
    messages, found = hermes.read(
        sharegpt(("system", HERMES_PROMPT.format(tools=tools)), ("human", "Weather?"), ("gpt", "Il pleut."))
    )
    assert found[0].parameters == WEATHER["parameters"]
    system = messages[0].content
    assert system == (
        "You are a function calling AI model.\nDon't make assumptions about values.\nAlways answer in French."
    )


def test_the_tools_column_is_preferred():
    """If a row has both, the column is cleaner."""
    prompt = HERMES_PROMPT.format(tools="[not even tools]")
    _, tools = hermes.read(sharegpt(("system", prompt), ("human", "Hi"), ("gpt", "Hi"), tools=json.dumps([WEATHER])))
    assert [tool.name for tool in tools] == ["get_weather"]


def test_the_agents_course_rows():
    """Roles human and model, reasoning, Python literals, and the misspelled response tag."""
    row = {
        "conversations": [
            {
                "role": "system",
                "content": "Here are the available tools:<tools> [" + json.dumps(WEATHER) + "] </tools>",
            },
            {"role": "human", "content": "Weather?"},
            {
                "role": "model",
                "content": "<think>I need the weather.</think><tool_call>\n"
                "{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 2}}\n</tool_call>",
            },
            {"role": "tool", "content": "<tool_reponse>\n{'t': 3}\n</tool_reponse>"},
            {"role": "model", "content": "<think>Done.</think>3 degrees"},
        ]
    }
    messages, _ = hermes.read(row)
    assert messages == [
        Message(Role.USER, "Weather?"),
        Message(
            Role.ASSISTANT,
            "",
            reasoning="I need the weather.",
            calls=(Call("get_weather", {"city": "Paris", "days": 2}),),
        ),
        Message(Role.TOOL, "{'t': 3}"),
        Message(Role.ASSISTANT, "3 degrees", reasoning="Done."),
    ]


def test_the_system_prompt_can_be_in_the_first_user_turn():
    """Gemma has no system role, so the course's notebook puts the prompt there."""
    prompt = HERMES_PROMPT.format(tools=str([WEATHER]))
    messages, (tool,) = hermes.read(sharegpt(("human", prompt + "\nIs it raining?"), ("gpt", "Oui.")))
    assert tool.name == "get_weather"
    assert (messages[0].role, messages[0].content.splitlines()[-1]) == (Role.USER, "Is it raining?")
    assert "<tools>" not in messages[0].content


def test_several_responses_in_one_turn_are_several_messages():
    """The data has the responses to parallel calls in one turn."""
    text = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    messages, _ = hermes.read(sharegpt(("human", "x"), ("tool", text), ("observation", "3")))
    assert [message.content for message in messages] == ["x", "1", "2", "3"]


def test_sharegpt_function_calls_are_separate_turns():
    """ShareGPT has calls as turns of `function_call` with JSON text."""
    text = json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})
    messages, _ = hermes.read(sharegpt(("human", "x"), ("function_call", text), ("function_response", "7")))
    assert messages[1].calls == (Call("get_weather", {"city": "Oslo"}),)
    assert messages[2] == Message(Role.TOOL, "7")


def test_text_around_a_call_is_kept():
    """An assistant turn can have text and calls."""
    (message,), _ = hermes.read(
        sharegpt(("gpt", 'I look. <tool_call>{"name": "f", "arguments": {}}</tool_call> Wait.'))
    )
    assert (message.content, len(message.calls)) == ("I look.  Wait.", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>get_weather(city)</tool_call>", "expected JSON or a Python literal"),
        ("<tool_call>__import__('os').system('true')</tool_call>", "expected JSON or a Python literal"),
        ("<tool_call>['f']</tool_call>", "expected a call to be an object"),
        ("<tool_call>{'name': 'f', 'arguments': {'a': {1, 2}}}</tool_call>", "expected JSON or a Python literal"),
        ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "expected JSON or a Python literal"),
    ],
)
def test_an_invalid_call_is_rejected(text, message):
    """Text that is neither JSON nor a literal is never executed or guessed."""
    with pytest.raises(RowError) as raised:
        hermes.read(sharegpt(("human", "x"), ("gpt", text)))
    assert raised.value.problem.rule is Rule.BROKEN_CALL
    assert message in raised.value.problem.message
