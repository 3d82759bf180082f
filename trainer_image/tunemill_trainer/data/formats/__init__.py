"""The formats that data may come in, one module each, and the choice between them.

A format is a module with `read(value) -> (messages, tools)`, which raises RowError for a row that it cannot read.
"""

import json
from collections.abc import Callable, Iterable

from tunemill_api.failures import Reason
from tunemill_api.finetune import DatasetFormat

from tunemill_trainer.data.formats import hermes, openai
from tunemill_trainer.data.rows import JsonObject, Message, Tool
from tunemill_trainer.errors import StageError

Reader = Callable[[JsonObject], tuple[list[Message], tuple[Tool, ...]]]

READERS: dict[DatasetFormat, Reader] = {DatasetFormat.OPENAI: openai.read, DatasetFormat.HERMES: hermes.read}


def detect(samples: Iterable[JsonObject], uri: str) -> DatasetFormat:
    """Return the format of the first rows of the data.

    Both formats have a list of turns. It is Hermes when it is called `conversations`, or when its turns carry Hermes'
    roles or tags; that decides for all rows, so that a row that differs is reported and not guessed at.

    Raises:
        StageError: DatasetFormatUnknown, naming the fields that were found.
    """
    fields: list[str] = []
    openai_rows = False
    for sample in samples:
        if isinstance(sample.get("conversations"), list):
            return DatasetFormat.HERMES
        messages = sample.get("messages")
        if isinstance(messages, list):
            openai_rows = True
            if hermes.has_tags(json.dumps(messages, ensure_ascii=False)):
                return DatasetFormat.HERMES
        fields = fields or sorted(sample)
    if openai_rows:
        return DatasetFormat.OPENAI
    raise StageError(
        Reason.DATASET_FORMAT_UNKNOWN,
        f"expected rows with `messages` (OpenAI) or `conversations` (Hermes) in {uri}, found the fields: "
        f"{', '.join(fields) or 'none'}",
    )
