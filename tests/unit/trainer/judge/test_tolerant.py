"""AST match: what BFCL's rule takes for as good, and what it does not."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.rows import Call, Tool
from tunemill_trainer.judge.match import same_calls
from tunemill_trainer.judge.tolerant import ast_match, call_fits

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
    """A call of the weather tool."""
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
def test_as_good(found: Call, wanted: Call):
    """Strings loosely, defaults, integers for numbers; data that breaks its own schema is matched by its like."""
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
def test_not_as_good(found: Call, wanted: Call):
    """Other values, other types, missing and additional arguments, other orders of lists, other names."""
    assert not ast_match([found], [wanted], TOOLS)


def test_a_required_argument_has_no_default():
    """What the schema requires has to be there, whatever default it names."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}, "required": ["a"]}
    assert not ast_match([Call("f", {})], [Call("f", {"a": 1})], [Tool("f", "", schema)])


def test_the_best_pairing_is_found():
    """The first call fits both answers, the second only one: taking the first that fits would fail."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string", "default": "z"}}}
    tools = [Tool("f", "", schema)]
    either, only_second = Call("f", {"b": "z"}), Call("f", {})
    assert ast_match([either, only_second], [only_second, either], tools)
    assert ast_match([only_second, either, only_second], [either, either, only_second], tools)


@pytest.mark.slow
def test_a_thousand_calls_exhaust_nothing():
    """A model that repeats one call, against data that does so too: pairing must not go as deep as there are calls."""
    many = [Call("f", {})] * 1100
    assert ast_match(many, many, ())
    assert not ast_match(many, [*many[1:], Call("f", {"a": 1})], ())


def test_as_many_calls_as_wanted():
    """One too many and one too few are no match, nor is a doubled call for two different ones."""
    assert not ast_match([weather(city="x")] * 2, [weather(city="x")], TOOLS)
    assert not ast_match([weather(city="x")], [weather(city="x")] * 2, TOOLS)
    assert not ast_match([weather(city="x")] * 2, [weather(city="x"), weather(city="y")], TOOLS)
    assert ast_match([], [], TOOLS)


def test_tools_that_nobody_describes():
    """Without a schema there are no types and no defaults, only values."""
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
def test_odd_schemas_forbid_nothing(schema: dict):
    """A schema that cannot be understood does not make equal calls different."""
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
def test_matching_finds_what_brute_force_finds(found: list[Call], wanted: list[Call]):
    """Against all pairings."""
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    some_pairing = len(found) == len(wanted) and any(
        all(call_fits(a, b, schemas[b.name]) for a, b in zip(order, wanted, strict=True))
        for order in permutations(found)
    )
    assert ast_match(found, wanted, TOOLS) == some_pairing


@given(CALLS, st.randoms(use_true_random=False))
def test_what_is_exact_is_as_good(wanted: list[Call], random):
    """The same calls in another order are an AST match too, also where the data breaks its schema."""
    found = random.sample(wanted, len(wanted))
    assert same_calls(found, wanted)
    assert ast_match(found, wanted, TOOLS)
