"""The report of prepare about the rows that it has read, also when too many of them are invalid."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tunemill_api.failures import Reason

from tunemill_trainer.data.dataset import Dataset, TooManyInvalidError
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.stages.context import StageContext

_OF_DATA = {
    Reason.DATASET_EMPTY,
    Reason.DATASET_FORMAT_UNKNOWN,
    Reason.DATASET_MALFORMED,
    Reason.DATASET_INVALID_ROWS,
    Reason.DATASET_TOO_SMALL,
}
"""The reasons whose messages and remedies are about spec.dataset."""

_log = logging.getLogger(__name__)

FAILED_REPORT = "failed-report.json"
"""The report about invalid rows, when there are too many of them and therefore no output."""


def of(dataset: Dataset) -> JsonObject:
    """Return the counts of the rows, for report.json."""
    return {
        "format": dataset.format.value,
        "rows": dataset.rows,
        "invalidRows": dataset.invalid,
        "duplicateRows": dataset.duplicates,
        "leakedRows": dataset.leaked,
        "rowsWithoutAssistant": dataset.unsupervised,
        "unrenderableRows": dataset.unrenderable,
        "tools": [*sorted(dataset.offers)],
    }


@contextmanager
def about(field: str) -> Iterator[None]:
    """Name the field in errors about rows of another field than spec.dataset.uri, and give a remedy for it.

    Raises:
        StageError: what the block raises.
    """
    try:
        yield
    except StageError as error:
        if error.reason not in _OF_DATA:
            raise
        remedy = error.remedy or f"Correct the rows or the settings of {field}, or remove it."
        raise StageError(error.reason, f"{field}: {error.message}", remedy) from error


def with_report(context: StageContext, stage: str, key: str, error: TooManyInvalidError) -> StageError:
    """Write the report about invalid rows to the workspace, and return the error with its URI.

    Args:
        context: of the stage.
        stage: the kind of the output that was not made.
        key: its key.
        error: the error.
    """
    report = of(error.dataset) | {"findings": error.dataset.findings.to_json()}
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    try:
        uri = context.workspace.leave(stage, key, FAILED_REPORT, text.encode(errors="backslashreplace"))
    except StageError as unwritten:
        _log.warning("cannot write the report: %s", unwritten.message)
        return error
    return StageError(error.reason, f"{error.message}. All findings are in {uri}", error.failure.remedy)
