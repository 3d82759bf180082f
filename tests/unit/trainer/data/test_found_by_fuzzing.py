"""Inputs that `python -m tunemill_dev.fuzz` has found, by what was wrong with them: none crashes the readers any more."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer.data.building import a_file
from tunemill_api.data import DatasetFormat
from tunemill_dev.fuzz.targets import usable_row
from tunemill_trainer.data.findings import DataError
from tunemill_trainer.data.records import records


def nested(depth: int, inner: str) -> str:
    """Return a value within so many lists."""
    return "[" * depth + inner + "]" * depth


LINES = {
    "half a surrogate pair deep down, where Python reads JSON and cannot write it": nested(975, r'"\ud83d"'),
    "the same as text": json.dumps(nested(975, r'"\ud83d"')),
    "a whole pair deep down": nested(985, r'"\ud83d\ude00"'),
}


@pytest.mark.parametrize("value", LINES.values(), ids=LINES)
@pytest.mark.parametrize("row", ['{"messages": %s}', '{"query": "x", "answers": %s}', '{"system": "x", "chat": %s}'])
def test_lines(row, value):
    """Each ends in a finding, or is a row."""
    usable_row((row % value).encode(), DatasetFormat.AUTO)


def test_a_column_whose_name_is_no_text(tmp_path: Path):
    """Arrow hands the name on as it stands in the file."""
    path = tmp_path / "calls.parquet"
    pq.write_table(pa.table({"query": ["x"]}), path, store_schema=False)
    content = path.read_bytes().replace(b"query", b"\xebuery")
    with pytest.raises(DataError, match="damage"):
        list(records(a_file(tmp_path, content)))
