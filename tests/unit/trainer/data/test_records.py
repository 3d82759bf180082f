"""Reading files as a stream of JSON objects with their places."""

import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer.data.building import a_file
from tunemill_api.failures import Reason
from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import DataError
from tunemill_trainer.data.records import records
from tunemill_trainer.errors import StageError


def read(folder: Path, content, name="calls.jsonl", zipped=False):
    """Return (place, value or error) of every record."""
    found = records(a_file(folder, content, name, zipped=zipped))
    return [(str(record.source), record.value if record.value is not None else record.error) for record in found]


def test_lines_keep_their_numbers_over_empty_lines(tmp_path):
    """The place of a row is its line number in the file."""
    assert read(tmp_path, '\n{"a": 1}\n\n  \n{"a": 2}') == [
        ("calls.jsonl line 2", {"a": 1}),
        ("calls.jsonl line 5", {"a": 2}),
    ]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_list_is_read_like_lines(tmp_path, zipped):
    """A .json file with one list yields its elements, gzipped or not."""
    assert read(tmp_path, ' \n[ {"a": 1},\n{"a": [{}]} ]\n', "calls.json", zipped) == [
        ("calls.json element 1", {"a": 1}),
        ("calls.json element 2", {"a": [{}]}),
    ]


def test_the_contents_decide_and_not_the_name(tmp_path):
    """A file called .json that contains lines, with a byte order mark, is read as lines."""
    assert read(tmp_path, b'\xef\xbb\xbf{"a": 1}\n', "calls.json") == [("calls.json line 1", {"a": 1})]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"a": 1', "not JSON at column 8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'["a"]x', "not JSON at column 6"),
        (b"7", "expected a JSON object, found a number"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
        (b'{"a": "\\ud800"}', "a lone surrogate"),
        (b'{"a":' * 100_000, "not JSON: it is nested too deeply"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has too many digits"),
    ],
)
def test_an_invalid_line_is_reported_and_the_next_is_read(tmp_path, line, error):
    """One invalid line affects only one row."""
    first, (place, value) = read(tmp_path, b'{"b": 0}\n' + line + b'\n{"a": 1}\n')[0:3:2]
    assert first == ("calls.jsonl line 1", {"b": 0})
    assert (place, value) == ("calls.jsonl line 3", {"a": 1})
    assert error in read(tmp_path, b'{"b": 0}\n' + line + b"\n")[1][1]


def test_surrogate_pairs_are_text(tmp_path):
    """An emoji written as two escapes is one character."""
    assert read(tmp_path, rb'{"a": "\ud83d\ude00"}') == [("calls.jsonl line 1", {"a": "😀"})]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[{"a": 1}, {"a": }]', "calls.json element 2: not JSON"),
        ('[{"a": 1} {"a": 2}]', "calls.json element 1: expected , or ]"),
        ('[{"a": 1}', "calls.json element 1: expected , or ] after it, found 'the end of the file'"),
        ('[{"a": "x', "calls.json element 1: not JSON: Unterminated string"),
        ('[{"a": 1},]', "calls.json element 1: expected an element after the last comma"),
        ('[{"a": 1}]\n[{"a": 2}]', "calls.json element 1: expected nothing after the list, found '['"),
    ],
)
def test_a_broken_list_ends_the_run(tmp_path, text, error):
    """After an invalid element, the rest of a list cannot be parsed, so it is not a single invalid row."""
    with pytest.raises(DataError) as raised:
        read(tmp_path, text, "calls.json")
    assert raised.value.reason is Reason.DATASET_MALFORMED
    assert error in raised.value.detail


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"a": 1}\n'.encode("utf-16"), "text in UTF-16"),
        ('{"a": 1}\n'.encode("utf-16-be"), "text in UTF-16 or UTF-32"),
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"\x28\xb5\x2f\xfd and more", "zstandard"),
        (json.dumps({"a": 1, "b": [2]}, indent=2).encode(), "an object on several lines"),
    ],
)
def test_an_unsupported_file_type_is_reported_once(tmp_path, content, kind):
    """By its name, not as thousands of invalid lines."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, content)
    assert raised.value.reason is Reason.DATASET_MALFORMED
    assert kind in raised.value.message


def test_other_columns_can_have_any_type(tmp_path):
    """Many tables have columns with dates, bytes and other types that JSON lacks."""
    row = {"messages": [{"role": "user"}], "when": datetime.now(UTC), "raw": b"\xff", "score": float("nan"), "by": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "made.parquet")
    [(_, found)] = read(tmp_path, (tmp_path / "made.parquet").read_bytes())
    assert found == {"messages": [{"role": "user"}], "by": None}


def test_a_truncated_gzip_file_is_reported_with_the_last_line(tmp_path):
    """An incomplete upload is distinguished from invalid rows."""
    whole = a_file(tmp_path, [{"number": n, "text": str(n) * 50} for n in range(5000)], zipped=True)
    whole.path.write_bytes(whole.path.read_bytes()[:-2000])
    with pytest.raises(StageError) as raised:
        list(records(whole))
    assert raised.value.reason is Reason.DATASET_MALFORMED
    assert "the gzip file is truncated or corrupt after calls.jsonl line" in raised.value.message


def test_a_large_list_is_not_held_in_memory(tmp_path):
    """Reading a list of 24 MB takes a few MB, and elements across buffer borders are complete."""
    rows = [{"number": number, "text": "ü" * 1000} for number in range(12_000)]
    file = a_file(tmp_path, json.dumps(rows, ensure_ascii=False), "calls.json")
    del rows
    tracemalloc.start()
    assert [record.value["number"] for record in records(file)] == list(range(12_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.path.stat().st_size > 24_000_000
    assert peak < 16_000_000


def test_invalid_utf_8_in_a_table_affects_only_its_row(tmp_path):
    """Arrow does not validate the strings of a Parquet file."""
    bad = pa.array([b"good", b"\xff", b"fine"]).cast(pa.string(), safe=False)
    path = tmp_path / "calls.parquet"
    pq.write_table(pa.table({"chat": pa.Array.from_buffers(pa.string(), 3, bad.buffers())}), path)
    found = list(records(DataFile("calls.parquet", path, "")))
    assert [record.value for record in found] == [{"chat": "good"}, None, {"chat": "fine"}]
    assert "not UTF-8" in found[1].error
