"""What a reply is judged against: a turn of the assistant with its history and its tools."""

from collections.abc import Sequence
from typing import Protocol

from tunemill_trainer.data.rows import Message, Role, Tool


class Question(Protocol):
    """A turn that a model is asked for; the cases of prepare and the rows of `tunemill-trainer score` are such."""

    @property
    def id(self) -> str:
        """How users find it."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What may be called; empty when the data does not say."""

    @property
    def gold(self) -> Message:
        """The turn of the data."""


def slices_of(questions: Sequence[Question], trained_tools: frozenset[str] | None) -> dict[str, list[int]]:
    """Return the questions that share a trait: trait → their indices, without traits that no question has.

    Args:
        questions: all of them.
        trained_tools: the tools that are called in the training rows; None when nobody knows.
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
