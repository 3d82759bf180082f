"""ToolBench (ToolLLaMA): `conversations` in which the assistant writes Thought, Action and Action Input.

https://github.com/OpenBMB/ToolBench
The tools are in the system prompt. Thoughts become reasoning. Replies to the user are calls to the pseudo-tool
`Finish`: its final answer becomes text, and the tool is removed. A turn that gives up is kept but not trained on.
"""

import re

from tunemill_trainer.data import balanced
from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import (
    answer_of,
    content_in,
    is_learnt,
    role_name_of,
    role_of,
    text_of,
    turns_of,
    without_blank_lines,
)
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import read_value

_FINISH = "Finish"
_ACTION = re.compile(r"^Action:[ \t]*(\S+)[ \t]*$(?:\s*^Action Input:[ \t]*)?", re.MULTILINE)
_TOOLS = re.compile(r"(?:Specifically, )?you have access to the following (?:APIs|functions):\s*(?=\[)", re.IGNORECASE)
_ABOUT_CALLS = (
    re.compile(r"Your output should follow this format:\s*Thought:\s*Action:?\s*Action Input:\s*"),
    re.compile(r"with a function call to actually exc?ecute your step\.?"),
)
"""Instructions about the format of calls in the prompts. They are removed, because the chat template uses another
format."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has turns of this format."""
    turns = value.get("conversations")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and "\nAction Input:" in str(turn.get("value", turn.get("content"))) for turn in turns
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    messages: list[Message] = []
    finished = False
    for index, turn in enumerate(turns_of(value, "conversations")):
        with Within("conversations", index):
            role = role_of(role_name_of(turn))
            if role is Role.ASSISTANT:
                message = _assistant(text_of(content_in(turn)).strip(), learnt=is_learnt(turn))
                finished = not message.calls
                messages.append(message)
            elif role is Role.TOOL:
                # The response of Finish has no content.
                messages += [] if finished else [Message(role, answer_of(content_in(turn)))]
            else:
                text = text_of(content_in(turn)).strip()
                if role is Role.SYSTEM:
                    text, found = _system(text)
                    tools = tools or found
                messages += [Message(role, text)] if text or role is Role.USER else []
    return messages, tuple(tool for tool in tools if tool.name != _FINISH)


def _system(text: str) -> tuple[str, tuple[Tool, ...]]:
    tools: tuple[Tool, ...] = ()
    if begin := _TOOLS.search(text):
        end = balanced.matching_end(text, begin.end())
        if end is None:
            raise RowError(Rule.BROKEN_TOOL, "the list of tools in the system prompt is not closed")
        tools = read_tools(read_value(text[begin.end() : end], Rule.BROKEN_TOOL))
        text = text[: begin.start()] + text[end:]
    for pattern in _ABOUT_CALLS:
        text = pattern.sub("", text)
    return without_blank_lines(text), tools


def _assistant(text: str, *, learnt: bool) -> Message:
    action = _ACTION.search(text)
    if action is None:
        return Message(Role.ASSISTANT, text.removeprefix("Thought:").strip(), learnt=learnt)
    thought = text[: action.start()].strip().removeprefix("Thought:").strip()
    call = read_call({"name": action.group(1), "arguments": text[action.end() :].strip() or "{}"})
    if call.name != _FINISH:
        return Message(Role.ASSISTANT, "", reasoning=thought, calls=(call,), learnt=learnt)
    if call.arguments.get("return_type") == "give_answer":
        return Message(Role.ASSISTANT, text_of(call.arguments.get("final_answer")), reasoning=thought, learnt=learnt)
    return Message(Role.ASSISTANT, thought or str(call.arguments.get("return_type")), learnt=False)
