"""TRL's conversational prompt and completion: turns in `prompt`, turns in `completion`, and `tools`.

https://huggingface.co/docs/trl/dataset_formats#prompt-completion
As in TRL, the loss is computed only on the completion.
"""

from dataclasses import replace

from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return isinstance(value.get("prompt"), list) and isinstance(value.get("completion"), list | dict)


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    completion = value.get("completion")
    if isinstance(completion, dict):
        value = {**value, "completion": [completion]}
    prompt = [
        replace(message, learnt=False) if message.role is Role.ASSISTANT else message
        for message in openai.read_turns(value, "prompt")
    ]
    return [*prompt, *openai.read_turns(value, "completion")], openai.tools_of(value)
