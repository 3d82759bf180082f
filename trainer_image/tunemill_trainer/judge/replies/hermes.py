"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, and Tunemill's template.

Every block must be JSON with a name and arguments, including an unclosed block at the end. If one block is invalid, the
server returns the whole reply as plain text. Text around the blocks is ignored.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, call_of, read_each, read_json

BEGIN = "<tool_call>"

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    if BEGIN not in text:
        return NO_CALL
    blocks = [closed or left_open for closed, left_open in _BLOCK.findall(text)]
    return read_each(blocks, lambda block: call_of(read_json(block)))
