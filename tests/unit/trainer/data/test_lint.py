"""Mistakes in rows that a model would learn from."""

import pytest
from trainer.data.building import a_row, a_tool, answers, calls, says, user
from tunemill_trainer.data import lint
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.rows import Message, Role


def test_a_valid_row_has_no_problems():
    """A call, a response and a text."""
    assert lint.problems(a_row(user(), calls(city="Rome", days=2), answers(), says())) == []


def test_a_row_can_end_with_a_call_and_can_have_no_tools():
    """Training rows usually end with the call; plain instruction data has no tools."""
    assert lint.problems(a_row(user(), calls(city="Rome"))) == []
    assert lint.problems(a_row(Message(Role.SYSTEM, "Be brief."), user(), says())) == []


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        (
            a_row(user(), calls("fly", to="Mars")),
            Rule.UNKNOWN_TOOL,
            "fly is not declared; the row declares get_weather",
        ),
        (a_row(user(), calls()), Rule.MISSING_ARGUMENT, "get_weather: 'city' is a required property"),
        (a_row(user(), calls(city="Rome", hour=3)), Rule.EXTRA_ARGUMENT, "has the argument hour"),
        (a_row(user(), calls(city="Rome", days="2")), Rule.WRONG_ARGUMENT, "get_weather.days: '2' is not of type"),
        (a_row(says(), user()), Rule.ROLE_ORDER, "the first turn is the assistant's"),
        (a_row(user(), answers()), Rule.ROLE_ORDER, "the tool message does not follow a call"),
        (
            a_row(user(), says(), Message(Role.SYSTEM, "x")),
            Rule.ROLE_ORDER,
            "the system message follows a message of role assistant",
        ),
        (a_row(Message(Role.SYSTEM, "x")), Rule.ROLE_ORDER, "only a system message"),
        (
            a_row(user(), calls(city="Rome"), user()),
            Rule.UNANSWERED_CALL,
            "found a message of role user",
        ),
        (a_row(user(), says(" \n")), Rule.EMPTY_TURN, "neither text nor calls"),
        (a_row(user(), says("write <tool_call> so")), Rule.MARKER_IN_TEXT, "contains <tool_call>"),
        (a_row(user(), calls(city="</tool_call>")), Rule.MARKER_IN_TEXT, "the call to get_weather contains"),
    ],
)
def test_each_rule_finds_its_problem(row, rule, message):
    """One mistake gives one finding that names it."""
    (problem,) = lint.problems(row)
    assert problem.rule is rule
    assert message in problem.message


def test_a_schema_decides_what_else_is_allowed():
    """Nested schemas and additionalProperties mean the same as in JSON schema."""
    open_ended = a_tool(type="object", properties={}, additionalProperties={"type": "integer"})
    assert lint.problems(a_row(user(), calls(anything=3), tools=(open_ended,))) == []
    (problem,) = lint.problems(a_row(user(), calls(anything="3"), tools=(open_ended,)))
    assert problem.rule is Rule.WRONG_ARGUMENT


def test_a_reference_to_the_network_is_not_followed():
    """A schema in the data must not trigger requests."""
    tool = a_tool(type="object", properties={"city": {"$ref": "http://127.0.0.1:9/schema.json"}})
    (problem,) = lint.problems(a_row(user(), calls(city="Rome"), tools=(tool,)))
    assert problem.rule is Rule.BROKEN_TOOL
