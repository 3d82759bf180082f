"""Rows in ToolACE format: tools within the system prompt, calls in brackets."""

import json

import pytest
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import toolace
from tunemill_trainer.data.rows import Call, Role

TREND = {
    "name": "Market Trends API",
    "description": "Get [all] trends",
    "parameters": {"type": "dict", "properties": {"trend_type": {"type": "string"}}, "required": ["trend_type"]},
    "required": None,
}
PROMPT = (
    "You are an expert in composing functions. If none of the function can be used, point it out.\n"
    "You should only return the function call in tools call sections. Here is a list of functions in JSON format that "
    "you can invoke:\n{tools}. \nShould you decide to return the function call(s). \nPut it in the format of "
    "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\nNO other text MUST be "
    "included. Today is Monday."
)


TOOLS = json.dumps([TREND])


def toolace_row(*said, tools=TOOLS):
    """A row whose turns alternate between the user and the assistant."""
    speakers = ["user", "assistant"] * len(said)
    turns = [{"from": speaker, "value": text} for speaker, text in zip(speakers, said, strict=False)]
    return {"system": PROMPT.format(tools=tools), "conversations": turns}


def calls_of(text):
    """The calls of an answer."""
    return toolace.read(toolace_row("x", text))[0][2].calls


def test_tools_and_format_instructions_are_removed_from_the_prompt():
    """The chat template describes the format of calls; other instructions stay."""
    for tools in (json.dumps([TREND]), str([TREND])):
        messages, (tool,) = toolace.read(toolace_row("x", "y", tools=tools))
        assert (tool.name, tool.parameters["type"]) == ("Market Trends API", "object")
        assert messages[0].role is Role.SYSTEM
        assert " ".join(messages[0].content.split()) == (
            "You are an expert in composing functions. If none of the function can be used, point it out. "
            "Today is Monday."
        )


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            """[Market Trends API(trend_type="MARKET (US), [x]", opts={'a': [1, 2], 'b': true}), f()]""",
            [("Market Trends API", {"trend_type": "MARKET (US), [x]", "opts": {"a": [1, 2], "b": True}}), ("f", {})],
        ),
        (
            "[get/v2.items(class='it\\'s', from=-1.5, $top=None)]",
            [("get/v2.items", {"class": "it's", "from": -1.5, "$top": None})],
        ),
        ('[f(a="x=1, y", b=[{"c": "]"}])]', [("f", {"a": "x=1, y", "b": [{"c": "]"}]})]),
        ("[ f( a = 'Zürich' ) ,\n g(b=1) ]", [("f", {"a": "Zürich"}), ("g", {"b": 1})]),
    ],
)
def test_calls_are_read_with_any_values(text, calls):
    """Names with spaces, keywords as arguments, brackets and quotes in values."""
    assert list(calls_of(text)) == [Call(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(
    "text", ["[1] is a source", "No [function] fits.", "[see] (there)", "[]", "It costs 3 (EUR)]", "[note (well)] x"]
)
def test_prose_with_brackets_is_prose(text):
    """Only text that starts like a call is one."""
    messages, _ = toolace.read(toolace_row("x", text))
    assert (messages[2].content, messages[2].calls) == (text, ())


@pytest.mark.parametrize(
    "text", ["[f(a=b)]", "[f('x')]", "[f(a='x', )]", "[f(a=1) g(b=2]", "[f(a=1), 7]", "[Market Trends API(a=1)], done"]
)
def test_an_unreadable_list_of_calls_is_rejected(text):
    """It is never executed, guessed, or trained on as text."""
    with pytest.raises(RowError) as raised:
        calls_of(text)
    assert raised.value.problem.rule is Rule.BROKEN_CALL


def test_tool_responses_stay_text():
    """A tool can respond with a list."""
    row = toolace_row("x", "[Market Trends API(trend_type='a')]")
    row["conversations"].append({"from": "tool", "value": "[{}]"})
    messages, _ = toolace.read(row)
    assert (messages[3].role, messages[3].content) == (Role.TOOL, "[{}]")


def test_broken_rows_are_reported_with_the_reason():
    """An unclosed list, an unknown role, no turns."""
    for row, rule in (
        (toolace_row("x", tools='[{"name": "f"'), Rule.BROKEN_TOOL),
        ({"system": "", "conversations": [{"from": "martian", "value": ""}]}, Rule.UNKNOWN_ROLE),
        ({"system": "", "conversations": []}, Rule.FORMAT),
    ):
        with pytest.raises(RowError) as raised:
            toolace.read(row)
        assert raised.value.problem.rule is rule
