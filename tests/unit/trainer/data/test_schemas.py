"""Tools' schemas as public data writes them, and what they say of calls."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.tools import call_problems, read_tools, without_nulls

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
names = st.sampled_from(["a", "b", "c", "d"])
leaves = st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": ["string", "null"]}])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=3).map(
            lambda properties: {"type": "object", "properties": properties, "required": sorted(properties)}
        )
        | inner.map(lambda items: {"type": "array", "items": items})
    ),
    max_leaves=8,
)


def found(parameters: dict[str, Any], **arguments: Any) -> list[Rule]:
    """The rules that a call breaks."""
    tools = read_tools([{"name": "f", "parameters": parameters}])
    return [problem.rule for problem in call_problems(Call("f", arguments), tools)]


def of_one(schema: Any, **more: Any) -> dict[str, Any]:
    """Parameters with one argument."""
    return {"type": "object", "properties": {"p": schema}, **more}


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (of_one({"$ref": "#/$defs/P"}, **{"$defs": {"P": POINT}}), {"x": 1}, {"x": "1"}),
        (of_one({"$ref": "#/definitions/P"}, definitions={"P": POINT}), {"x": 1}, {}),
        (of_one({"anyOf": [{"type": "str"}, {"type": "null"}]}), None, 7),
        (of_one({"type": "string", "nullable": True}), None, 7),
        (of_one({"type": "string", "nullable": True, "enum": ["a"]}), None, "b"),
        (of_one({"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}), ["a", 1], [1, "a"]),
        (of_one({"type": "integer", "minimum": 0, "exclusiveMinimum": True}), 1, 0),
        (of_one({"type": "integer", "exclusiveMinimum": 0}), 1, 0),
        (of_one({"type": "List[int]"}), [1], ["1"]),
        (of_one({"type": "Optional[str]"}), "x", 1),
        (of_one({"type": "object", "additionalProperties": {"type": "float"}}), {"any": 0.5}, {"any": "0.5"}),
        (of_one({"type": "array", "items": {"anyOf": [{"type": "str"}, {"type": "int"}]}}), ["x", 3], [None]),
        (of_one({"type": "STRING", "pattern": "^[a-z]+$"}), "abc", "ABC"),
        (of_one({"const": 3}), 3, 4),
        (of_one(POINT), {"x": 1}, {"x": 1, "y": 2}),
        (of_one({"type": "object", "additionalProperties": False, "properties": {}}), {}, {"y": 2}),
    ],
)
def test_every_dialect_is_understood(parameters, good, bad):
    """Drafts 4 to 2020-12, OpenAPI's nullable and Python's types, at any depth: what fits passes, what does not not."""
    assert found(parameters, p=good) == []
    assert found(parameters, p=bad) != []


@pytest.mark.parametrize(
    ("parameters", "known", "unknown"),
    [
        (of_one(True), {"p": 1}, {"q": 1}),
        ({"allOf": [of_one({"type": "string"})], "properties": {"q": {}}}, {"p": "x", "q": 1}, {"r": 1}),
        ({"oneOf": [of_one({}, required=["p"]), {"required": ["q"], "properties": {"q": {}}}]}, {"p": 1}, {"r": 1}),
        (of_one({}, patternProperties={"^x-": {"type": "integer"}}), {"x-a": 1}, {"y-a": 1}),
        ({"type": "object", "properties": {}}, {}, {"p": 1}),
    ],
)
def test_an_argument_is_known_wherever_its_schema_declares_it(parameters, known, unknown):
    """Also in the parts of allOf and oneOf; elsewhere it is one too many."""
    assert found(parameters, **known) == []
    assert Rule.EXTRA_ARGUMENT in found(parameters, **unknown)


def test_required_beside_an_argument_counts():
    """Where true stands in the place of a list."""
    parameters = {"type": "object", "properties": {"p": {"type": "str", "required": True}, "q": {"required": False}}}
    assert found(parameters, q=1) == [Rule.MISSING_ARGUMENT]


@pytest.mark.parametrize(
    "parameters",
    [
        of_one({"$ref": "#/$defs/Gone"}),
        of_one({"$ref": "https://schemas.example/p.json"}),
        {"$ref": "#/properties/p", "type": "object", "properties": {"p": {"$ref": "#"}}},
    ],
)
def test_a_schema_that_leads_nowhere_is_a_broken_tool(parameters):
    """Whether a value or a null is looked at; nothing is fetched, nothing runs for ever."""
    assert found(parameters, p={"p": 1}) == [Rule.BROKEN_TOOL]
    with pytest.raises(RowError) as raised:
        without_nulls(Call("f", {"p": None}), read_tools([{"name": "f", "parameters": parameters}]))
    assert raised.value.problem.rule is Rule.BROKEN_TOOL


def test_a_null_that_a_reference_allows_is_meant():
    """References are resolved from the whole schema, wherever they stand."""
    maybe = {"$ref": "#/$defs/Maybe"}
    parameters = of_one(maybe, **{"$defs": {"Maybe": {"type": ["string", "null"]}}})
    tools = read_tools([{"name": "f", "parameters": parameters}])
    assert without_nulls(Call("f", {"p": None}), tools).arguments == {"p": None}


@given(tree=trees, data=st.data())
def test_a_value_of_its_schema_passes_and_one_name_more_does_not(tree, data):
    """For any tree of objects and lists: what is built from the schema is right, what nobody declared is not."""
    value = data.draw(values_of(tree))
    assert found(of_one(tree), p=value) == []
    if tree.get("type") == "object":
        assert found(of_one(tree), p={**value, "undeclared": 1}) == [Rule.EXTRA_ARGUMENT]


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema describes."""
    kind = schema["type"]
    if kind == "object":
        return st.fixed_dictionaries({name: values_of(item) for name, item in schema["properties"].items()})
    if kind == "array":
        return st.lists(values_of(schema["items"]), max_size=3)
    if isinstance(kind, list):
        return st.none() | st.text(max_size=5)
    return {"string": st.text(max_size=5), "integer": st.integers(), "boolean": st.booleans()}[kind]
