"""Replies that exhaust memory or time: the output of a model is untrusted."""

from itertools import cycle, islice

import pytest
from bombs.exploding import explode
from tunemill_trainer.data.findings import RowCrashError
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.judge import lenient, metrics, parse
from tunemill_trainer.judge.metrics import Reply, score
from tunemill_trainer.judge.parse import LONGEST_REPLY, ReplyFormat, detect
from tunemill_trainer.prepared import Case
from tunemill_trainer.process.bounds import TimeBound

MOST_MIB = 600
"""The limit of 512 MiB for parsing one reply, plus the reply itself."""

UNITS = {
    "letters": "a",
    "white space": " ",
    "braces": "{",
    "brackets": "[",
    "lists": "[],",
    "objects": "{},",
    "closed objects": '{"name": "f", "arguments": {}} ',
    "open objects": '{"a":',
    "quotes": '"',
    "digits": "9",
    "hermes marks": "<tool_call>",
    "hermes calls": '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "mistral marks": "[TOOL_CALLS]",
    "mistral calls": '[TOOL_CALLS]f{"a": 1}',
    "gemma marks": "<start_function_call>call:f{",
    "gemma calls": "<start_function_call>call:f{a:<escape>1<escape>}<end_function_call>",
    "gemma escapes": "a:<escape>",
    "python calls": "f(a=1), ",
    "python minus": "-",
    "python tags": "<|python_tag|>{",
    "fences": "```json ",
    "words": "word_",
}
BEGINS = {
    ReplyFormat.HERMES: '<tool_call>{"name": "f", "arguments": {"a": ',
    ReplyFormat.FUNCTIONGEMMA: "<start_function_call>call:f{a:",
    ReplyFormat.MISTRAL: '[TOOL_CALLS][{"name": "f", "arguments": {"a": ',
    ReplyFormat.LLAMA3_JSON: '{"name": "f", "parameters": {"a": ',
    ReplyFormat.PYTHONIC: "[f(a=",
}

TOOL = Tool("f", "", {"type": "object"})
GOLD = Message(Role.ASSISTANT, "", calls=(Call("f", {"a": 1}),))


BOMBS = [
    pytest.param(unit, reply_format, id=f"{name} for {reply_format}")
    for shift in (0, 2)
    for (name, unit), reply_format in zip(UNITS.items(), islice(cycle(BEGINS), shift, None), strict=False)
]
"""Each unit in two of the formats."""


@pytest.mark.parametrize(("unit", "reply_format"), BOMBS)
def test_a_reply_is_judged_within_its_limits(monkeypatch, unit, reply_format):
    """Replies of the maximum length, for the reader of the format, the lenient parser, and format detection."""
    monkeypatch.setattr(parse, "_TIME", TimeBound(seconds=0.5))
    monkeypatch.setattr(lenient, "_TIME", TimeBound(seconds=0.5))
    begin = BEGINS[reply_format]
    text = begin + unit * ((LONGEST_REPLY - len(begin)) // len(unit))

    def judge():
        question = Case("a", 1, (Message(Role.USER, "Do it."),), (TOOL,), (), GOLD, ())
        judged = score([question], [Reply(text, finished=False)], reply_format)
        return judged.verdicts[0].right, detect([text]) in ReplyFormat

    outcome = explode(judge)
    assert outcome.value == (False, True)
    assert outcome.mib < MOST_MIB


@pytest.mark.parametrize("reply_format", ReplyFormat)
def test_a_too_long_reply_is_not_parsed(reply_format):
    """No server generates this many tokens, so the reply is broken, and it is not searched for calls."""
    found = parse.parse_reply("x" * (LONGEST_REPLY + 1), reply_format)
    assert (found.calls, found.blocks) == ((), 1)
    assert "more than 1024 Ki characters" in found.error


def test_an_internal_error_does_not_quote_a_reply(monkeypatch):
    """Python's messages quote values, which would appear in evaluate's log and report."""

    def fail(*_calls):
        return {}["zqx-canary"]

    monkeypatch.setattr(metrics, "same_tools", fail)
    question = Case("a", 1, (Message(Role.USER, "Do it."),), (TOOL,), (), GOLD, ())
    with pytest.raises(RowCrashError) as raised:
        score([question], [Reply("", finished=True)])
    assert str(raised.value).startswith("KeyError in test_reply_bombs.py line ")
    assert str(raised.value).endswith(", at case 1")
