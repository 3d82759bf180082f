"""`<tool_calls>[{"name": …, "arguments": {…}}]</tool_calls>`: Jamba.

Only the first list counts, and it must be closed.
"""

from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply, read_list_between

BEGIN = "<tool_calls>"

_END = "</tool_calls>"


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    return read_list_between(text, BEGIN, _END)
