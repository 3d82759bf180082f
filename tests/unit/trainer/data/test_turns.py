"""Turns in all formats: reasoning, loss fields, tools in a prompt, field names of other ecosystems."""

import json

import pytest
from trainer.data.building import WEATHER
from trainer.data.canaries import GOOD
from tunemill_api.data import DatasetFormat
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Role, Source

ARGUMENTS = {"city": "Oslo"}
CALL = {"name": "get_weather", "arguments": ARGUMENTS}


def read(row, form=DatasetFormat.OPENAI):
    """Read one row."""
    return RowReader(form).read(Record(Source("calls.jsonl", 1), row))


def said(content, **fields):
    """A row with an assistant message."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content, **fields}]
    return {"messages": turns, "tools": [WEATHER]}


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>Hm.</think>Hello", "Hm.", "Hello"),
        ("\n<think>\nHm.\n</think>\n\nHello", "Hm.", "Hello"),
        ("<think>\n\n</think>\n\nHello", "", "Hello"),
        ("Hm.\n</think>\n\nHello", "Hm.", "Hello"),
        ("<thinking>Hm.</thinking> Hello", "Hm.", "Hello"),
        ("<scratch_pad>Hm.</scratch_pad>Hello", "Hm.", "Hello"),
        ("[THINK]Hm.[/THINK]Hello", "Hm.", "Hello"),
        ("<seed:think>Hm.</seed:think>Hello", "Hm.", "Hello"),
        ("<|START_THINKING|>Hm.<|END_THINKING|>Hello", "Hm.", "Hello"),
        ("<|begin_of_thought|>Hm.<|end_of_thought|><|begin_of_solution|>Hello<|end_of_solution|>", "Hm.", "Hello"),
        ("<think>without an end", "", "<think>without an end"),
        ("The tag <think> is not at the begin.", "", "The tag <think> is not at the begin."),
    ],
)
def test_reasoning_at_the_start_of_a_text_is_separated(text, reasoning, content):
    """As a reasoning parser does."""
    message = read(said(text)).row.messages[1]
    assert (message.reasoning, message.content) == (reasoning, content)


def test_reasoning_in_both_places_is_kept_once():
    """Some logs contain it twice."""
    message = read(said("<think>Hm.</think>Hello", reasoning_content="Hm.")).row.messages[1]
    assert (message.reasoning, message.content) == ("Hm.", "Hello")


@pytest.mark.parametrize(
    "fields",
    [
        *({"weight": 0}, {"weight": 0.0}, {"loss": False}, {"loss_weight": 0.0}, {"train": False}, {"training": False}),
        *({"mask": 1}, {"masked": True}, {"weight": 0, "loss": False}),
    ],
)
@pytest.mark.parametrize(
    ("form", "turns"),
    [
        (DatasetFormat.OPENAI, "messages"),
        (DatasetFormat.HERMES, "conversations"),
        (DatasetFormat.SHAREGPT, "conversations"),
        (DatasetFormat.TOOLACE, "conversations"),
        (DatasetFormat.SWIFT, "messages"),
        (DatasetFormat.ANTHROPIC, "messages"),
        (DatasetFormat.TOOLBENCH, "conversations"),
        (DatasetFormat.TAU_BENCH, "traj"),
        (DatasetFormat.PROMPT_COMPLETION, "completion"),
    ],
)
def test_a_turn_can_be_excluded_from_training(form, turns, fields):
    """With every field name, in every format with turns."""
    row = json.loads(json.dumps(GOOD[form]))
    speakers = {"assistant", "gpt", "function_call", "tool_call"}
    turn = next(turn for turn in row[turns] if turn.get("role", turn.get("from")) in speakers)
    turn.pop("loss", None)
    turn |= fields
    found = read(row, form)
    learnt = [message.learnt for message in found.row.messages if message.role is Role.ASSISTANT]
    assert learnt[0] is False
    assert all(learnt[1:])


@pytest.mark.parametrize("fields", [{"weight": 1}, {"loss": True}, {"loss": None}, {"train": True}, {"mask": 0}])
def test_a_turn_can_be_explicitly_included_in_training(fields):
    """This is the default; null has no effect."""
    assert read(said("Hello", **fields)).row.messages[1].learnt is True


@pytest.mark.parametrize("fields", [{"weight": [1]}, {"loss": "no"}, {"weight": 0.5}, {"weight": 1, "loss": False}])
def test_an_invalid_loss_field_is_rejected(fields):
    """Also two fields that contradict each other."""
    (problem,) = read(said("Hello", **fields)).problems
    assert problem.rule is Rule.FORMAT


def test_a_row_can_exclude_a_role_from_training():
    """As in NeMo's data."""
    row = {"conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}], "mask": "User"}
    assert read(row, DatasetFormat.SHAREGPT).row.messages[1].learnt is True
    assert read(row | {"mask": "Assistant"}, DatasetFormat.SHAREGPT).row.messages[1].learnt is False


@pytest.mark.parametrize(
    "call",
    [
        {"name": "get_weather", "args": ARGUMENTS, "id": "a", "type": "tool_call"},
        {"name": "get_weather", "input": ARGUMENTS, "id": "a", "type": "tool_use"},
        {"name": "get_weather", "parameters": ARGUMENTS},
        {"tool_name": "get_weather", "parameters": ARGUMENTS},
        {"function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}},
        {"function": "get_weather", "arguments": ARGUMENTS},
        {"functionCall": {"name": "get_weather", "args": ARGUMENTS}},
        {"function": {"name": "get_weather", "arguments": None, "parameters": ARGUMENTS}},
    ],
)
def test_calls_of_other_ecosystems(call):
    """LangChain, Anthropic, Llama, Cohere, OpenAI, Gemini."""
    found = read(said(None, tool_calls=[call]))
    assert found.problems == ()
    assert found.row.messages[1].calls[0].arguments == ARGUMENTS


def test_a_call_with_its_arguments_in_an_unknown_field_is_broken():
    """Otherwise it would be trained on as a call without arguments."""
    (problem,) = read(said(None, tool_calls=[{"name": "get_weather", "payload": ARGUMENTS}])).problems
    assert problem.rule is Rule.BROKEN_CALL
    assert "payload" in problem.message


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "get_weather", "input_schema": SCHEMA},
        {"name": "get_weather", "inputSchema": SCHEMA, "annotations": {"readOnlyHint": True}},
        {"toolSpec": {"name": "get_weather", "inputSchema": {"json": SCHEMA}}},
        {"function_declarations": [{"name": "get_weather", "parameters": SCHEMA}]},
        {"name": "get_weather", "parameters": json.dumps(SCHEMA)},
        {"name": "get_weather", "parameters": {"city": {"type": "string"}}},
        {"name": "get_weather", "parameters": {"city": "str"}},
        {"name": "get_weather", "parameters": [{"name": "city", "type": "string", "required": True}]},
        {"name": "get_weather", "properties": SCHEMA["properties"], "required": ["city"]},
    ],
)
def test_tools_of_other_ecosystems(tool):
    """Anthropic, MCP, Bedrock, Gemini; parameters without a schema as objects, type names, or a list."""
    row = said(None, tool_calls=[CALL]) | {"tools": [tool]}
    found = read(row)
    assert found.problems == ()
    assert found.row.tools[0].parameters == SCHEMA


