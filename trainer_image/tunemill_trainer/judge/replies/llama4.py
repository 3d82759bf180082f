"""`<|python_start|>[name(argument="text")]<|python_end|>`: Llama 4. The marks are optional.

The text between them is a list of calls in the pythonic format.
"""

from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies import pythonic
from tunemill_trainer.judge.replies.parsed import ParsedReply

BEGIN = "<|python_start|>"

_END = "<|python_end|>"


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    if text.startswith(BEGIN):
        text = text.removeprefix(BEGIN).replace(_END, "")
    return pythonic.read(text)
