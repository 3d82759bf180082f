"""Small inputs that exhaust memory or time: each affects only its row, and the process stays within its limits.

Memory is measured as the kernel counts it, in a separate process for each input.
"""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bombs.exploding import explode
from tunemill_api.data import DatasetFormat
from tunemill_trainer.data import dataset, formats, reading, records, tools
from tunemill_trainer.data.files import Data, DataFile
from tunemill_trainer.data.findings import RowError, Rule, invalidating
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import BrokenFileError, Line, Record
from tunemill_trainer.data.rows import Source
from tunemill_trainer.data.values import LONGEST_LITERAL, read_value
from tunemill_trainer.process.bounds import MemoryBound, TimeBound

MIB = 1 << 20
ROW_MIB = 600
"""The memory for reading one row: the limit of 512 MiB, plus the row itself."""
LITERAL_MIB = 200

HERE = Source("calls.jsonl", 1)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Use short time limits, because these tests measure memory."""
    monkeypatch.setattr(reading, "_TIME", TimeBound(seconds=3.0))
    monkeypatch.setattr(tools, "_TIME", TimeBound(seconds=0.3))


def a_call(arguments, parameters=None):
    """Return a row with a call whose arguments are a string."""
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    declared = {"name": "f", "parameters": parameters or {"type": "object"}}
    return {"messages": turns, "tools": [{"type": "function", "function": declared}]}


def rules_of(row, form=DatasetFormat.OPENAI):
    """Read a row, and return the rules that it breaks."""
    return sorted({problem.rule.value for problem in RowReader(form).read(Record(HERE, row)).problems})


def refused(text):
    """Return the error message for a text; empty if it can be parsed."""
    try:
        read_value(text, Rule.BROKEN_CALL)
    except RowError as error:
        return error.problem.message
    return ""


def filled(unit, size, begin="", end=""):
    """Return a text of the given size that repeats a unit."""
    return begin + unit * (size // len(unit)) + end


LITERALS = {
    "list": ("1,", "{'a': [", "]}"),
    "strings": ("'',", "['", "']"),
    "lists": ("[],", "{'a': [", "]}"),
    "dicts": ("{},", "{'a': [", "]}"),
    "tuples": ("(),", "{'a': (", ")}"),
    "sets": ("{1},", "[", "]"),
    "pairs": ("1:1,", "{", "}"),
    "names": ("true,", "{'a': [", "]}"),
    "minus": ("-", "{'a': ", "1}"),
    "not": ("not ", "{'a': ", "1}"),
    "plus": ("1+", "{'a': ", "1}"),
    "power": ("9**", "{'a': ", "9}"),
    "brackets": ("[", "{'a': ", ""),
    "parentheses": ("(", "", ""),
    "attributes": (".a", "{'a': b", "}"),
    "calls": ("f(", "", ")"),
    "lambda": ("lambda:", "{'a': ", "1}"),
    "joined texts": ("'a' ", "{'a': ", "}"),
    "f-texts": ("{a}", "{'a': f'", "'}"),
    "digits": ("9", "{'a': ", ",}"),
    "comparisons": ("1<", "{'a': ", "1}"),
    "comprehensions": (" for a in b", "[a", "]"),
}


@pytest.mark.parametrize("size", [LONGEST_LITERAL - 100, MIB], ids=["the longest", "longer"])
@pytest.mark.parametrize(("unit", "begin", "end"), LITERALS.values(), ids=LITERALS)
def test_a_python_literal_takes_little_memory(unit, begin, end, size):
    """Python's parser takes hundreds of bytes per character, so a long literal is rejected before parsing."""
    outcome = explode(refused, filled(unit, size, begin, end))
    assert outcome.mib < LITERAL_MIB
    if size > LONGEST_LITERAL:
        assert "a Python literal of at most 128 Ki characters" in outcome.value


