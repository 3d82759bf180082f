"""`{"name": …, "arguments": {…}}`, or a list of such objects: models that are prompted to reply in JSON.

The reply must not contain other text or a code fence. An object with other fields is plain text, not a call.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, call_of, read_each, read_json

BEGIN = re.compile(r'\s*(?:\[\s*)?\{(?=.*"(?:name|function|arguments|parameters)"\s*:)', re.DOTALL)


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    if not BEGIN.match(text):
        return NO_CALL
    try:
        value = read_json(text)
    except ValueError as error:
        return broken(1, error)
    return read_each(value if isinstance(value, list) else [value], call_of)
