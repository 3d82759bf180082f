"""Calls in the text of assistant messages."""

import json

import pytest
from trainer.data.building import WEATHER
from tunemill_api.data import DatasetFormat
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Source

ARGUMENTS = {"city": "Oslo", "days": 2}
JSON = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
INSIDE = json.dumps(ARGUMENTS)
LLAMA = json.dumps({"name": "get_weather", "parameters": ARGUMENTS})
COHERE = json.dumps([{"tool_call_id": "0", "tool_name": "get_weather", "parameters": ARGUMENTS}])
TAGS = "<parameter={}>\n{}\n</parameter>\n"
NAMED_TAGS = '<parameter name="city">Oslo</parameter>\n<parameter name="days">2</parameter>\n'
BAR = "\uff5c"
PYTHONIC = "get_weather(city='Oslo', days=2)"

FORMS = {
    "hermes": f"<tool_call>\n{JSON}\n</tool_call>",
    "hermes without its end": f"<tool_call>\n{JSON}",
    "qwen3 coder": f"<tool_call>\n<function=get_weather>\n{TAGS.format('city', 'Oslo')}{TAGS.format('days', 2)}"
    "</function>\n</tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "nemotron": f"<TOOLCALL>[{JSON}]</TOOLCALL>",
    "jamba": f"<tool_calls>[{JSON}]</tool_calls>",
    "function_call": f"<function_call> {JSON} </function_call>",
    "function_calls": f"<function_calls>\n[{JSON}]\n</function_calls>",
    "functioncall": f"<functioncall> {JSON} <|endoftext|>",
    "granite": f"<|tool_call|>[{JSON}]",
    "phi": f"<|tool_call|>[{JSON}]<|/tool_call|>",
    "phi functools": f"functools[{JSON}]",
    "mistral list": f"[TOOL_CALLS] [{JSON}]</s>",
    "mistral name": f"[TOOL_CALLS]get_weather{INSIDE}",
    "mistral args": f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{INSIDE}",
    "llama": f"<|python_tag|>{LLAMA}<|eom_id|>",
    "llama bare": LLAMA,
    "llama custom": f"<function=get_weather>{INSIDE}</function>",
    "pythonic": f"[{PYTHONIC}]",
    "gemma tool_code": f"```tool_code\n{PYTHONIC}\n```",
    "gemma print": f"```tool_code\nprint(default_api.{PYTHONIC})\n```",
    "functiongemma": "<start_function_call>call:get_weather{city:<escape>Oslo<escape>,days:2}<end_function_call>",
    "gemma 4": '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:2}<tool_call|>',
    "deepseek v3": f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>function<{BAR}tool▁sep{BAR}>get_weather\n"
    f"```json\n{INSIDE}\n```<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end{BAR}><{BAR}end▁of▁sentence{BAR}>",
    "deepseek v3.1": f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>get_weather<{BAR}tool▁sep{BAR}>{INSIDE}"
    f"<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end{BAR}>",
    "deepseek v3.2": f'<{BAR}DSML{BAR}function_calls>\n<{BAR}DSML{BAR}invoke name="get_weather">\n'
    f'<{BAR}DSML{BAR}parameter name="city" string="true">Oslo</{BAR}DSML{BAR}parameter>\n'
    f'<{BAR}DSML{BAR}parameter name="days" string="false">2</{BAR}DSML{BAR}parameter>\n'
    f"</{BAR}DSML{BAR}invoke>\n</{BAR}DSML{BAR}function_calls>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    f"{INSIDE}<|tool_call_end|><|tool_calls_section_end|>",
    "minimax": f'<minimax:tool_call>\n<invoke name="get_weather">\n{NAMED_TAGS}</invoke>\n</minimax:tool_call>',
    "seed": "<seed:tool_call><function=get_weather><parameter=city>Oslo</parameter><parameter=days>2</parameter>"
    "</function></seed:tool_call>",
    "anthropic": f'<function_calls>\n<invoke name="get_weather">\n{NAMED_TAGS}</invoke>\n</function_calls>',
    "invoke alone": f'<invoke name="get_weather">\n{NAMED_TAGS}</invoke>',
    "harmony": f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{INSIDE}<|call|>",
    "lfm2": f"<|tool_call_start|>[{PYTHONIC}]<|tool_call_end|>",
    "olmo": f"<function_calls>\n{PYTHONIC}\n</function_calls>",
    "command r": f"<|START_ACTION|>{COHERE}<|END_ACTION|>",
    "internlm": f"<|action_start|><|plugin|>{LLAMA}<|action_end|>",
    "lm studio": f"[TOOL_REQUEST]{JSON}[END_TOOL_REQUEST]",
    "bare json": JSON,
    "xlam list": f"[{JSON}]",
    "fenced json": f"```json\n{JSON}\n```",
    "openai message": json.dumps({"tool_calls": [{"type": "function", "function": json.loads(JSON)}]}),
    "langchain": json.dumps({"name": "get_weather", "args": ARGUMENTS}),
    "react": f"Action: get_weather\nAction Input: {INSIDE}",
    "python literal": str({"name": "get_weather", "arguments": ARGUMENTS}),
}