@pytest.mark.parametrize(
    "prompt",
    [
        f"Be brief.\n<tools>\n{json.dumps(WEATHER)}\n</tools>",
        f"Be brief.\n<AVAILABLE_TOOLS>[{json.dumps(WEATHER)}]</AVAILABLE_TOOLS>",
        f"[AVAILABLE_TOOLS] [{json.dumps({'type': 'function', 'function': WEATHER})}][/AVAILABLE_TOOLS]Be brief.",
        f"<|tool|>[{json.dumps(WEATHER)}]<|/tool|>Be brief.",
        f"Be brief.\n{json.dumps([WEATHER], indent=2)}",
        f"Be brief.\n{json.dumps(WEATHER)}\n{json.dumps(WEATHER | {'name': 'other'})}",
        f"Be brief.\n{[WEATHER]}",
    ],
)
def test_tools_in_the_system_prompt_are_tools(prompt):
    """The chat template renders them."""
    row = said(None, tool_calls=[CALL])
    row["messages"].insert(0, {"role": "system", "content": prompt})
    del row["tools"]
    found = read(row)
    assert found.problems == ()
    assert found.row.tools[0].name == "get_weather"
    assert found.row.messages[0].content == "Be brief."


@pytest.mark.parametrize("prompt", ['Customers: [{"name": "Ann", "description": "a friend"}]', "Write {x} as [y]."])
def test_other_lists_in_the_system_prompt_are_text(prompt):
    """They are not tools."""
    row = {"messages": [{"role": "system", "content": prompt}, *said("Hello")["messages"]]}
    found = read(row).row
    assert (found.messages[0].content, found.tools) == (prompt, ())


