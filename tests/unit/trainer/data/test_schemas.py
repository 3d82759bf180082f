"""Schemas of tools in the dialects of public data, and checks of calls."""

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
def test_every_dialect_is_supported(parameters, good, bad):
    """Drafts 4 to 2020-12, OpenAPI's nullable and Python's types, at any depth."""
    assert found(parameters, p=good) == []
    assert found(parameters, p=bad) != []


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("String", "x", 1),
        ("char", "x", 1),
        ("long", 1, "x"),
        ("int64", 1, 1.5),
        ("Double", 1.5, "x"),
        ("Boolean", True, "x"),
        ("ArrayList", [1], "x"),
        ("List<String>", ["x"], [1]),
        ("string[]", ["x"], [1]),
        ("HashMap", {"a": 1}, "x"),
        ("Map<String, Integer>", {"a": 1}, "x"),
        ("tuple", [1, "x"], "x"),
        ("str | None", None, 1),
        ("integer|string", "x", 1.5),
        (["String", "null"], None, 1),
    ],
)
def test_types_can_be_those_of_other_languages(kind, good, bad):
    """Java, JavaScript, Go, C# and Python, as in BFCL and other data."""
    assert found(of_one({"type": kind}), p=good) == []
    assert found(of_one({"type": kind}), p=bad) == [Rule.WRONG_ARGUMENT]


@pytest.mark.parametrize("kind", ["any", "Any", "Callable[[int], str]"])
def test_types_without_a_json_schema_equivalent_allow_anything(kind):
    """As on a server."""
    assert found(of_one({"type": kind}), p={"x": 1}) == []


@pytest.mark.parametrize("kind", ["date", "nonsense"])
def test_an_unknown_type_is_a_broken_tool(kind):
    """Its meaning is not known."""
    with pytest.raises(RowError) as raised:
        read_tools([{"name": "f", "parameters": of_one({"type": kind})}])
    assert raised.value.problem.rule is Rule.BROKEN_TOOL


@pytest.mark.parametrize(
    ("parameters", "arguments", "rules"),
    [
        ({"type": "object"}, {"p": 1, "q": {"r": 2}}, []),
        ({"type": "object", "additionalProperties": True}, {"p": 1}, []),
        ({"type": "object", "properties": {}}, {"p": 1}, [Rule.EXTRA_ARGUMENT]),
        ({"type": "object", "properties": []}, {"p": 1}, [Rule.EXTRA_ARGUMENT]),
        ({}, {"p": 1}, [Rule.EXTRA_ARGUMENT]),
        (None, {}, []),
        ([], {}, []),
        (of_one({"type": "object", "properties": {}}), {"p": {"any": 1}}, []),
        (of_one({"type": "object"}), {"p": {"any": 1}}, []),
        ({"properties": {"p": "string"}, "required": ["p"]}, {"p": "x"}, []),
        ({"type": ["object", "null"], "properties": {"p": {"type": "string"}}}, {"p": "x"}, []),
        ({"type": "object", "properties": {"p": {"type": "str", "required": True}}, "required": True}, {"p": "x"}, []),
        ({"type": "object", "required": ["p"], "additionalProperties": {"type": "string"}}, {"q": "x"}, None),
    ],
)
def test_objects_are_closed_only_if_they_list_properties(parameters, arguments, rules):
    """A tool is also closed if its list of properties is empty."""
    assert found(parameters, **arguments) == ([Rule.MISSING_ARGUMENT] if rules is None else rules)


def test_parameters_without_a_schema():
    """Names with descriptions: those without a default are required, unless `required` says otherwise."""
    bare = {"p": {"type": "str"}, "q": {"type": "int, optional"}, "r": {"type": "int", "required": False}, "s": "float"}
    (tool,) = read_tools([{"name": "f", "parameters": bare}])
    assert tool.parameters["required"] == ["p", "s"]
    kinds = {name: schema["type"] for name, schema in tool.parameters["properties"].items()}
    assert kinds == {"p": "string", "q": "integer", "r": "integer", "s": "number"}


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
    """Also in allOf and oneOf; anything else is an extra argument."""
    assert found(parameters, **known) == []
    assert Rule.EXTRA_ARGUMENT in found(parameters, **unknown)


def test_a_boolean_required_of_an_argument_counts():
    """A boolean instead of a list of names."""
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
def test_a_schema_with_a_dangling_reference_is_a_broken_tool(parameters):
    """For values and for nulls; nothing is fetched, and nothing runs forever."""
    assert found(parameters, p={"p": 1}) == [Rule.BROKEN_TOOL]
    with pytest.raises(RowError) as raised:
        without_nulls(Call("f", {"p": None}), read_tools([{"name": "f", "parameters": parameters}]))
    assert raised.value.problem.rule is Rule.BROKEN_TOOL


def test_a_null_that_a_reference_allows_is_kept():
    """References resolve from the root of the schema at any depth."""
    maybe = {"$ref": "#/$defs/Maybe"}
    parameters = of_one(maybe, **{"$defs": {"Maybe": {"type": ["string", "null"]}}})
    tools = read_tools([{"name": "f", "parameters": parameters}])
    assert without_nulls(Call("f", {"p": None}), tools).arguments == {"p": None}


@given(tree=trees, data=st.data())
def test_a_valid_value_passes_and_an_extra_name_does_not(tree, data):
    """For any tree of objects and lists."""
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
