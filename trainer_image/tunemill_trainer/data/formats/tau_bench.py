"""Trajectories of tau-bench and tau2-bench: `traj`, or `messages` with `reward_info`.

https://github.com/sierra-research/tau-bench and https://github.com/sierra-research/tau2-bench
They do not contain the tools, so `spec.tools` must. The initial greeting of tau2's agent is kept but not trained on.
Calls of the simulated user and their results, which the agent does not see, are removed.
"""

from collections.abc import Iterator
from dataclasses import replace

from pydantic import JsonValue

from tunemill_trainer.data.findings import Within
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.formats.turns import message_of, turns_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool

_STOP = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
"""Signals of the simulated user to the benchmark that the conversation ends."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of a trajectory."""
    if isinstance(value.get("traj"), list):
        return True
    return isinstance(value.get("messages"), list) and "reward_info" in value


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    field = "traj" if value.get("traj") is not None else "messages"
    messages: list[Message] = []
    for index, turn in enumerate(turns_of(value, field)):
        with Within(field, index):
            messages += map(message_of, _turns_of_the_agent(turn))
    while messages and messages[-1].role is Role.USER and any(stop in messages[-1].content for stop in _STOP):
        messages.pop()
    first = next((at for at, message in enumerate(messages) if message.role is not Role.SYSTEM), None)
    if first is not None and messages[first].role is Role.ASSISTANT:
        messages[first] = replace(messages[first], learnt=False)
    return messages, openai.tools_of(value)


def _turns_of_the_agent(turn: JsonObject) -> Iterator[JsonObject]:
    """Yield the parts of a turn that the agent sees. The responses to parallel calls may be in one turn."""
    answers = turn.get("tool_messages")
    for part in answers if isinstance(answers, list) else [turn]:
        if isinstance(part, dict) and not _is_of_the_user(part):
            yield part


def _is_of_the_user(turn: JsonObject) -> bool:
    calls: JsonValue = turn.get("tool_calls")
    return turn.get("requestor") == "user" or (turn.get("role") == "user" and bool(calls))
