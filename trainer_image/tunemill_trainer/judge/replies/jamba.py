"""`<tool_calls>[{"name": …, "arguments": {…}}]</tool_calls>`: Jamba.

Only the first list counts, and it must be closed.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, read_list

BEGIN = "<tool_calls>"

_LIST = re.compile(r"<tool_calls>(.*?)</tool_calls>", re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    if BEGIN not in text:
        return NO_CALL
    listed = _LIST.search(text)
    if listed is None:
        return broken(1, "the list of calls is not closed")
    return read_list(listed[1], BEGIN)
