"""Separates reasoning from the reply where an assistant message has both in one text."""

import re
from dataclasses import replace

from tunemill_trainer.data.rows import Message, Role

_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<scratch_pad>", "</scratch_pad>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
)
"""The marks around reasoning in the chat templates of known models."""

_END = "</think>"
_BEGINS = dict(_PAIRS)
_BEGIN = re.compile(r"\s*(" + "|".join(map(re.escape, _BEGINS)) + ")")
_SOLUTION = re.compile(r"\A\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*\Z", re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """Return the reasoning at the start of a text, and the rest. Unclosed reasoning stays in the text."""
    begin = _BEGIN.match(text)
    if begin is None:
        # Chat templates of reasoning models end the prompt with <think>, so logged replies start after it.
        thought, end, reply = text.partition(_END)
        return (thought.strip(), reply.strip()) if end and "<think>" not in thought else ("", text)
    thought, end, reply = text[begin.end() :].partition(_BEGINS[begin.group(1)])
    if not end:
        return "", text
    solution = _SOLUTION.match(reply)
    return thought.strip(), (solution.group(1) if solution else reply).strip()


def extract(messages: list[Message]) -> list[Message]:
    """Return the turns with reasoning moved from `content` to `reasoning`."""
    return [_extract(message) if message.role is Role.ASSISTANT else message for message in messages]


def _extract(message: Message) -> Message:
    thought, reply = split(message.content)
    if reply == message.content:
        return message
    known = message.reasoning.strip()
    both = known if not thought or thought in known else f"{known}\n\n{thought}".strip()
    return replace(message, content=reply, reasoning=both)
