"""Mistakes: turns of training rows, and pairs of the expected answer and a wrong one."""

import json
from collections.abc import Sequence

import pytest
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.judge.mistakes import Pair, mistakes, trained_turns
from tunemill_trainer.judge.parse import ReplyFormat

IGNORED = -100
ANSWERS = {
    10: '<tool_call>{"name": "book", "arguments": {"city": "Oslo", "nights": 2}}</tool_call>',
    11: "There is no tool for this.",
    12: '<tool_call>{"name": "book", "arguments": {"city": ',
}
"""The text of an answer, which is a single token before the stop token."""
STOP = 1


def text_of(ids: Sequence[int]) -> str:
    """Decode an answer."""
    return ANSWERS[ids[0]]


def a_row(*labels: int) -> dict[str, list[int]]:
    """Return a row in which these tokens are supervised, and 0 stands for an unsupervised token 5."""
    return {"input_ids": [label or 5 for label in labels], "labels": [label or IGNORED for label in labels]}


ROWS = [a_row(0, 0, 10, STOP, 0, 11, STOP), a_row(0, 12, STOP), a_row(10, STOP), a_row(0, 0, 0)]


def turns(limit: int = 10, seed: int = 3):
    """Return the turns of the rows."""
    return trained_turns(ROWS, text_of, ReplyFormat.HERMES, limit=limit, seed=seed)


def test_each_supervised_turn_that_can_be_compared_is_a_prompt():
    """Without turns that have no prompt, and without those whose calls cannot be parsed."""
    found = {turn.id: turn for turn in turns()}
    assert found.keys() == {"0#2", "0#5"}
    assert (found["0#2"].prompt_ids, found["0#2"].answer_ids) == ([5, 5], [10, STOP])
    assert (found["0#5"].prompt_ids, found["0#5"].answer_ids) == ([5, 5, 10, STOP, 5], [11, STOP])
    assert found["0#2"].gold.calls[0].arguments == {"city": "Oslo", "nights": 2}
    assert not found["0#5"].gold.calls


def test_the_sample_depends_on_the_seed_only():
    """A repeated attempt gets the same prompts, and another seed gets others."""
    rows = [a_row(*[0] * length, 11, STOP) for length in range(1, 101)]
    samples = [
        [turn.id for turn in trained_turns(rows, text_of, ReplyFormat.HERMES, limit=10, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == 10
    assert samples[0] != samples[2]


def a_call(**arguments: object) -> str:
    """Return the text of a call."""
    return f"<tool_call>{json.dumps({'name': 'book', 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("turn", "reply", "wrong"),
    [
        ("0#2", ANSWERS[10], False),
        ("0#2", a_call(nights=2, city="Oslo"), False),
        ("0#2", a_call(city="oslo", nights=2.0), False),
        ("0#2", a_call(city="Bergen", nights=2), True),
        ("0#2", a_call(city="Oslo"), True),
        ("0#2", ANSWERS[12], True),
        ("0#2", "I cannot do that.", True),
        ("0#5", "Another text without a call.", False),
        ("0#5", a_call(city="Oslo", nights=2), True),
        ("0#5", ANSWERS[12], True),
    ],
)
def test_only_wrong_answers_are_pairs(turn: str, reply: str, wrong: bool):
    """Equal or equivalent calls in any order of arguments are right, and so is any text where no call is expected."""
    asked = next(each for each in turns() if each.id == turn)
    found = mistakes([asked], [[20, 21, STOP]], [Reply(reply, finished=True)], ReplyFormat.HERMES, 100)
    assert found == ([Pair(asked.prompt_ids, asked.answer_ids, [20, 21, STOP])] if wrong else [])


def test_an_answer_that_makes_a_row_too_long_is_left_out():
    """The maximum of training.maxLength holds for both rows of a pair."""
    asked = next(each for each in turns() if each.id == "0#2")
    for limit, kept in ((2 + 30, 1), (2 + 29, 0)):
        found = mistakes([asked], [[20] * 30], [Reply("no call", finished=False)], ReplyFormat.HERMES, limit)
        assert len(found) == kept
