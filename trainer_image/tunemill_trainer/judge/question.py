"""The question that a reply is scored against: messages, tools, and the expected assistant turn."""

from collections.abc import Sequence
from typing import Protocol

from tunemill_trainer.data.rows import Message, Role, Tool


class Question(Protocol):
    """An evaluation question: a case of prepare, or a row of `tunemill score`."""

    @property
    def id(self) -> str:
        """The id for messages and reports."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages before the assistant turn."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The available tools; empty if the data has none."""

    @property
    def gold(self) -> Message:
        """The expected assistant turn."""


def slices_of(questions: Sequence[Question], trained_tools: frozenset[str] | None) -> dict[str, list[int]]:
    """Return subsets of the questions by type: name → indices, without empty ones.

    Args:
        questions: all questions.
        trained_tools: the tools called in the training rows; None if unknown.
    """
    found: dict[str, list[int]] = {
        name: [] for name in ("no_call", "single_call", "multi_call", "multi_turn", "unseen_tools")
    }
    for index, question in enumerate(questions):
        calls = question.gold.calls
        match len(calls):
            case 0:
                found["no_call"].append(index)
            case 1:
                found["single_call"].append(index)
            case _:
                found["multi_call"].append(index)
        if any(message.role is Role.ASSISTANT for message in question.messages):
            found["multi_turn"].append(index)
        if trained_tools is not None and any(call.name not in trained_tools for call in calls):
            found["unseen_tools"].append(index)
    return {name: indices for name, indices in found.items() if indices}
