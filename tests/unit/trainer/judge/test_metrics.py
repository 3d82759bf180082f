"""Metrics of replies: the cases that they apply to, and hits."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.judge.metrics import BROKEN_CALL, NO_CALL, UNKNOWN_TOOL, Rate, Reply, Score, score, sign_test
from tunemill_trainer.prepared import Case

TOOLS = (
    Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    Tool("timer", "", {"type": "object", "properties": {"minutes": {"type": "integer"}}}),
)


def asks(*wanted: Call, offered: tuple[Tool, ...] = TOOLS) -> Case:
    """A case that expects these calls, or plain text."""
    gold = Message(Role.ASSISTANT, "" if wanted else "Hello!", calls=wanted)
    return Case("rows.jsonl:1#1", 1, (Message(Role.USER, "?"),), offered, (1,), gold, (9,))


def says(*calls: Call, finished: bool = True) -> Reply:
    """A reply with these calls, or with plain text."""
    return Reply(
        "".join(f"<tool_call>{json.dumps(call.to_json())}</tool_call>" for call in calls) or "Hello!", finished
    )


def judged(*pairs: tuple[Case, Reply]) -> Score:
    """The score of replies to their cases."""
    cases, replies = zip(*pairs, strict=True)
    return score(cases, replies)


def weather(city: str = "Oslo") -> Call:
    """A call to the tool weather."""
    return Call("weather", {"city": city})


def timer(minutes: int = 3) -> Call:
    """A call to the tool timer."""
    return Call("timer", {"minutes": minutes})


def hits(result: Score) -> dict[str, tuple[int, int]]:
    """Metric → (hits, cases)."""
    return {name: (rate.hits, rate.cases) for name, rate in result.rates.items()}


def test_each_metric_applies_to_its_cases():
    """Metrics of calls apply to expected calls, abstention to the other cases, the rest to all."""
    result = judged(
        (asks(weather()), says(weather())),
        (asks(weather()), says(weather("Rome"))),
        (asks(weather()), says(timer())),
        (asks(weather()), says(finished=False)),
        (asks(weather()), Reply("<tool_call>{broken", finished=False)),
        (asks(), says()),
        (asks(), says(weather())),
        (asks(), Reply("<tool_call>{broken", finished=True)),
    )
    assert hits(result) == {
        "tool_name_accuracy": (2, 5),
        "exact_match": (1, 5),
        "ast_match": (1, 5),
        "valid_call_rate": (3, 5),
        "schema_valid_rate": (3, 5),
        "parallel_accuracy": (0, 0),
        "abstention_accuracy": (1, 3),
        "overall_accuracy": (2, 8),
        "missed_call_rate": (1, 5),
        "over_call_rate": (2, 8),
        "hallucinated_tool_rate": (0, 8),
        "lenient_only_rate": (0, 5),
        "finished_rate": (6, 8),
    }


def test_ast_match_and_parallel_accuracy():
    """AST match ignores case and accepts an integer as a number; parallel accuracy needs several expected calls."""
    result = judged(
        (asks(weather()), says(weather("OSLO"))),
        (asks(weather(), timer()), says(timer(), weather("oslo"))),
        (asks(weather(), timer()), says(weather())),
    )
    assert [hits(result)[name] for name in ("exact_match", "ast_match", "parallel_accuracy")] == [
        (0, 3),
        (2, 3),
        (1, 2),
    ]
    assert result.rates["overall_accuracy"] == result.rates["ast_match"]


@pytest.mark.parametrize(
    ("call", "keeps"),
    [
        (weather(), True),
        (Call("weather", {}), False),
        (Call("weather", {"city": 3}), False),
        (Call("weather", {"city": "Oslo", "wind": 1}), False),
        (Call("timer", {"minutes": "3"}), False),
        (Call("timer", {}), True),
        (Call("nope", {}), False),
    ],
)
def test_calls_against_their_schema(call: Call, keeps: bool):
    """Required, declared and typed as in the tool's schema, whether or not it is the expected call."""
    assert judged((asks(weather()), says(call))).rates["schema_valid_rate"].hits == keeps


