"""From records to rows: format detection, tools of the contract, names of tools, nulls of tables."""

import json

import pytest
from trainer.data.building import WEATHER, openai_row
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason
from tunemill_trainer.data import formats
from tunemill_trainer.data.findings import DataError, Rule, Severity
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Call, Message, Role, Source
from tunemill_trainer.data.tools import read_tools

CONTRACT = read_tools([WEATHER])
SIMPLE = {"user_content": "Weather in Rome?", "tool_name": "get_weather", "tool_arguments": '{"city": "Rome"}'}
TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
TAGGED = [{"from": "gpt", "value": '<tool_call>{"name": "f"}</tool_call>'}]
PLAIN = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
IN_TAGS = {"messages": [{"role": "assistant", "content": '<tool_call>{"name": "f"}</tool_call>'}]}
TOOLACE = {"system": "Functions: " + json.dumps([WEATHER]), "conversations": TALK}


def read(row, form=DatasetFormat.OPENAI, contract=()):
    """Read one row."""
    return RowReader(form, contract).read(Record(Source("calls.jsonl", 3), row))


def as_records(rows):
    """Objects as read from a file."""
    return [Record(Source("calls.jsonl", line), row) for line, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([openai_row()], DatasetFormat.OPENAI),
        ([PLAIN, {"messages": [{"role": "model", "content": "x"}]}], DatasetFormat.HERMES),
        ([PLAIN, IN_TAGS, openai_row(), openai_row()], DatasetFormat.OPENAI),
        ([PLAIN, IN_TAGS, IN_TAGS, openai_row()], DatasetFormat.HERMES),
        ([{"messages": json.dumps(openai_row()["messages"])}], DatasetFormat.OPENAI),
        ([{"conversations": [{"role": "user", "content": "x"}]}], DatasetFormat.HERMES),
        ([{"conversations": TALK}], DatasetFormat.SHAREGPT),
        ([{"conversations": TALK}, {"conversations": TAGGED}], DatasetFormat.HERMES),
        ([{"conversations": TALK, "system": "Be brief.", "tools": "[]"}], DatasetFormat.SHAREGPT),
        ([{"conversations": TALK, "system": "Be brief."}, TOOLACE], DatasetFormat.TOOLACE),
        ([{"query": "x", "answers": "[]", "tools": "[]"}], DatasetFormat.XLAM),
        ([{"system": "", "chat": "USER: x"}], DatasetFormat.GLAIVE),
        ([SIMPLE], DatasetFormat.SIMPLE),
        ([{"text": "a broken row"}, SIMPLE], DatasetFormat.SIMPLE),
    ],
)
def test_the_format_is_detected(rows, form):
    """By the fields, or by the turns if formats have the same fields."""
    assert formats.detect(as_records(rows), "calls.jsonl") is form


def test_fields_of_no_format_are_named():
    """The message lists the expected fields, and its detail for the user's terminal those that were found."""
    with pytest.raises(DataError) as raised:
        formats.detect(as_records([{"asked": "a", "said": "b"}]), "calls.jsonl")
    assert raised.value.reason is Reason.DATASET_FORMAT_UNKNOWN
    assert "`user_content` and `tool_name` (Simple)" in raised.value.message
    assert "asked" not in raised.value.message
    assert "found the fields: asked, said" in raised.value.detail


def test_every_format_has_a_reader():
    """All formats of the API are supported."""
    assert set(formats.READERS) == set(DatasetFormat) - {DatasetFormat.AUTO}


def test_a_simple_row_is_the_guides_conversation():
    """The system message of the FunctionGemma guide, the request and the call; the tools come from spec.tools."""
    row = read(SIMPLE, DatasetFormat.SIMPLE, CONTRACT).row
    assert row.messages == (
        Message(Role.SYSTEM, "You are a model that can do function calling with the following functions"),
        Message(Role.USER, "Weather in Rome?"),
        Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Rome"}),)),
    )
    assert row.tools == CONTRACT
    (problem,) = read(SIMPLE, DatasetFormat.SIMPLE).problems
    assert problem.rule is Rule.UNKNOWN_TOOL


def test_rows_with_tools_must_match_the_contract():
    """Other tools or other parameters than those of spec.tools are errors; fewer tools are not."""
    assert read(openai_row(), contract=CONTRACT).problems == ()
    more = openai_row()
    more["tools"].append({"function": {"name": "other"}})
    (problem,) = read(more, contract=CONTRACT).problems
    assert (problem.rule, problem.message.split(",")[0]) == (Rule.BREAKS_CONTRACT, "the row declares other")
    other = json.loads(json.dumps(openai_row()).replace('"integer"', '"number"'))
    assert [problem.rule for problem in read(other, contract=CONTRACT).problems] == [Rule.BREAKS_CONTRACT]


def test_invalid_tool_names_are_changed_everywhere():
    """Definition, call and response still match, and a warning is reported."""
    text = json.dumps(openai_row()).replace("get_weather", "Weather (v2) API")
    row = json.loads(text)
    row["messages"].append({"role": "tool", "tool_call_id": "c1", "content": "7"})
    found = read(row)
    assert found.row.tools[0].name == "Weather_v2_API"
    assert found.row.messages[1].calls[0].name == found.row.messages[2].name == "Weather_v2_API"
    (problem,) = found.problems
    assert (problem.rule, problem.rule.severity) == (Rule.RENAMED_TOOL, Severity.WARNING)


@pytest.mark.parametrize(("first", "second"), [("a b", "a_b"), ("天気", "x")])
def test_ambiguous_tool_names_are_rejected(first, second):
    """Two tools with the same name, or one without a valid name, cannot be served."""
    row = openai_row() | {"tools": [{"name": first}, {"name": second}]}
    found = read(row)
    assert found.row is None
    assert [problem.rule for problem in found.problems] == [Rule.BROKEN_TOOL]


def test_nulls_of_a_table_are_dropped():
    """Data from a table has null for all absent arguments. A model must not learn them."""
    row = openai_row(city="Rome", days=None, minutes=None)
    properties = WEATHER["parameters"]["properties"] | {"minutes": None}
    row["tools"] = [{"function": WEATHER | {"parameters": WEATHER["parameters"] | {"properties": properties}}}]
    found = read(row).row
    assert found.messages[1].calls[0].arguments == {"city": "Rome"}
    assert "minutes" not in found.tools[0].parameters["properties"]


def test_a_null_that_the_schema_allows_or_requires_stays():
    """There, null is a value."""
    row = openai_row(city=None, note=None)
    properties = {"city": {"type": ["string", "null"]}, "note": {"type": ["string", "null"]}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    row["tools"] = [{"function": WEATHER | {"parameters": parameters}}]
    assert read(row).row.messages[1].calls[0].arguments == {"city": None, "note": None}


def test_reasoning_can_be_removed():
    """For a model that should reply without reasoning."""
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>Hm.</think>Hi"}]}
    reader = RowReader(DatasetFormat.HERMES, drop_reasoning=True)
    assert reader.read(Record(Source("calls.jsonl", 1), row)).row.messages[1] == Message(Role.ASSISTANT, "Hi")
