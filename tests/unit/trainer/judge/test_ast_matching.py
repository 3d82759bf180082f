"""AST match as in BFCL."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.rows import Call, Tool
from tunemill_trainer.judge.ast_matching import ast_match, call_fits
from tunemill_trainer.judge.exact_matching import same_calls

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 1},
        "radius": {"type": "number"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "unit": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "place": {"$ref": "#/$defs/place"},
        "anything": {},
    },
    "required": ["city"],
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "floor": {"type": "integer", "default": 0}},
        }
    },
}
TOOLS = (Tool("weather", "", WEATHER), Tool("timer", "", {"type": "object"}))


def weather(**arguments: object) -> Call:
    """A call to the weather tool."""
    return Call("weather", arguments)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (weather(city="new york ny"), weather(city="New York, NY")),
        (weather(city="l'eau"), weather(city='L"EAU')),
        (weather(city="re-port_1.0/a^*"), weather(city="report10a")),
        (weather(city="Zu\u0308rich"), weather(city="zürich")),
        (weather(city="x", days=1), weather(city="x")),
        (weather(city="x"), weather(city="x", days=1)),
        (weather(city="x", radius=2), weather(city="x", radius=2.0)),
        (weather(city="x", radius=2.0), weather(city="x", radius=2)),
        (weather(city="x", unit=None), weather(city="x")),
        (weather(city="x", tags=["A b", "c"]), weather(city="x", tags=["ab", "C"])),
        (weather(city="x", place={"name": "Quay"}), weather(city="x", place={"floor": 0, "name": "quay"})),
        (weather(city="x", days="2"), weather(city="x", days="2")),
        (weather(city="x", new=1), weather(city="x", new=1)),
        (weather(city="x", anything=[1, {"a": None}]), weather(city="x", anything=[1.0, {"a": None}])),
    ],
)
def test_matching_arguments(found: Call, wanted: Call):
    """Loose strings, defaults, integers as numbers; expected values that violate the schema."""
    assert ast_match([found], [wanted], TOOLS)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (weather(city="Rome"), weather(city="Oslo")),
        (weather(), weather(city="x")),
        (weather(city="x", days=2), weather(city="x")),
        (weather(city="x"), weather(city="x", days=2)),
        (weather(city="x", days="2"), weather(city="x", days=2)),
        (weather(city="x", days=2.0), weather(city="x", days=2)),
        (weather(city="x", radius="2"), weather(city="x", radius=2)),
        (weather(city="x", radius=True), weather(city="x", radius=1)),
        (weather(city="x", exact=1), weather(city="x", exact=True)),
        (weather(city="x", exact="true"), weather(city="x", exact=True)),
        (weather(city="x", radius=None), weather(city="x")),
        (weather(city="x", new=1), weather(city="x")),
        (weather(city="x", tags=["b", "a"]), weather(city="x", tags=["a", "b"])),
        (weather(city="x", tags=["a"]), weather(city="x", tags=["a", "a"])),
        (weather(city="x", tags="a"), weather(city="x", tags=["a"])),
        (weather(city="x", place={"name": "a", "b": 1}), weather(city="x", place={"name": "a"})),
        (weather(city=["x"]), weather(city="x")),
        (weather(City="x"), weather(city="x")),
        (Call("Weather", {"city": "x"}), weather(city="x")),
    ],
)
def test_different_arguments(found: Call, wanted: Call):
    """Other values, types, missing and extra arguments, orders of lists, and names."""
    assert not ast_match([found], [wanted], TOOLS)


def test_a_required_argument_has_no_default():
    """A required argument must be present, even if the schema has a default."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}, "required": ["a"]}
    assert not ast_match([Call("f", {})], [Call("f", {"a": 1})], [Tool("f", "", schema)])


def test_the_best_pairing_is_found():
    """The first call matches both expected calls, the second only one: a greedy pairing would fail."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string", "default": "z"}}}
    tools = [Tool("f", "", schema)]
    either, only_second = Call("f", {"b": "z"}), Call("f", {})
    assert ast_match([either, only_second], [only_second, either], tools)
    assert ast_match([only_second, either, only_second], [either, either, only_second], tools)


@pytest.mark.slow
def test_a_thousand_equal_calls_do_not_exhaust_the_stack():
    """A model can repeat a call: the recursion depth must not grow with their number."""
    many = [Call("f", {})] * 1100
    assert ast_match(many, many, ())
    assert not ast_match(many, [*many[1:], Call("f", {"a": 1})], ())


def test_the_number_of_calls_must_be_equal():
    """One more or one less is no match, nor is one call twice for two different ones."""
    assert not ast_match([weather(city="x")] * 2, [weather(city="x")], TOOLS)
    assert not ast_match([weather(city="x")], [weather(city="x")] * 2, TOOLS)
    assert not ast_match([weather(city="x")] * 2, [weather(city="x"), weather(city="y")], TOOLS)
    assert ast_match([], [], TOOLS)


def test_tools_without_a_schema():
    """They have no types and defaults, so only values are compared."""
    assert ast_match([Call("f", {"a": "X"})], [Call("f", {"a": "x"})], ())
    assert not ast_match([Call("f", {"a": 1})], [Call("f", {})], ())


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": None, "required": None},
        {"properties": {"a": True}},
        {"properties": {"a": {"$ref": "#/nowhere"}}},
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"type": "fancy", "items": 3}}},
        {"properties": {"a": {"anyOf": [], "type": ["string", "array"]}}},
    ],
)
def test_invalid_schemas_allow_anything(schema: dict):
    """Equal calls match even if the schema is invalid."""
    assert call_fits(Call("f", {"a": ["x"]}), Call("f", {"a": ["X"]}), schema)


VALUES = st.sampled_from([0, 1, 2.5, True, None, "1", "a", "A ", ["a"], ["A"], {"x": "a"}, {}])
CALLS = st.lists(
    st.builds(
        Call,
        st.sampled_from(["weather", "timer"]),
        st.fixed_dictionaries({}, optional=dict.fromkeys(("city", "days", "unit", "anything"), VALUES)),
    ),
    max_size=4,
)


@given(CALLS, CALLS)
def test_matching_equals_brute_force(found: list[Call], wanted: list[Call]):
    """Compared with all pairings."""
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    some_pairing = len(found) == len(wanted) and any(
        all(call_fits(a, b, schemas[b.name]) for a, b in zip(order, wanted, strict=True))
        for order in permutations(found)
    )
    assert ast_match(found, wanted, TOOLS) == some_pairing


@given(CALLS, st.randoms(use_true_random=False))
def test_an_exact_match_is_an_ast_match(wanted: list[Call], random):
    """In any order of the calls, also if the data violates its schema."""
    found = random.sample(wanted, len(wanted))
    assert same_calls(found, wanted)
    assert ast_match(found, wanted, TOOLS)
