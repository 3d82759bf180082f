"""The figures of suites, by judge."""

import math

import pytest
from tunemill_api.evaluation import Judge, Suite
from tunemill_api.failures import Reason
from tunemill_trainer.data.rows import Call, Message, Role
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge import patterns
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.patterns import SuitePattern
from tunemill_trainer.judge.suites import Outcome, SuiteComparison
from tunemill_trainer.prepared import Case

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
CASES = tuple(
    Case(f"own.jsonl:{row}#1", row, (Message(Role.USER, "Well?"),), (), (1, 2), gold, (3,))
    for row, gold in enumerate(
        [
            Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Oslo"}),)),
            Message(Role.ASSISTANT, "No."),
            Message(Role.ASSISTANT, "It is 3 degrees Celsius."),
            Message(Role.ASSISTANT, "Hello."),
        ],
        start=1,
    )
)


def compared(judge: Judge, base: Outcome, tuned: Outcome, pattern: str = "") -> SuiteComparison:
    """Both outcomes on the four cases."""
    suite = Suite(name="own", uri="s3://team-a/own.jsonl", judge=judge, pattern=pattern)
    return SuiteComparison(suite, CASES, base, tuned, ReplyFormat.HERMES)


def replies(*texts: str) -> Outcome:
    """Finished replies."""
    return Outcome(tuple(Reply(text, finished=True) for text in texts))


def test_calls_are_right_if_equal_or_if_none_is_made_and_expected() -> None:
    """One figure for calls and abstention, because a suite can have both."""
    base, tuned = replies(CALL, CALL, CALL, "Hi."), replies(CALL, "I cannot.", "Cold.", CALL)
    found = compared(Judge.CALLS, base, tuned)
    facts = found.facts()
    assert (facts.base, facts.tuned, facts.difference) == ("0.5000", "0.7500", "+0.2500")
    assert (facts.rows, facts.cases) == (4, 4)
    assert found.lines()[0]["tuned"] == {"text": CALL, "right": True}


def test_a_pattern_is_searched_in_the_whole_reply() -> None:
    """As in Python, . matches no line end, and the pattern may be anywhere."""
    outcomes = replies("12 Celsius", "x\ncelsius", "warm", ""), replies("", "", "", "")
    facts = compared(Judge.PATTERN, *outcomes, pattern=r"(?i)\bcelsius\b").facts()
    assert (facts.base, facts.tuned, facts.difference) == ("0.5000", "0.0000", "-0.5000")


def test_a_likelihood_suite_has_no_replies() -> None:
    """The figure is the loss as it is measured."""
    found = compared(Judge.LIKELIHOOD, Outcome(loss=2.5), Outcome(loss=12.34567))
    facts = found.facts()
    assert (facts.base, facts.tuned, facts.difference) == ("2.5000", "12.3457", "+9.8457")
    assert found.lines() == []


def test_a_loss_that_is_no_number_is_a_failure() -> None:
    """No gate can compare it."""
    with pytest.raises(
        StageError, match=r"the loss of the tuned model on spec.evaluation.suites\[own\] is nan"
    ) as raised:
        compared(Judge.LIKELIHOOD, Outcome(loss=2.5), Outcome(loss=math.nan)).facts()
    assert raised.value.reason is Reason.TRAINING_DIVERGED


def test_a_slow_pattern_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need years; the message names the field."""
    monkeypatch.setattr(patterns, "LIMIT_SECONDS", 0.05)
    suite = Suite(name="own", uri="s3://team-a/own.jsonl", judge=Judge.PATTERN, pattern="(a|a)*[bc]$")
    with pytest.raises(StageError, match=r"spec.evaluation.suites\[own\].pattern") as raised:
        SuitePattern(suite).is_in("a" * 60 + "!")
    assert raised.value.reason is Reason.INVALID_SPEC
