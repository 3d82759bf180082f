"""The readers of replies return the same calls as vLLM's parsers.

`make test-long` tries 20,000 of each format with vLLM itself.
"""

import re
from pathlib import Path

import pytest
from tunemill_dev.agreement.__main__ import LEAST, PAGE, pinned_version
from tunemill_dev.agreement.comparing import ENGINES, differences_from
from tunemill_dev.agreement.known import KNOWN, KnownDifference
from tunemill_dev.agreement.recorded import REPLIES, Recording
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def recording() -> Recording:
    """What vLLM made of replies."""
    return Recording.read(ROOT)


def test_the_recording_is_of_the_pinned_version(recording: Recording):
    """When the pin changes, `make test-long` creates a new recording.

    It has every format that vLLM has a parser for.
    """
    assert recording.version == pinned_version(ROOT)
    assert list(recording.calls) == list(ENGINES)


@pytest.mark.parametrize("reply_format", ENGINES)
def test_replies_are_parsed_like_by_the_server(recording: Recording, reply_format: ReplyFormat):
    """Right ones and mutated ones."""
    known = {difference.text for difference in KNOWN}
    served = {text: calls for text, calls in recording.calls[reply_format].items() if text not in known}
    assert len(served) > REPLIES / 2
    assert sum(bool(calls) for calls in served.values()) > 5, "too few replies have calls"
    assert differences_from(served.items(), reply_format) == []


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.kind)
def test_known_differences(recording: Recording, known: KnownDifference):
    """Each kind of difference that is known; when vLLM changes, this says so."""
    assert parse_reply(known.text, known.reply_format).calls == known.ours
    assert recording.calls[known.reply_format][known.text] == known.served


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
