"""`<function_calls>` with one call in Python syntax per line: OLMo 3. The tags are optional."""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies import pythonic
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken

BEGIN = "<function_calls>"

_INSIDE = re.compile(r"<function_calls>(.*?)</function_calls>", re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    inside = _INSIDE.search(text)
    lines = (line.strip() for line in (inside[1].strip() if inside else text).splitlines())
    reply = pythonic.read(f"[{', '.join(line for line in lines if line)}]")
    if BEGIN in text:
        return reply if reply.calls or reply.error else broken(1, "the tags contain no call")
    # Prose can start like a call.
    return reply if reply.calls else NO_CALL
