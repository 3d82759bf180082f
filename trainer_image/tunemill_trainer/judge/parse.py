"""Reads tool calls out of a reply, as strictly as the server that will serve the model.

One broken call makes a server hand the whole reply on as plain text, so it hides the good ones beside it. A lenient
reading here would promise calls that no client ever gets; `lenient` says what such a reading would find.
"""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum

from tunemill_trainer.bounds import MemoryBound, OutOfBoundsError, TimeBound
from tunemill_trainer.judge.replies import functiongemma, hermes, llama, llama4, mistral, plain, pythonic
from tunemill_trainer.judge.replies.parsed import ParsedReply, broken


class ReplyFormat(StrEnum):
    """How calls are written. Named as vLLM's `--tool-call-parser`, but for json, which has none."""

    HERMES = "hermes"
    FUNCTIONGEMMA = "functiongemma"
    MISTRAL = "mistral"
    LLAMA3_JSON = "llama3_json"
    PYTHONIC = "pythonic"
    LLAMA4_PYTHONIC = "llama4_pythonic"
    JSON = "json"


_READERS: dict[ReplyFormat, Callable[[str], ParsedReply]] = {
    ReplyFormat.HERMES: hermes.read,
    ReplyFormat.FUNCTIONGEMMA: functiongemma.read,
    ReplyFormat.MISTRAL: mistral.read,
    ReplyFormat.LLAMA3_JSON: llama.read,
    ReplyFormat.PYTHONIC: pythonic.read,
    ReplyFormat.LLAMA4_PYTHONIC: llama4.read,
    ReplyFormat.JSON: plain.read,
}

_MARKS = {
    ReplyFormat.HERMES: hermes.BEGIN,
    ReplyFormat.FUNCTIONGEMMA: functiongemma.BEGIN,
    ReplyFormat.MISTRAL: mistral.BEGIN,
    ReplyFormat.LLAMA3_JSON: llama.BEGIN,
    ReplyFormat.LLAMA4_PYTHONIC: llama4.BEGIN,
}
_MEMORY, _TIME = MemoryBound(512 << 20), TimeBound(seconds=5.0)
"""For one reply: what a model writes is a stranger's text, too. Usual is a tenth of a millisecond."""
_SHORT = 4096
"""Characters of a reply that cannot take much, however it is written: bounds cost more than reading it."""
_PARAMETERS = re.compile(r'"parameters"\s*:')


LONGEST_REPLY = 1 << 20
"""Characters. No server generates so many; reading them takes up to some hundred times as many bytes."""


def parse_reply(text: str, reply_format: ReplyFormat = ReplyFormat.HERMES) -> ParsedReply:
    """Return the calls of a reply that was decoded with its special tokens, up to its stop token."""
    if len(text) > LONGEST_REPLY:
        return broken(1, f"the reply has more than {LONGEST_REPLY >> 10} Ki characters")
    if len(text) <= _SHORT:
        return _READERS[reply_format](text)
    try:
        with _MEMORY, _TIME:
            return _READERS[reply_format](text)
    except OutOfBoundsError as error:
        return broken(1, f"reading the reply {error}")


def detect(replies: Iterable[str]) -> ReplyFormat:
    """Return the format in which most replies begin a call; Hermes when none does.

    A server has one parser, so one format is chosen for all replies.
    """
    votes = dict.fromkeys(ReplyFormat, 0)
    for text in replies:
        vote = _format_of(text)
        if vote is not None:
            votes[vote] += 1
    return max(votes, key=votes.__getitem__)


def _format_of(text: str) -> ReplyFormat | None:
    """Return the format that a reply looks like: marks are sure, a bracket or a brace at the beginning must do."""
    if len(text) > LONGEST_REPLY:
        return None
    marked = next((reply_format for reply_format, mark in _MARKS.items() if mark in text), None)
    if marked is not None:
        return marked
    if pythonic.BEGIN.match(text.lstrip()):
        return ReplyFormat.PYTHONIC
    if not plain.BEGIN.match(text):
        return None
    # Llama's own name for arguments, and several objects in a row, are read by its parser alone.
    only_llama = plain.read(text).error and llama.read(text).calls
    return ReplyFormat.LLAMA3_JSON if only_llama or _PARAMETERS.search(text) else ReplyFormat.JSON
