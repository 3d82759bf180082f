"""Exact match of two lists of calls."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.exact_matching import equal_calls, same_calls, same_tools

VALUES = st.sampled_from([0, 1, 1.0, True, False, None, "1", "a", "A", [1], [1.0], {"x": 1}, {"x": 1.0}, {}])
CALLS = st.lists(
    st.builds(Call, st.sampled_from("fg"), st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES})), max_size=4
)


def f(**arguments: object) -> Call:
    """A call to the tool f."""
    return Call("f", arguments)


def equal_by_definition(a: object, b: object) -> bool:
    """Compare two JSON values by the definition of equality, without a canonical form."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal_by_definition(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal_by_definition, a, b))
    return a == b


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f(a=1, b=2), f(b=2, a=1)),
        (f(a=1), f(a=1.0)),
        (f(a={"x": [1, 2.0]}), f(a={"x": [1.0, 2]})),
        (f(a=0.0), f(a=-0.0)),
    ],
)
def test_equal_as_json(one: Call, other: Call):
    """The order of keys and the notation of numbers do not matter, at any depth."""
    assert same_calls([one], [other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f(a=1), f(a="1")),
        (f(a=1), f(a=True)),
        (f(a=0), f(a=False)),
        (f(a="x"), f(a="X")),
        (f(a=[1, 2]), f(a=[2, 1])),
        (f(a=None), f()),
        (f(a=1), Call("g", {"a": 1})),
    ],
)
def test_different_as_json(one: Call, other: Call):
    """Types, spelling, the order of lists, and null instead of an absent value do matter."""
    assert not same_calls([one], [other])


def test_number_of_calls_matters():
    """Making a call twice differs from making it once."""
    assert not same_calls([f(), f()], [f()])
    assert not same_tools([f(a=1), f(a=2)], [f(a=1)])
    assert same_tools([f(a=1), Call("g", {})], [Call("g", {}), f(a=2)])


def test_equal_calls_are_counted_by_tool():
    """Partial credit, for the table of tools."""
    assert equal_calls([f(a=1), f(a=1), f(a=3)], [f(a=1), f(a=2), f(a=3)]) == {"f": 2}


@given(CALLS, CALLS)
def test_counting_equals_the_best_pairing(found: list[Call], wanted: list[Call]):
    """Compared with brute force over all pairings."""

    def fits(order: tuple[Call, ...]) -> int:
        return sum(
            a.name == b.name and equal_by_definition(a.arguments, b.arguments)
            for a, b in zip(order, wanted, strict=False)
        )

    padded = [*found, *[Call("-", {})] * max(0, len(wanted) - len(found))]
    best = max(fits(order) for order in permutations(padded))
    assert sum(equal_calls(found, wanted).values()) == best
    assert same_calls(found, wanted) == (len(found) == len(wanted) == best)
