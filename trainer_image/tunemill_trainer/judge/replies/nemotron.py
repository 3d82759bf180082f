"""`<TOOLCALL>[{"name": …, "arguments": {…}}]</TOOLCALL>`: Nemotron Nano 2 and Llama-Nemotron.

vLLM parses it with a plugin in the model's repository (nvidia/NVIDIA-Nemotron-Nano-9B-v2). Nemotron 3 uses the format
of Qwen3-Coder.
"""

from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply, read_list_between

BEGIN = "<TOOLCALL>"

_END = "</TOOLCALL>"


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    return read_list_between(text, BEGIN, _END)
