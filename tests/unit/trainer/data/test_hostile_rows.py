"""Hostile data: schemas and texts that use excessive CPU time, files that unpack to more than any memory."""

import gzip
import json
import re
import resource
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer.data.building import a_file
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason
from tunemill_trainer.data import reading, records, tools
from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import BrokenFileError, Record
from tunemill_trainer.data.rows import Source
from tunemill_trainer.process.bounds import MemoryBound, TimeBound

MIB = 1 << 20


def problem_of(value, form=DatasetFormat.OPENAI):
    """Return the only problem of a row."""
    (problem,) = RowReader(form).read(Record(Source("calls.jsonl", 1), value)).problems
    return problem


def a_call(parameters, arguments):
    """Return a row with a call to a tool with these parameters."""
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
    turns = [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": turns, "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def one(schema):
    """Return parameters with one argument, a."""
    return {"type": "object", "properties": {"a": schema}}


LAUGHS = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3} for i in range(30)} | {"d30": {}}


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (one({"type": "string", "pattern": "(a+)+$"}), {"a": "a" * 60 + "!"}),
        ({"type": "object", "patternProperties": {"(a+)+$": {}}}, {"a" * 60 + "!": 1}),
        ({"type": "object", "$defs": LAUGHS, "properties": {"a": {"$ref": "#/$defs/d0"}}}, {"a": "x"}),
        (one({"type": "array", "uniqueItems": True}), {"a": [{"k": i} for i in range(20_000)]}),
    ],
    ids=["pattern", "pattern of names", "references that branch", "unique items"],
)
def test_a_schema_that_takes_too_long_makes_its_row_invalid(monkeypatch, parameters, arguments):
    """The check of a call has a time limit."""
    monkeypatch.setattr(tools, "_TIME", TimeBound(seconds=0.1))
    problem = problem_of(a_call(parameters, arguments))
    assert problem.rule is Rule.BROKEN_TOOL
    assert "takes more than 0.1 s" in problem.message


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/schema.json", "file:///etc/passwd", "urn:x"])
def test_a_schema_is_never_fetched(address):
    """External references are reported as unresolved."""
    assert "has a reference that cannot be resolved" in problem_of(a_call(one({"$ref": address}), {"a": 1})).message


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (DatasetFormat.GLAIVE, {"system": "", "chat": "\n" * MIB}),
        (DatasetFormat.HERMES, {"conversations": [{"from": "system", "value": " " * MIB}]}),
        (DatasetFormat.TOOLACE, {"system": "\t" * MIB, "conversations": [{"from": "user", "value": "x"}]}),
    ],
)
def test_a_megabyte_of_white_space_is_read_quickly(form, value):
    """Regular expressions that search for its end from every position would be slow."""
    begun = time.process_time()
    RowReader(form).read(Record(Source("calls.jsonl", 1), value))
    assert time.process_time() - begun < 2


def test_a_row_that_takes_too_long_to_read_is_invalid(monkeypatch):
    """Even after its tools were read within a separate limit."""
    monkeypatch.setattr(reading, "_TIME", TimeBound(seconds=0.1))
    monkeypatch.setattr(reading.lint, "problems", lambda row, contract: re.match("(a+)+$", "a" * 60 + "!"))
    problem = problem_of(a_call(one({"type": "string"}), {"a": "x"}))
    assert (problem.rule, problem.message) == (Rule.FORMAT, "reading the row takes more than 0.1 s of CPU time")


@pytest.mark.parametrize("begin", [b'{"messages": "', b'[{"messages": "', b""])
def test_a_small_file_that_unpacks_to_one_huge_row_is_rejected(tmp_path: Path, monkeypatch, begin):
    """A megabyte of gzip can contain hundreds of megabytes. At most one row of the maximum size is in memory."""
    monkeypatch.setattr(records, "_LONGEST_ROW", MIB)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(200):
            file.write(b"a" * MIB if begin else b" " * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BrokenFileError, match="expected at most 1 MiB") as error:
        list(records.records(DataFile("bomb.jsonl.gz", path, "")))
    assert error.value.reason is Reason.DATASET_MALFORMED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_a_table_with_rows_larger_than_memory_is_rejected(tmp_path: Path, monkeypatch):
    """A few kilobytes of Parquet contain one long string 256 times: 2 GiB, more than other tests leave in the heap."""
    monkeypatch.setattr(records, "_ROOM_OF_A_TABLE", MemoryBound(64 * MIB))
    path = tmp_path / "bomb.parquet"
    texts = pa.array(["a" * (8 * MIB)], pa.large_string())
    table = pa.table({"messages": pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), texts)})
    pq.write_table(table, path, compression="zstd")
    with pytest.raises(BrokenFileError, match="needs more than 64 MiB"):
        list(records.records(DataFile("bomb.parquet", path, "")))


@pytest.mark.parametrize("line", [b'{"a": ' + b"[" * 100_000, b'{"a": ' + b"1" * 100_000 + b"}", b'{"a": 1e999}'])
def test_unrepresentable_json_is_a_finding(tmp_path: Path, line):
    """Extreme nesting and numbers make one row invalid, but do not end the run."""
    (record,) = records.records(a_file(tmp_path, line))
    assert record.value is None
    assert record.error.startswith("not JSON")


@pytest.mark.parametrize(
    "arguments",
    [
        r'{"a": "\ud83d"}',
        r"{'a': '\ud83d'}",
        '{{"a": "x"}}',
        '{"a": {[1, 2], [3]}}',
        "{[1]: 2}",
        "{'a': {(1,): {2: 3}}}",
    ],
)
def test_invalid_arguments_as_text_affect_only_their_row(arguments):
    """The text is parsed separately: JSON escapes can encode lone surrogates, and Python has sets."""
    row = a_call({"type": "object"}, {})
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
    problem = problem_of(row)
    assert problem.rule is Rule.BROKEN_CALL
    assert problem.message.startswith("expected the arguments of f to be an object, as JSON or a Python literal")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (one({"$ref": "#/$defs/b"}) | {"$defs": {"b": {"type": "unheard"}}}, "an unknown type"),
        (one({"$ref": "#/x/b"}) | {"x": {"b": {"pattern": "("}}}, "a part of its schema is invalid"),
        (one({"$ref": "#/x/b"}) | {"x": {"b": {"maxLength": "a"}}}, "a part of its schema is invalid"),
        (one({"$ref": "#/x/b"}) | {"x": {"b": 7}}, "a part of its schema is invalid"),
    ],
)
def test_a_schema_that_is_invalid_behind_a_reference(parameters, said):
    """The target of `$ref` is not validated in advance."""
    problem = problem_of(a_call(parameters, {"a": "1"}))
    assert problem.rule is Rule.BROKEN_TOOL
    assert said in problem.message
