"""`<TOOLCALL>[{"name": …, "arguments": {…}}]</TOOLCALL>`: Nemotron Nano 2 and Llama-Nemotron.

vLLM reads it with a plugin that lies in the model's own repository (nvidia/NVIDIA-Nemotron-Nano-9B-v2). Nemotron 3
writes as Qwen3-Coder does.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, read_list

BEGIN = "<TOOLCALL>"

_LIST = re.compile(r"<TOOLCALL>(.*?)</TOOLCALL>", re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    if BEGIN not in text:
        return NO_CALL
    listed = _LIST.search(text)
    if listed is None:
        return broken(1, "the list of calls is not closed")
    return read_list(listed[1], BEGIN)