JSON = {
    "lists": ("[],", "[", "[]]"),
    "objects": ("{},", "[", "{}]"),
    "objects with a key": ('{"":0},', "[", "0]"),
    "floats": ("1.5,", "[", "0]"),
    "numbers": ("999,", "[", "0]"),
    "texts": ('"é",', "[", "0]"),
    "keys": ('"%d":0,', "{", '"":0}'),
    "long keys": ('"aaaaaaaaaaaaaaaa":0,', "{", '"":0}'),
    "nulls": ("null,", "[", "0]"),
    "deep lists": ("[", "", ""),
    "deep objects": ('{"a":', "", ""),
    "deep and closed": ("[" * 500 + "]" * 500 + ",", "[", "0]"),
    "digits": ("9", "", ""),
    "exponents": ("1e400,", "[", "0]"),
    "escapes": ("\\u0041", '"', '"'),
    "surrogates": ("\\ud800", '"', '"'),
    "pairs": ("\\ud83d\\ude00", '"', '"'),
    "quotes": ('\\"', '"', '"'),
    "one text": ("a", '"', '"'),
    "wide text": ("🙂", '"a', '"'),
    "white space": (" ", "", "1"),
}


@pytest.mark.parametrize("where", ["arguments", "as text"])
@pytest.mark.parametrize(("unit", "begin", "end"), JSON.values(), ids=JSON)
def test_a_line_of_json_stays_within_the_limits_of_a_row(unit, begin, end, where):
    """A row of nearly the maximum size with any content in any place; the next row is read normally."""
    size = 7 * MIB // (2 if where == "as text" else 1)
    bomb = filled(unit, size, begin, end)
    row = json.dumps(a_call("BOMB"))
    if where == "as text":
        line = row.replace('"BOMB"', json.dumps(bomb, ensure_ascii=False))
    elif where == "arguments":
        line = row.replace('"BOMB"', bomb)
    else:
        line = json.dumps({"messages": [], "tools": [], where: "BOMB"}).replace('"BOMB"', bomb)
    lines = [Line(HERE, line.encode()), Line(Source("calls.jsonl", 2), json.dumps(a_call("{}")).encode())]

    def look():
        return [looked.row is None for looked in dataset._read_batch(RowReader(DatasetFormat.OPENAI), lines)[1]]

    outcome = explode(look)
    assert outcome.mib < ROW_MIB
    assert outcome.value[1] is False


def one(**schema):
    """Return parameters with one argument, a."""
    return {"type": "object", "properties": {"a": schema}}


LAUGHS = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3} for i in range(40)} | {"d40": {}}
REFERENCES = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{(i * 7 + j) % 50}"} for j in range(3)]} for i in range(50)}
WRONG = [[i] for i in range(50_000)]
SCHEMAS = {
    "references that branch": ({"type": "object", "$defs": LAUGHS, "allOf": [{"$ref": "#/$defs/d0"}]}, {"a": 1}),
    "references in circles": ({"type": "object", "$defs": REFERENCES, "allOf": [{"$ref": "#/$defs/d1"}]}, {"a": 1}),
    "itself": ({"type": "object", "allOf": [{"$ref": "#"}]}, {"a": 1}),
    "dynamic itself": ({"type": "object", "allOf": [{"$dynamicRef": "#"}]}, {"a": 1}),
    "unique items": (one(type="array", uniqueItems=True), {"a": [{"k": i} for i in range(50_000)]}),
    "a million errors": (one(type="array", items={"type": "string"}), {"a": WRONG}),
    "errors of choices": (one(anyOf=[{"const": i} for i in range(5000)]), {"a": "x" * 100_000}),
    "errors in choices": (one(anyOf=[{"type": "array", "items": {"type": "null"}}] * 200), {"a": WRONG}),
    "one of many": (one(oneOf=[{"type": "string"}] * 20_000), {"a": "x" * 10_000}),
    "not": (one(**{"not": {"not": {"not": {"enum": ["x" * 10_000] * 90}}}}), {"a": "x" * 10_000}),
    "enum": (one(enum=[[i] * 10 for i in range(20_000)]), {"a": WRONG}),
    "deep": (json.loads('{"properties":{"a":' * 300 + "{}" + "}}" * 300), {"a": 1}),
    "deep choices": (json.loads('{"anyOf":[' * 300 + "{}" + "]}" * 300), {"a": 1}),
    "many properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(60_000)}}, {"a": 1}),
    "many required": ({"type": "object", "required": [f"p{i}" for i in range(60_000)]}, {"a": 1}),
    "property names": ({"type": "object", "propertyNames": {"maxLength": 1}}, {f"p{i}": 1 for i in range(50_000)}),
    "dependent": ({"type": "object", "dependentRequired": {"a": [f"p{i}" for i in range(60_000)]}}, {"a": 1}),
    "unevaluated": ({"type": "object", "unevaluatedProperties": False}, {f"p{i}": 1 for i in range(50_000)}),
    "multiples": (one(multipleOf=1e-300), {"a": 10**300}),
    "multiples of nothing": (one(multipleOf=0.1), {"a": 10**4000}),
    "contains": (one(type="array", contains={"const": 1}, minContains=10**9), {"a": WRONG}),
    "tuples": (one(type="array", prefixItems=[{"type": "null"}] * 50_000), {"a": WRONG}),
}
PATTERNS = {
    "nested": ("(a+)+$", "a" * 60 + "!"),
    "nested stars": ("(a*)*b", "a" * 60),
    "alternatives": ("(a|a)*$", "a" * 60 + "!"),
    "alternatives of two": ("(a|aa)+$", "a" * 90 + "!"),
    "words": (r"^(\w+\s?)*$", "word " * 30 + "!"),
    "back reference": (r"(a*)*\1b", "a" * 40),
    "three stars": ("a*a*a*a*a*a*b", "a" * 3000),
    "optional": ("(a?){60}a{60}", "a" * 60),
    "counted": ("((a{1,100}){1,100}){1,100}b", "a" * 3000),
    "counted a lot": ("(?:a{1,65535}){1,65535}b", "a" * 60_000),
    "groups": ("(" * 90 + "a*" + ")*" * 90 + "b", "a" * 40),
    "look ahead": ("(?=(a+)+$)b", "a" * 60 + "!"),
    "look behind": ("(?<!a)(a+)+$", "a" * 60 + "!"),
    "e-mail": (r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}$", "a" * 60 + "!"),
    "long": ("a" * 100_000, "a"),
    "long choices": ("|".join(f"a{i}" for i in range(30_000)), "a"),
    "long class": ("[" + "".join(map(chr, range(0x4E00, 0x9F00))) + "]*", "a"),
    "deep groups": ("(" * 2000 + ")" * 2000, "a"),
    "wide class without case": ("(?i)[\\x01-\U0010ffff]+$", "a" * 1000),
    "large text": ("(.|\\s)*x", "a" * 1_000_000),
    "every position": (".*.*.*=.*", "a" * 50_000),
}