def read(*said, tools=(WEATHER,)):
    """Read a row with an assistant message."""
    turns = [{"role": "user", "content": "Weather?"}, *({"role": "assistant", "content": text} for text in said)]
    row = {"messages": turns, "tools": [{"type": "function", "function": tool} for tool in tools]}
    return RowReader(DatasetFormat.OPENAI).read(Record(Source("calls.jsonl", 1), row))


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_call_in_any_known_format_is_a_call(text):
    """And its marks are removed from the text."""
    found = read(text)
    assert found.problems == ()
    message = found.row.messages[1]
    assert [(call.name, call.arguments) for call in message.calls] == [("get_weather", ARGUMENTS)]
    assert message.content == ""


@pytest.mark.parametrize(
    "name", [name for name, text in FORMS.items() if text.startswith(("<", "[TOOL", "```tool", "Action"))]
)
def test_a_text_before_the_call_stays(name):
    """If a mark shows where the call starts."""
    message = read(f"Let me look.\n{FORMS[name]}").row.messages[1]
    assert (message.content, len(message.calls)) == ("Let me look.", 1)


@pytest.mark.parametrize(
    "name", [name for name, text in FORMS.items() if text.startswith(("<", "[TOOL_C")) and "<tool_call>" not in text]
)
def test_reasoning_before_the_call_is_separate(name):
    """A mark in the reasoning is not a call."""
    message = read(f"<think>I need {FORMS[name]}?</think>\n{FORMS[name]}").row.messages[1]
    assert (message.content, len(message.calls)) == ("", 1)
    assert message.reasoning.startswith("I need")


@pytest.mark.parametrize(
    "text",
    [
        FORMS["hermes"] * 2,
        f"<tool_call>[{JSON}, {JSON}]</tool_call>",
        f"[TOOL_CALLS][{JSON}, {JSON}]",
        f"[TOOL_CALLS]get_weather{INSIDE}[TOOL_CALLS]get_weather{INSIDE}",
        f"<|python_tag|>{LLAMA}; {LLAMA}",
        f"[{PYTHONIC}, {PYTHONIC}]",
        f"{JSON}\n{JSON}",
        f"```tool_code\n{PYTHONIC}\n{PYTHONIC}\n```",
        FORMS["deepseek v3.1"].replace(
            f"<{BAR}tool▁calls▁end",
            f"<{BAR}tool▁call▁begin{BAR}>get_weather<{BAR}tool▁sep{BAR}>{INSIDE}<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end",
        ),
        FORMS["minimax"].replace("</invoke>\n", f'</invoke>\n<invoke name="get_weather">\n{NAMED_TAGS}</invoke>\n'),
    ],
)
def test_parallel_calls_are_all_read(text):
    """In every way to write several calls."""
    message = read(text).row.messages[1]
    assert [call.arguments for call in message.calls] == [ARGUMENTS] * 2
    assert message.content == ""


@pytest.mark.parametrize(
    "text",
    [
        f"I would write {JSON} for that.",
        f"For example:\n```json\n{JSON}\n```\nThen wait.",
        f"You can use {PYTHONIC} here.",
        f"The call is ```python\n{PYTHONIC}\n```",
        str({"tool": "get_weather", "tool_input": ARGUMENTS}) + " is the call.",
        f"Thought: I look.\nAction: get_weather\nInput: {INSIDE} {JSON}",
    ],
)
def test_a_possible_call_in_prose_is_reported(text):
    """It may be intended, so the row is used."""
    found = read(text)
    assert [problem.rule for problem in found.problems] == [Rule.TEXT_CALL]
    assert found.row.messages[1].content == text
    assert "get_weather" in found.problems[0].message


@pytest.mark.parametrize(
    "text",
    [
        "It rains in Oslo (2 degrees).",
        "I can call get_weather for you. Shall I?",
        "get_weather is a tool {see above}.",
        "get_weather (the tool) takes a city.",
        '{"temperature": 2, "city": "Oslo"}',
        '[{"name": "Oslo", "rain": true}]',
        "[1, 2] and {3}",
        "f(x) = x + 1",
        "print('hello')",
        "```python\nprint(2)\n```",
        "[Oslo](https://oslo.example)",
        "Action: wait\nAction Input: none",
        "",
    ],
)
def test_prose_is_prose(text):
    """No call is invented."""
    found = read(text or "x")
    assert found.problems == ()
    assert (found.row.messages[1].content, found.row.messages[1].calls) == (text or "x", ())


@pytest.mark.parametrize(
    "text", ["<tool_call>{'name': }</tool_call>", "[TOOL_CALLS] nothing", "<|python_tag|>import os"]
)
def test_an_unreadable_block_is_a_broken_call(text):
    """It would be trained on as text."""
    (problem,) = read(text).problems
    assert (problem.rule, problem.field) == (Rule.BROKEN_CALL, "turn 2")


def test_without_tools_only_marked_or_plain_calls_count():
    """The tool is then unknown, and the row is not used."""
    for text in (FORMS["hermes"], FORMS["mistral list"], FORMS["bare json"]):
        assert [problem.rule for problem in read(text, tools=()).problems] == [Rule.UNKNOWN_TOOL]
    for text in (FORMS["llama bare"], FORMS["pythonic"], "Mistral writes [TOOL_CALLS] before its calls."):
        assert read(text, tools=()).problems == ()


def test_a_value_in_a_tag_has_the_type_of_its_schema():
    """Text that looks like a number stays text if the schema says string."""
    text = FORMS["minimax"].replace("Oslo", "1000")
    (call,) = read(text).row.messages[1].calls
    assert call.arguments == {"city": "1000", "days": 2}
