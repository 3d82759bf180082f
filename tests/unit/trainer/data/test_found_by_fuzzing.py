"""Inputs found by `python -m tunemill_dev.fuzz` that crashed the readers."""

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

DEPTHS = range(400, 490)
"""A depth around the limit of Python's stack, which depends on its current depth."""


def nested(depth: int, inner: str) -> str:
    """Return JSON with a value nested in lists and objects."""
    return '[{"a":' * depth + inner + "}]" * depth


@pytest.mark.parametrize("row", ['{"messages": %s}', '{"query": "x", "answers": %s}'])
def test_deeply_nested_surrogates(row):
    """Python can parse them, but not serialize them. As a value and as text."""
    for depth in DEPTHS:
        value = nested(depth, r'"\ud83d"')
        usable_row((row % value).encode(), DatasetFormat.AUTO)
        usable_row((row % json.dumps(value)).encode(), DatasetFormat.AUTO)


def test_deeply_nested_answers():
    """A row of BFCL, whose answers may hold nulls of a table."""
    question, function = [[{"role": "user", "content": "Rain?"}]], {"name": "f", "parameters": {"type": "dict"}}
    row = json.dumps({"question": question, "function": [function], "ground_truth": [{"f": {"a": ["ANSWER"]}}]})
    for depth in DEPTHS:
        usable_row(row.replace('"ANSWER"', nested(depth, "1")).encode(), DatasetFormat.AUTO)


def test_a_column_with_an_invalid_name(tmp_path: Path):
    """Arrow returns the name as it is in the file."""
    path = tmp_path / "calls.parquet"
    pq.write_table(pa.table({"query": ["x"]}), path, store_schema=False)
    content = path.read_bytes().replace(b"query", b"\xebuery")
    with pytest.raises(DataError, match="corrupt"):
        list(records(a_file(tmp_path, content)))
