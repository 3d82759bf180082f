"""Tells what an assistant thinks from what it says, where both stand in one text."""

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
"""How data writes the begin and the end of reasoning: each is what some model's chat template has."""

_END = "</think>"
_BEGINS = dict(_PAIRS)
_BEGIN = re.compile(r"\s*(" + "|".join(map(re.escape, _BEGINS)) + ")")
_SOLUTION = re.compile(r"\A\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*\Z", re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """Return the reasoning at the begin of a text, and the rest. Reasoning that does not end stays in the text."""
    begin = _BEGIN.match(text)
    if begin is None:
        # Templates of reasoning models write <think> into the prompt, so what was logged begins after it.
        thought, end, said = text.partition(_END)
        return (thought.strip(), said.strip()) if end and "<think>" not in thought else ("", text)
    thought, end, said = text[begin.end() :].partition(_BEGINS[begin.group(1)])
    if not end:
        return "", text
    solution = _SOLUTION.match(said)
    return thought.strip(), (solution.group(1) if solution else said).strip()


def apart(messages: list[Message]) -> list[Message]:
    """Return the turns with what assistants think in its own place."""
    return [_apart(message) if message.role is Role.ASSISTANT else message for message in messages]


def _apart(message: Message) -> Message:
    thought, said = split(message.content)
    if said == message.content:
        return message
    known = message.reasoning.strip()
    both = known if not thought or thought in known else f"{known}\n\n{thought}".strip()
    return replace(message, content=said, reasoning=both)