def test_too_many_calls():
    """One call too many, a call or an incomplete call if none is expected; not another tool, or fewer calls."""
    result = judged(
        (asks(weather()), says(weather(), timer())),
        (asks(), says(timer())),
        (asks(), Reply("<tool_call>{", finished=True)),
        (asks(weather()), says(timer())),
        (asks(weather(), timer()), says(timer())),
    )
    assert hits(result)["over_call_rate"] == (3, 5)


def test_calls_for_a_lenient_parser_are_counted_separately():
    """They are not calls in other metrics."""
    fenced = Reply(f"```json\n{json.dumps(weather().to_json())}\n```", finished=True)
    result = judged((asks(weather()), fenced), (asks(weather()), Reply("No.", finished=True)))
    assert [hits(result)[name] for name in ("valid_call_rate", "missed_call_rate", "lenient_only_rate")] == [
        (0, 2),
        (2, 2),
        (1, 2),
    ]


def test_replies_with_unknown_end():
    """They are not in finished_rate."""
    assert hits(judged((asks(), Reply("Hi", None)), (asks(), Reply("Hi", finished=True))))["finished_rate"] == (1, 1)


def test_a_metric_without_cases_has_no_share():
    """Without cases that expect no call, abstention is unknown."""
    result = judged((asks(weather()), says(weather())))
    assert result.rates["abstention_accuracy"].value is None
    assert result.rates["exact_match"].value == 1.0


def test_unavailable_tools_are_hallucinated():
    """A tool that only other rows declare counts like an invented one."""
    only_timer = asks(timer(), offered=TOOLS[1:])
    result = judged((only_timer, says(weather())), (asks(), says(Call("nope", {}))), (asks(timer()), says(weather())))
    assert result.rates["hallucinated_tool_rate"].hits == 2
    assert result.confusion == {NO_CALL: {UNKNOWN_TOOL: 1}, "timer": {UNKNOWN_TOOL: 1, "weather": 1}}


def test_without_a_list_of_tools_the_expected_ones_are_available():
    """So the expected tool is not hallucinated."""
    result = judged((asks(weather(), offered=()), says(weather())))
    assert result.rates["hallucinated_tool_rate"].hits == 0


def test_confusion_pairs_the_remaining_calls():
    """Equal names are on the diagonal; the rest are paired with each other, or with <none>."""
    result = judged(
        (asks(weather(), timer()), says(timer(), timer(5))),
        (asks(weather(), timer()), says(weather())),
        (asks(weather(), timer()), Reply("<tool_call>", finished=True)),
        (asks(), says()),
    )
    assert result.confusion == {
        NO_CALL: {NO_CALL: 1},
        "timer": {"timer": 1, NO_CALL: 1, BROKEN_CALL: 1},
        "weather": {"timer": 1, "weather": 1, BROKEN_CALL: 1},
    }


def test_every_tool_has_a_score():
    """Expected calls, calls made, and exact calls."""
    result = judged((asks(weather(), timer()), says(weather("Rome"), timer())), (asks(), says(timer())))
    lines = {name: (tool.wanted, tool.made, tool.exact) for name, tool in result.tools.items()}
    assert lines == {"timer": (1, 2, 1), "weather": (1, 1, 0)}


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [
        (Rate(16, 20), 0.5840, 0.9193),
        (Rate(2, 20), 0.0279, 0.3010),
        (Rate(0, 10), 0.0, 0.2775),
        (Rate(10, 10), 0.7225, 1.0),
    ],
)
def test_wilson_interval(rate: Rate, low: float, high: float):
    """Compared with published values."""
    assert rate.interval() == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.builds(Rate, st.integers(0, n), st.just(n))))
def test_the_interval_contains_the_share(rate: Rate):
    """For any share, within 0 and 1."""
    low, high = rate.interval()
    assert rate.value is not None
    assert 0 <= low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= high <= 1


def test_sign_test():
    """Compared with exact values: 14 of 14 changes in one direction, one in each, and none."""
    assert sign_test([False] * 14 + [True] * 6, [True] * 20) == pytest.approx(2 / 2**14)
    assert sign_test([True, False], [False, True]) == 1.0
    assert sign_test([True], [True]) == 1.0


def test_sign_test_of_many_cases_stays_in_range():
    """Powers of two for thousands of changes exceed the range of floats."""
    assert sign_test([False] * 5000, [True] * 5000) == pytest.approx(0.0, abs=1e-300)
