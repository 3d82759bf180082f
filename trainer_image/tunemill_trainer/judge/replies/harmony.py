"""`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>`: Harmony, the format of gpt-oss.

A reply is a sequence of messages. A message with a tool as recipient is a call, in any channel; a message without a
recipient is text or reasoning. Messages with unknown parts in their header are skipped.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, calls_of_texts

BEGIN = re.compile(r"<\|channel\|>|<\|message\|>")

_MESSAGE, _START, _CONSTRAIN = "<|message|>", "<|start|>", "<|constrain|>"
_STOP = re.compile(r"<\|(?:end|return|call)\|>")
_CHANNEL = re.compile(r"<\|channel\|>([^\s<]+)")
_BUILT_IN = frozenset(("assistant", "python", "browser", "container"))
_TO = re.compile(r"\bto=(?!assistant\b|python\b|browser\b|container\b)")


class _HeaderError(ValueError):
    """A header that cannot be parsed."""


@dataclass(frozen=True)
class _Message:
    role: str
    recipient: str
    content: str


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    found = list(_messages(text))
    calls = [
        (message.recipient.removeprefix("functions."), message.content)
        for message in found
        if message.role == "assistant" and _is_tool(message.recipient)
    ]
    if calls:
        return calls_of_texts(calls, len(calls), "")
    return broken(1, "no message with a valid header has a tool as recipient") if _TO.search(text) else NO_CALL


def _messages(text: str) -> Iterator[_Message]:
    """Yield the messages with valid headers."""
    at, role = 0, "assistant"
    while (message := text.find(_MESSAGE, at)) >= 0:
        end = start = message + len(_MESSAGE)
        with suppress(_HeaderError):
            role, recipient = _header(text[at:message], role)
            stop = _STOP.search(text, start)
            yield _Message(role, recipient, text[start : stop.start() if stop else len(text)])
            end = stop.end() if stop else len(text)
        next_one = text.find(_START, end)
        if next_one < 0:
            return
        at, role = next_one + len(_START), ""


def _header(text: str, role: str) -> tuple[str, str]:
    """Return role and recipient. The first message has its role in the prompt, so it is passed in `role`."""
    marker = text.find("<|channel|>")
    if marker >= 0:
        channel = _CHANNEL.match(text, marker)
        if channel is None:
            raise _HeaderError("a message has no channel after its mark")
        text = text[:marker] + text[channel.end() :]
    words = text.replace(_CONSTRAIN, f" {_CONSTRAIN}").split()
    if not role:
        if not words:
            raise _HeaderError("a message has no role")
        role = words[0]
    if words and words[0] == role:
        del words[0]
    count, recipient = len(words), ""
    if words:
        last = words.pop()
        if last.startswith("to=") or count == 1:
            recipient = last.removeprefix("to=")
        elif words:
            recipient = words.pop().removeprefix("to=")
    if words:
        raise _HeaderError(f"a message's header has an unknown part: {words[0]}")
    at = recipient.find(_CONSTRAIN)
    return role, recipient if at < 0 else recipient[:at].rstrip()


def _is_tool(recipient: str) -> bool:
    if recipient.startswith("functions."):
        return recipient != "functions."
    return bool(recipient) and not recipient.startswith("<|") and recipient.split(".", 1)[0] not in _BUILT_IN
