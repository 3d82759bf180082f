"""Rows in xLAM format: answers and tools as JSON strings, types in Python notation."""

import json

import pytest
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.formats import xlam
from tunemill_trainer.data.rows import Call, Message, Role
from tunemill_trainer.data.schemas import type_of


def xlam_row(answers, **parameters):
    """A row with one tool."""
    tool = {"name": "games", "description": "Finds games", "parameters": parameters}
    return {"id": 7, "query": "Which games?", "answers": json.dumps(answers), "tools": json.dumps([tool])}


def test_several_answers_are_parallel_calls():
    """All answers are calls of one turn."""
    calls = [{"name": "games", "arguments": {"kind": kind}} for kind in ("beta", "new")]
    messages, (tool,) = xlam.read(xlam_row(calls, kind={"type": "str", "description": "of game", "default": "new"}))
    assert messages == [
        Message(Role.USER, "Which games?"),
        Message(Role.ASSISTANT, "", calls=(Call("games", {"kind": "beta"}), Call("games", {"kind": "new"}))),
    ]
    assert tool.parameters == {
        "type": "object",
        "properties": {"kind": {"type": "string", "description": "of game", "default": "new"}},
        "required": [],
    }


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("str", {"type": "string"}),
        ("int, optional", {"type": "integer"}),
        ("str, default 'x'", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("list[List[str]]", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        ("Optional[float]", {"type": "number"}),
        ("Dict[str, int]", {"type": "object"}),
        ("Tuple[int, str]", {"type": "array"}),
        ("List[Union[int, float]]", {"type": "array"}),
        ("Callable[[float], float]", {}),
        ("datetime", {}),
    ],
)
def test_annotations_become_schemas(annotation, schema):
    """Types without a JSON schema equivalent allow anything."""
    assert type_of(annotation) == schema


def test_an_argument_is_required_unless_it_is_optional_or_has_a_default():
    """Parameters named type or properties are ordinary parameters."""
    row = xlam_row(
        [{"name": "games", "arguments": {"type": "a"}}],
        type={"type": "str", "description": "t"},
        properties={"type": "List[str]", "description": "p", "default": ""},
        limit={"type": "int, optional", "description": "l"},
    )
    _, (tool,) = xlam.read(row)
    assert tool.parameters["required"] == ["type"]
    assert list(tool.parameters["properties"]) == ["type", "properties", "limit"]


def test_parameters_with_a_schema_are_unchanged():
    """Some copies of the data have JSON schemas."""
    schema = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}
    _, (tool,) = xlam.read(xlam_row([{"name": "games", "arguments": {"kind": "a"}}], **schema))
    assert tool.parameters == schema


def test_a_row_without_answers_gets_a_text_reply():
    """xlam-irrelevance has no replies, and an empty turn would teach the model to be silent."""
    messages, _ = xlam.read(xlam_row([]))
    assert messages[-1] == Message(Role.ASSISTANT, xlam.NO_TOOL)


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"query": "x"}, Rule.FORMAT, "`query` and `answers`"),
        (xlam_row([{"arguments": {}}]), Rule.BROKEN_CALL, "no name"),
        (xlam_row([{"name": "games"}], kind="of game"), Rule.BROKEN_TOOL, "the parameter kind of games"),
        ({"query": "x", "answers": "[{]", "tools": "[]"}, Rule.BROKEN_CALL, "expected JSON"),
    ],
)
def test_an_unreadable_row_is_reported_with_the_reason(row, rule, message):
    """Every mistake has its rule; nothing is guessed."""
    with pytest.raises(RowError) as raised:
        xlam.read(row)
    assert raised.value.problem.rule is rule
    assert message in raised.value.problem.message
