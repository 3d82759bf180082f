"""Parsing of Hermes calls, as in vLLM's parser."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.parse import parse_reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(Call, st.text(), st.dictionaries(st.text(), JSON, max_size=3))


def written(call: Call) -> str:
    """The call as the text of a reply."""
    return f"<tool_call>\n{json.dumps(call.to_json())}\n</tool_call>"


def test_text_without_a_block_is_no_call():
    """Plain prose, even with JSON in it, contains no call."""
    reply = parse_reply('The call would be {"name": "f", "arguments": {}}.')
    assert (reply.calls, reply.blocks, reply.error) == ((), 0, "")


def test_text_around_calls_does_not_matter():
    """A reply can have reasoning before a call and text after it."""
    reply = parse_reply(
        '<think>hm</think><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> Done.<end_of_turn>'
    )
    assert reply.calls == (Call("f", {"a": 1}),)


def test_the_last_block_counts_without_its_end():
    """A stop token can replace the closing tag."""
    reply = parse_reply(
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}'
    )
    assert [call.name for call in reply.calls] == ["f", "g"]


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("{'name': 'f', 'arguments': {}}", "property name"),
        ('{"name": "f", "arguments": {}', "delimiter"),
        ('{"name": "f", "arguments": {}}<end_of_turn>', "Extra data"),
        ("", "Expecting value"),
        ("[]", "found list"),
        ('{"arguments": {}}', "needs a name"),
        ('{"name": 3, "arguments": {}}', "needs a name"),
        ('{"name": "f"}', "needs arguments"),
        ('{"name": "f", "arguments": "{}"}', "must be an object"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_one_broken_block_hides_every_call(block: str, error: str):
    """A server returns such a reply as text, including its valid calls."""
    reply = parse_reply('<tool_call>{"name": "g", "arguments": {}}</tool_call>' + f"<tool_call>{block}</tool_call>")
    assert reply.calls == ()
    assert reply.blocks == 2
    assert error in reply.error


@given(st.lists(CALLS, max_size=4))
def test_calls_round_trip(calls: list[Call]):
    """With any strings, except the tags of calls and of reasoning, which Hypothesis takes from the code."""
    text = "\n".join(map(written, calls))
    tags = (text.count("<tool_call>"), text.count("</tool_call>"))
    if tags == (len(calls), len(calls)) and not re.search("</?think>", text):
        assert parse_reply(text).calls == tuple(calls)
