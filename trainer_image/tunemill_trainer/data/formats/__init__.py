"""The supported data set formats, one module each, and their detection.

A format is a module with `read(value) -> (messages, tools)`, which raises RowError for a row that it cannot read. Most
also have `matches(value)`, which returns whether a row can only be of this format. Calls in text and the order of tool
responses are the same for all formats, so `reading` handles them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from pydantic import JsonValue
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason

from tunemill_trainer.data.findings import REMEDIES, DataError, RowError, Rule, crash
from tunemill_trainer.data.formats import (
    anthropic,
    api_bank,
    bfcl,
    client_log,
    glaive,
    hermes,
    nestful,
    openai,
    prompt_completion,
    responses,
    simple,
    swift,
    tau_bench,
    toolace,
    toolbench,
    unsupported,
    when2call,
    xlam,
)
from tunemill_trainer.data.formats.turns import with_parsed_turns
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import JsonObject, Message, Tool
from tunemill_trainer.data.tools import without_nulls
from tunemill_trainer.errors import StageError

Reader = Callable[[JsonObject], tuple[list[Message], tuple[Tool, ...]]]


READERS: dict[DatasetFormat, Reader] = {
    DatasetFormat.OPENAI: openai.read,
    DatasetFormat.HERMES: hermes.read,
    DatasetFormat.SHAREGPT: hermes.read,  # the same turns, without the tags
    DatasetFormat.XLAM: xlam.read,
    DatasetFormat.TOOLACE: toolace.read,
    DatasetFormat.GLAIVE: glaive.read,
    DatasetFormat.SIMPLE: simple.read,
    DatasetFormat.PROMPT_COMPLETION: prompt_completion.read,
    DatasetFormat.SWIFT: swift.read,
    DatasetFormat.ANTHROPIC: anthropic.read,
    DatasetFormat.RESPONSES: responses.read,
    DatasetFormat.CLIENT_LOG: client_log.read,
    DatasetFormat.TOOLBENCH: toolbench.read,
    DatasetFormat.API_BANK: api_bank.read,
    DatasetFormat.NESTFUL: nestful.read,
    DatasetFormat.TAU_BENCH: tau_bench.read,
    DatasetFormat.WHEN2CALL: when2call.read,
    DatasetFormat.BFCL: bfcl.read,
}

_SURE: dict[DatasetFormat, Callable[[JsonObject], bool]] = {
    DatasetFormat.CLIENT_LOG: client_log.matches,
    DatasetFormat.PROMPT_COMPLETION: prompt_completion.matches,
    DatasetFormat.TAU_BENCH: tau_bench.matches,
    DatasetFormat.ANTHROPIC: anthropic.matches,
    DatasetFormat.SWIFT: swift.matches,
    DatasetFormat.WHEN2CALL: when2call.matches,
    DatasetFormat.TOOLBENCH: toolbench.matches,
    DatasetFormat.XLAM: xlam.matches,
    DatasetFormat.GLAIVE: glaive.matches,
    DatasetFormat.SIMPLE: simple.matches,
    DatasetFormat.BFCL: bfcl.matches,
    DatasetFormat.NESTFUL: nestful.matches,
    DatasetFormat.API_BANK: api_bank.matches,
    DatasetFormat.RESPONSES: responses.matches,
}
"""Tests that recognise a format with certainty. The first match wins, because a log contains `messages`, too."""


def read(value: JsonObject, form: DatasetFormat) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Args:
        value: the row.
        form: its format; not Auto.

    Raises:
        RowError: the row cannot be read.
    """
    if (kind := unsupported.kind_of(value)) is not None:
        raise RowError(Rule.FORMAT, f"{kind.name}: not supported. {kind.remedy}")
    return READERS[form](with_parsed_turns(value))


