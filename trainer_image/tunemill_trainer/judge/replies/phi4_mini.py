"""`functools[{"name": …, "arguments": {…}}]`: Phi-4-mini.

The list ends at the first `]`, so arguments cannot contain one.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, read_list

BEGIN = "functools["

_LIST = re.compile(r"functools\[(.*?)\]", re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    listed = _LIST.search(text)
    if listed is None:
        return broken(1, "the list of calls is not closed") if BEGIN in text else NO_CALL
    return read_list(f"[{listed[1]}]", BEGIN, ("arguments", "parameters"))