@pytest.mark.parametrize(("schema", "arguments"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema_stays_within_the_limits_of_a_row(schema, arguments):
    """References, alternatives and messages with quotes: the row is read or reported as invalid, within the limits."""
    outcome = explode(rules_of, a_call(arguments, schema))
    assert outcome.mib < ROW_MIB
    assert set(outcome.value) <= {"broken-tool", "wrong-argument", "missing-argument", "extra-argument", "format"}


@pytest.mark.parametrize("place", ["pattern", "patternProperties"])
@pytest.mark.parametrize(("pattern", "text"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_stays_within_the_limits_of_a_row(pattern, text, place):
    """Patterns with exponential backtracking, and large ones, which Python caches after compiling."""
    if place == "pattern":
        row = a_call({"a": text}, one(type="string", pattern=pattern))
    else:
        row = a_call({text: 1}, {"type": "object", "patternProperties": {pattern: {}}})
    outcome = explode(rules_of, row)
    assert outcome.mib < ROW_MIB
    assert set(outcome.value) <= {"broken-tool", "wrong-argument", "extra-argument"}


def test_the_cache_of_tools_is_bounded_by_its_size():
    """A thousand rows with different large tools take no more memory than one."""

    def read_all():
        reader = RowReader(DatasetFormat.OPENAI)
        for number in range(150):
            schema = one(enum=[[number, i] for i in range(4000)])
            assert not invalidating(reader.read(Record(HERE, a_call({"a": [number, 1]}, schema))).problems)

    assert explode(read_all).mib < ROW_MIB


def read_file(path: Path):
    """Read a file as prepare does, and return the numbers of rows and of invalid rows, or the error."""
    found = dataset.Dataset(DatasetFormat.OPENAI, path.with_suffix(".spool"))
    data = Data("s3://team-a/calls.jsonl", (DataFile("calls.jsonl", path, ""),))
    try:
        with dataset.DatasetBuilder(found, dataset.ReadOptions(workers=1), lambda: None) as intake:
            intake.read(dataset._all_items(data), data.uri)
    except BrokenFileError as error:
        return error.message
    return found.rows, found.invalid


GZIP = {
    f"{name} {kind}": (begin, unit)
    for name, unit in {
        "a letter": b"a",
        "spaces": b" ",
        "zeros": b"\0",
        "lists": b"[],",
        "brackets": b"[",
        "digits": b"1",
        "escapes": b"\\u0041",
    }.items()
    for kind, begin in {"in a text": b'{"messages": "', "in a list": b'[{"messages": "', "alone": b""}.items()
}


@pytest.mark.parametrize(("begin", "unit"), GZIP.values(), ids=GZIP)
def test_a_small_gzip_file_with_one_huge_row_is_rejected(tmp_path, begin, unit):
    """It unpacks to 100 MiB; at most one row of the maximum size is in memory."""
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(100):
            file.write(unit * (MIB // len(unit)))
    outcome = explode(read_file, path)
    assert outcome.mib < 80
    assert isinstance(outcome.value, str)


def test_many_large_rows_are_processed_in_short_batches(tmp_path):
    """Several rows of 6 MiB are not in memory at the same time."""
    path = tmp_path / "large.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(30):
            row = a_call("{}")
            row["messages"][0]["content"] = f"{number}" + "a" * (6 * MIB)
            file.write(json.dumps(row).encode() + b"\n")
    outcome = explode(read_file, path)
    assert outcome.mib < 150
    assert outcome.value == (30, 0)


def test_rows_read_for_format_detection_are_bounded(tmp_path):
    """The format is detected from a hundred rows, or only the first if rows are large."""
    path = tmp_path / "large.gz"
    row = json.dumps(a_call("BOMB")).replace('"BOMB"', filled("[],", 7 * MIB, "[", "[]]"))
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(12):
            file.write(row.encode() + b"\n")
    outcome = explode(lambda: formats.detect(records.records(DataFile("calls.jsonl", path, "")), "calls.jsonl"))
    assert outcome.value is DatasetFormat.OPENAI
    assert outcome.mib < ROW_MIB


def repeated(value, kind, count=200):
    """Return a column that repeats one value without storing it again."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], kind))


TEXT = pa.large_string()
DEEP = pa.int64()
for _ in range(60):
    DEEP = pa.list_(DEEP)
TABLES = {
    "texts": pa.table({"messages": repeated("a" * (8 * MIB), TEXT)}),
    "wide texts": pa.table({"messages": repeated("🙂" * (2 * MIB), TEXT)}),
    "bytes": pa.table({"messages": repeated(b"a" * (8 * MIB), pa.large_binary())}),
    **{
        f"{name} of {size}": pa.table({"messages": pa.array([[value] * size] * 200, pa.list_(kind))})
        for name, value, kind in (
            ("numbers", 300, pa.int16()),
            ("floats", 0.5, pa.float32()),
            ("booleans", True, pa.bool_()),
            ("nulls", None, pa.int8()),
            ("objects", {"a": 1}, pa.struct({"a": pa.int8()})),
            ("lists", [], pa.list_(pa.int8())),
        )
        for size in (500, 10_000)
    },
    "many columns": pa.table({f"c{i}": pa.array([i] * 200, pa.int16()) for i in range(400)}),
    "deep": pa.table({"messages": pa.array([None] * 200, DEEP)}),
    "many objects": pa.table(
        {"messages": pa.array([[{f"k{i}": i for i in range(200)}] * 20] * 200)},
    ),
    "nothing": pa.table({"messages": pa.nulls(5000)}),
    "maps": pa.table({"messages": pa.array([[("a", 1)] * 20_000] * 200, pa.map_(pa.string(), pa.int8()))}),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_stays_within_its_limits(tmp_path, monkeypatch, table):
    """A few kilobytes of Parquet can unpack to gigabytes, so the limit applies before the rows are created."""
    monkeypatch.setattr(records, "_ROOM_OF_A_TABLE", MemoryBound(256 * MIB))
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path, compression="zstd")
    outcome = explode(read_file, path)
    # Half of it may be memory that this process had freed before; unbounded, the texts alone would take 1.6 GiB.
    assert outcome.mib < 2 * 256 + 150
    if isinstance(outcome.value, str):
        assert "needs more than 256 MiB of memory" in outcome.value or "corrupt" in outcome.value
    else:
        assert outcome.value[0] == outcome.value[1] > 0
