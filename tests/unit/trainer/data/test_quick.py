"""The quick check accepts only arguments that jsonschema accepts, and nearly all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer.data.building import WEATHER
from tunemill_trainer.data import schemas

plain = st.sampled_from(
    [{"type": name} for name in ("string", "integer", "number", "boolean", "null", "array", "object")]
    + [{"type": "string", "enum": ["a", "b"]}, {"enum": [1, "a"]}, {"type": "integer", "minimum": 2}]
    + [{"type": ["string", "null"]}, {"type": "string", "nullable": True}, {}, {"type": "string", "pattern": "a"}]
)
names = st.sampled_from(["a", "b", "c"])
parts = st.recursive(
    plain,
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner})
        | st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(names, inner, max_size=3)},
            optional={
                "required": st.lists(names, unique=True, max_size=2),
                "additionalProperties": st.booleans(),
                "description": st.just("x"),
            },
        )
    ),
    max_leaves=5,
)
parameters = st.dictionaries(names, parts, max_size=3).map(lambda found: {"type": "object", "properties": found})
values = st.recursive(
    st.sampled_from(["a", "x", 1, 1.0, 2.5, True, None, 10**30]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@given(parameters=parameters, arguments=st.dictionaries(names, values, max_size=3))
def test_accepted_arguments_are_valid(parameters, arguments):
    """For any schema and any arguments."""
    if schemas.quick_check(parameters)(arguments):
        assert list(schemas.checker(parameters).iter_errors(arguments)) == []


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"city": "Rome"}, True),
        ({"city": "Rome", "days": 2}, True),
        ({"days": 2}, False),
        ({"city": "Rome", "days": True}, False),
        ({"city": "Rome", "town": "x"}, False),
        ({"city": None}, False),
    ],
)
def test_usual_calls(arguments, fits):
    """The quick check accepts them."""
    assert schemas.quick_check(WEATHER["parameters"])(arguments) is fits
