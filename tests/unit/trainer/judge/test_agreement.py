"""The readers of replies return the same calls as vLLM's parsers.

`make test-long` tries 20,000 of each format.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunemill_dev.agreement.__main__ import LEAST, PAGE, pinned_version
from tunemill_dev.agreement.comparing import ENGINES, Server, differences, server
from tunemill_dev.agreement.generated import replies
from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply

ROOT = Path(__file__).parents[4]
REPLIES = 150


@pytest.fixture(scope="module")
def vllm() -> Iterator[Server]:
    """One process for all tests, because it takes half a minute to start."""
    with server(ROOT) as running:
        yield running


def test_replies_are_read_as_the_server_reads_them(vllm: Server):
    """Valid and mutated ones, of every format that vLLM has a parser for."""
    for reply_format in ENGINES:
        texts = list(replies(reply_format, REPLIES, seed=1))
        found = differences(texts, reply_format, vllm)
        # In so few replies a rare kind of difference may occur twice, if it occurs at all.
        assert len(found) <= max(2, REPLIES * (1 - LEAST)), (reply_format, found[:3])


@pytest.mark.parametrize(
    ("reply_format", "text", "ours", "theirs"),
    [
        pytest.param(
            ReplyFormat.MISTRAL,
            "[TOOL_CALLS]timer[CALL_ID]a1b2c3d4e[ARGS]{}",
            [Call("timer", {})],
            [Call("timer[CALL_ID]a1b2c3d4e", {})],
            id="vLLM takes the id for a part of the name",
        ),
        pytest.param(
            ReplyFormat.PYTHONIC,
            "[find(query=1, **{'a': 1})]",
            [],
            [Call("find", {"query": 1, "null": {"a": 1}})],
            id="vLLM makes an argument named null of **",
        ),
        pytest.param(
            ReplyFormat.COHERE_COMMAND3,
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "timer", "paramet)ers": {}},\n    '
            '{"tool_call_id": "1", "tool_name": "timer", "parameters": {}},\n    {"tool_call_id": "2", "tool_name": '
            '"find", "parameters": {"query": "a"}}\n]<|END_ACTION|>',
            [Call("timer", {}), Call("timer", {}), Call("find", {"query": "a"})],
            [Call("timer", {}), Call("find", {"query": "a"})],
            id="a damaged field of Command R's",
        ),
        pytest.param(
            ReplyFormat.OPENAI,
            "<|channel|>a<|channel|>b to=functions.f<|message|>{}<|end|>"
            "<|start|>assistant to=functions.timer<|message|>{}",
            [Call("timer", {})],
            [Call("f", {}), Call("timer", {})],
            id="two channels in a header of Harmony's",
        ),
    ],
)
def test_known_differences(vllm: Server, reply_format: ReplyFormat, text: str, ours: list[Call], theirs: list[Call]):
    """Each known kind of difference. The test fails when vLLM changes."""
    assert list(parse_reply(text, reply_format).calls) == ours
    assert list(vllm.calls([text], reply_format)[0]) == theirs


def test_deeply_nested_arguments_are_rejected():
    """Deep recursion would exhaust Python's stack in the metrics; no tool needs 64 levels."""
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": {"[" * 70}{"]" * 70}}}}}</tool_call>'
    assert parse_reply(text).calls == ()


def test_the_page_has_every_format():
    """The page was generated with the pinned version, and all formats agree enough."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) % \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == [reply_format.value for reply_format in ENGINES]
    assert all(float(share) >= 100 * LEAST for _, share in rows)
    assert f"those of vLLM {pinned_version(ROOT)} find" in text