def detect(rows: Iterable[Record], name: str, wanted: DatasetFormat = DatasetFormat.AUTO) -> DatasetFormat:
    """Return the format of the data: `wanted`, or with Auto the format of the first rows.

    One format applies to all rows, so that a deviating row is reported instead of guessed. Rows that fit several
    formats, such as plain conversations in `messages`, count only if no row is certain. The most frequent format wins.

    Args:
        rows: the rows; only the first ones are read.
        name: the name of the data, for messages.
        wanted: spec.dataset.format.

    Raises:
        StageError: DatasetEmpty, DatasetMalformed, or DatasetFormatUnknown.
    """
    samples = _first(rows)
    if not samples:
        raise StageError(Reason.DATASET_EMPTY, f"expected rows in {name}, found none", f"Add rows to {name}.")
    if wanted is not DatasetFormat.AUTO:
        return wanted
    values = [sample.value for sample in samples if sample.value is not None]
    if not values:
        first = samples[0]
        raise DataError(
            Reason.DATASET_MALFORMED,
            f"{first.source}: {Rule.NOT_JSON}",
            f"{first.source}: {first.error}",
            REMEDIES[Rule.NOT_JSON],
        )
    try:
        values = [with_parsed_turns(value) for value in values]
        seen = [
            found
            for found in (_form_of(value) for value in values if unsupported.kind_of(value) is None)
            if found is not None
        ]
    except Exception as error:  # noqa: BLE001 - whatever it is, its message may quote a row
        raise crash(error, f"one of the first {len(samples)} rows of {name}") from None
    kinds = Counter(kind.name for kind in map(unsupported.kind_of, values) if kind is not None)
    if kinds.total() > len(seen):
        raise _not_read(kinds.most_common(1)[0][0], name)
    if not seen:
        expected = (
            f"expected rows in {name} with `messages` (OpenAI), `conversations` (Hermes, ShareGPT, ToolACE), `query` "
            "and `answers` (XLAM), `system` and `chat` (Glaive), `user_content` and `tool_name` (Simple), or the "
            "fields of another format that spec.dataset.format supports"
        )
        raise DataError(
            Reason.DATASET_FORMAT_UNKNOWN,
            f"{expected}, found none of these in the first {len(samples)} rows",
            f"{expected}, found the fields: {', '.join(sorted(values[0])) or 'none'}",
        )
    votes = Counter(form for form, sure in seen if sure) or Counter(form for form, _ in seen)
    return votes.most_common(1)[0][0]


def without_nulls_of_tables(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return the turns with nulls removed from calls where the tools neither require nor allow them; see `tools`."""
    return [
        replace(message, calls=tuple(without_nulls(call, tools) for call in message.calls))
        if any(_holds_null(call.arguments) for call in message.calls)
        else message
        for message in messages
    ]


def _holds_null(value: JsonValue) -> bool:
    # A stack, because rows may be nested more deeply than Python can recurse.
    parts = [value]
    while parts:
        part = parts.pop()
        if part is None:
            return True
        if isinstance(part, dict):
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
    return False


_SAMPLES = 100
"""The rows from which the format is detected."""
_SAMPLED_BYTES = 4 << 20
"""No more rows are sampled once they have this many bytes, because all are held in memory."""


def _first(rows: Iterable[Record]) -> list[Record]:
    samples: list[Record] = []
    size = 0
    for record in islice(rows, _SAMPLES):
        samples.append(record)
        size += record.size
        if size >= _SAMPLED_BYTES:
            break
    return samples


def _not_read(kind: str, name: str) -> DataError:
    remedy = next(each.remedy for each in unsupported.KINDS if each.name == kind)
    return DataError(
        Reason.DATASET_FORMAT_UNKNOWN, f"most rows of {name} are {kind}, which is not supported", remedy=remedy
    )


def _form_of(sample: JsonObject) -> tuple[DatasetFormat, bool] | None:
    """Return the format of a row and whether it is certain; None if the format is unknown."""
    sure = next((form for form, matches in _SURE.items() if matches(sample)), None)
    if sure is not None:
        return sure, True
    if isinstance(sample.get("conversations"), list):
        return _form_of_conversations(sample)
    if isinstance(sample.get("messages"), list):
        if openai.has_calls(sample):
            return DatasetFormat.OPENAI, True
        tagged = hermes.has_tags(json.dumps(sample["messages"], ensure_ascii=False))
        return DatasetFormat.HERMES if tagged else DatasetFormat.OPENAI, tagged
    return None


def _form_of_conversations(sample: JsonObject) -> tuple[DatasetFormat, bool]:
    if toolace.matches(sample):
        return DatasetFormat.TOOLACE, True
    if hermes.has_tags(json.dumps([sample["conversations"], sample.get("system")], ensure_ascii=False)):
        return DatasetFormat.HERMES, True
    speakers = hermes.speakers(sample)
    return DatasetFormat.SHAREGPT if speakers else DatasetFormat.HERMES, bool(speakers & {"function_call", "tool_call"})