def test_calls_as_text():
    """JSON strings from tables, and printed objects of OpenAI's client."""
    printed = (
        "[ChatCompletionMessageToolCall(id='c1', function=Function(arguments='{\"city\": \"Oslo\"}', "
        "name='get_weather'), type='function')]"
    )
    for written in (json.dumps([CALL]), str([CALL]), printed):
        found = read(said(None, tool_calls=written))
        assert found.problems == ()
        assert found.row.messages[1].calls[0].arguments == ARGUMENTS
    for broken in ("[ToolCall(id=f())]", "[ToolCall(", "[ToolCall(id=1, function={[1]: 2})]", "ToolCall(" * 9999):
        assert [problem.rule for problem in read(said(None, tool_calls=broken)).problems] == [Rule.BROKEN_CALL]


def test_a_refusal_is_the_text_of_the_assistant():
    """OpenAI has it in a separate field, with empty content."""
    assert read(said(None, refusal="I cannot.")).row.messages[1].content == "I cannot."


def test_content_parts():
    """Those of LLaMA-Factory and others."""
    parts = [
        {"type": "reasoning", "value": "Hm."},
        {"type": "text", "value": "I look."},
        {"type": "tool_call", "value": json.dumps(CALL)},
    ]
    message = read(said(parts)).row.messages[1]
    assert (message.reasoning, message.content, len(message.calls)) == ("Hm.", "I look.", 1)


def test_a_system_field_is_kept():
    """Some files have `system` as a field of the row."""
    row = said("Hello") | {"system": "Be brief."}
    assert read(row).row.messages[0].content == "Be brief."


@pytest.mark.parametrize("content", [None, "", "  \n", []])
def test_an_empty_user_turn_is_reported(content):
    """It has no request."""
    row = said("Hello")
    row["messages"][0]["content"] = content
    assert [problem.rule for problem in read(row).problems] == [Rule.EMPTY_TURN]


@pytest.mark.parametrize(
    ("city", "rule"),
    [
        ("[TOOL_CALLS]", Rule.FOREIGN_MARKER),
        ("</tool_call>", Rule.MARKER_IN_TEXT),
        ("{'a': True}", Rule.PYTHON_LITERAL),
        ("['a', None]", Rule.PYTHON_LITERAL),
        ('{"a": true}', None),
        ("[not python]", None),
        ("(it's)", None),
        ("Oslo's", None),
    ],
)
def test_markers_and_python_literals_in_arguments_are_reported(city, rule):
    """A mark of a call breaks parsers; a Python literal is not JSON."""
    problems = read(said(None, tool_calls=[{"name": "get_weather", "arguments": {"city": city}}])).problems
    assert {problem.rule for problem in problems} == ({rule} if rule else set())
