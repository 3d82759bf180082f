"""Reads files as a stream of JSON objects with their places: JSON Lines or one JSON list, plain or gzipped, or Parquet.

The file type is detected from the contents, not the name. Reading holds one row and a buffer in memory: a file may be
larger than memory, and a small compressed file may expand to more than any memory.
"""

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from typing import BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq
from tunemill_api.failures import Reason

from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import DataError, RowError, Rule
from tunemill_trainer.data.rows import JsonObject, Source
from tunemill_trainer.data.values import HALF_PAIR, as_json, holds_surrogates, refuse_constant
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_ROWS_OF_A_TABLE = 256
"""The rows of a table that are read at once; rows may be large."""
_OF_FORMATS = (str, list, dict, bool, int)
"""The types of values that a data set format can use."""
_CHUNK_BYTES = 1 << 20
_LONGEST_ROW = 8 << 20
"""The most bytes of a line, or characters of a list element: several times the longest context."""
_ROOM_OF_A_TABLE = MemoryBound(1 << 30)
"""The memory limit for the rows of a table that are read at once."""
_UNREADABLE = (ValueError, ArithmeticError)
"""Raised for strings that are not UTF-8, which Arrow does not check, and for times out of Python's range."""
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""Unsupported file types by their first bytes."""
_LONGEST_LITERAL = 16
"""A JSON error this close to the end of the buffer may only mean that the buffer ends in a literal or an escape."""


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, or the error in its place.

    Attributes:
        source: the place in the file.
        value: the object; None if it cannot be read.
        error: the reason; it may quote the file.
        size: the rough number of characters as JSON.
    """

    source: Source
    value: JsonObject | None
    error: str = ""
    size: int = 0


@dataclass(frozen=True)
class Line:
    """An unparsed line, so that another process can parse it."""

    source: Source
    content: bytes

    def parsed(self) -> Record:
        """Parse the line."""
        return replace(_record(self.source, self.content), size=len(self.content))


class BrokenFileError(DataError):
    """The rest of a file cannot be read.

    Args:
        last: the last place that was read.
        message: see DataError.
        detail: see DataError.
    """

    def __init__(self, last: Source, message: str, detail: str = "") -> None:
        super().__init__(Reason.DATASET_MALFORMED, message, detail)
        self.last = last


def records(file: DataFile) -> Iterator[Record]:
    """Yield the objects of a file; empty lines are skipped.

    Raises:
        BrokenFileError: DatasetMalformed.
    """
    return (item if isinstance(item, Record) else item.parsed() for item in unparsed(file))


def unparsed(file: DataFile) -> Iterator[Line | Record]:
    """Yield the lines of a file unparsed. The elements of JSON lists and Parquet tables are yielded parsed.

    Raises:
        BrokenFileError: DatasetMalformed.
    """
    with file.path.open("rb") as raw:
        if raw.read(4) == _PARQUET_MAGIC:
            return _rows_of_a_table(file)
    return _text(file)


def _text(file: DataFile) -> Iterator[Line | Record]:
    last = Source(file.name, 1)
    found = False
    try:
        with _open(file) as stream:
            start = _first_character(file.name, stream)
            for item in _elements(file.name, stream) if start == b"[" else _lines(file.name, stream):
                last, found = item.source, True
                yield item
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        where = f"after {last}" if found else f"at the start of {file.name}"
        damaged = f"the gzip file is truncated or corrupt {where}"
        raise BrokenFileError(last, damaged, f"{damaged}: {error}") from error


def _open(file: DataFile) -> BinaryIO:
    with file.path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
    return cast("BinaryIO", gzip.open(file.path)) if zipped else file.path.open("rb")


def _rows_of_a_table(file: DataFile) -> Iterator[Record]:
    """Yield the rows of a Parquet file, including the nulls of absent fields: the row reader removes those."""
    number = 0
    try:
        with _ROOM_OF_A_TABLE:
            # Each Arrow thread reserves address space, which the memory bound counts.
            table = pq.ParquetFile(file.path, pre_buffer=False)
        with table:
            schema = table.schema_arrow
            columns = [name for name in schema.names if _has_rows(schema.field(schema.names.index(name)).type)]
            batches = table.iter_batches(_ROWS_OF_A_TABLE, columns=columns, use_threads=False)
            while rows := _next_rows(batches):
                for row, size in rows:
                    number += 1
                    yield _of_a_table(Source(file.name, number, "row"), row, size)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        last = Source(file.name, max(number, 1), "row")
        damaged = f"the Parquet file is truncated or corrupt after {last}"
        raise BrokenFileError(last, damaged, f"{damaged}: {error}") from error
    except OutOfBoundsError as error:
        last = Source(file.name, max(number, 1), "row")
        raise BrokenFileError(last, f"reading {_ROWS_OF_A_TABLE} rows after {last} {error}") from error


def _next_rows(batches: "Iterator[pa.RecordBatch]") -> list[tuple[dict[str, object] | str, int]]:
    """Return the next rows of a table, each with its share of the bytes. A string in place of a row is its error."""
    with _ROOM_OF_A_TABLE:
        while (batch := next(batches, None)) is not None:
            if batch.num_rows:
                size = batch.nbytes // batch.num_rows
                try:
                    return [(row, size) for row in batch.to_pylist()]
                except _UNREADABLE:
                    return [(_row_of(batch, number), size) for number in range(batch.num_rows)]
    return []


def _row_of(batch: "pa.RecordBatch", number: int) -> dict[str, object] | str:
    try:
        return cast("dict[str, object]", batch.slice(number, 1).to_pylist()[0])
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason}"
    except _UNREADABLE as error:
        return f"a value cannot be read: {error}"


def _has_rows(kind: "pa.DataType") -> bool:
    """Return whether a column can be part of a row. Columns of dates, decimals, floats and bytes are ignored."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (
        pa.types.is_temporal(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _of_a_table(source: Source, row: dict[str, object] | str, size: int) -> Record:
    if isinstance(row, str):
        return Record(source, None, row)
    # A union may hold anything.
    readable = {name: value for name, value in row.items() if value is None or isinstance(value, _OF_FORMATS)}
    try:
        return Record(source, cast("JsonObject", as_json(readable, Rule.NOT_JSON)), size=size)
    except RowError as error:
        return Record(source, None, error.problem.message)


def _first_character(name: str, stream: BinaryIO) -> bytes:
    """Skip a byte order mark, and return the first byte that is not white space.

    Raises:
        BrokenFileError: the file is not UTF-8 text, or its first object spans several lines.
    """
    peekable = cast("BufferedReader", stream)
    if peekable.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    # Only peek: in JSON Lines, leading empty lines count as lines.
    start = peekable.peek(_CHUNK_BYTES)
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if start.startswith(magic)), "")
    if not kind and b"\0" in start[:4]:
        kind = "text in UTF-16 or UTF-32, or binary data"
    here = Source(name, 1)
    if kind:
        raise BrokenFileError(here, f"expected JSON in UTF-8, plain or gzipped, or Parquet in {name}, found {kind}")
    first, end, _ = start.lstrip().partition(b"\n")
    if first.strip() == b"{" and end:
        message = (
            f"expected one complete JSON object per line, or one list, in {name}, found an object on several lines"
        )
        raise BrokenFileError(here, message)
    return first[:1]


def _lines(name: str, stream: BinaryIO) -> Iterator[Line]:
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_ROW + 1), b""), start=1):
        if len(line) > _LONGEST_ROW:
            here = Source(name, number)
            raise BrokenFileError(here, f"{here}: expected at most {_LONGEST_ROW >> 20} MiB, found more")
        if not line.isspace():
            yield Line(Source(name, number), line)


def _record(source: Source, line: bytes) -> Record:
    try:
        text = line.decode("utf-8").rstrip()
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return Record(source, None, f"not UTF-8 at byte {error.start + 1}: {error.reason}")
    except json.JSONDecodeError as error:
        return Record(source, None, f"not JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Record(source, None, f"not JSON: {_message_of(error)}")
    return _checked(source, value, may_hold_surrogates="\\u" in text)


def _elements(name: str, stream: BinaryIO) -> Iterator[Record]:
    """Yield the elements of a JSON list without loading the whole list."""
    reader = codecs.getreader("utf-8")(stream)
    buffer, at, number = "", 0, 0

    def fill() -> bool:
        nonlocal buffer, at
        chunk = reader.read(_CHUNK_BYTES)
        buffer, at = buffer[at:] + chunk, 0
        return bool(chunk)

    def skip_space() -> str:
        nonlocal at
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            if at < len(buffer) or not fill():
                return buffer[at : at + 1]

    def fail(problem: str, found: str = "") -> NoReturn:
        here = Source(name, max(number, 1), "element")
        ends = "; the rest of the file cannot be read"
        raise BrokenFileError(here, f"{here}: {problem}{ends}", f"{here}: {problem}{found}{ends}")

    try:
        skip_space()
        at += 1
        while skip_space() != "]":
            number += 1
            while True:
                try:
                    value, end = _DECODER.raw_decode(buffer, at)
                    break
                except json.JSONDecodeError as error:
                    cut_off = error.msg.startswith("Unterminated") or error.pos >= len(buffer) - _LONGEST_LITERAL
                    if len(buffer) - at > _LONGEST_ROW:
                        fail(f"expected at most {_LONGEST_ROW >> 20} MiB, found more")
                    if not (cut_off and fill()):
                        fail(f"not JSON: {error.msg}")
            written, at = buffer[at:end], end
            record = _checked(Source(name, number, "element"), value, may_hold_surrogates="\\u" in written)
            yield replace(record, size=len(written))
            following = skip_space()
            if following == ",":
                at += 1
                if skip_space() == "]":
                    fail("expected an element after the last comma, found ]")
            elif following != "]":
                fail("expected , or ] after it", f", found {following or 'the end of the file'!r}")
        at += 1
        if rest := skip_space():
            fail("expected nothing after the list", f", found {rest!r}")
    except UnicodeDecodeError as error:
        fail(f"not UTF-8: {error.reason}")
    except (ValueError, RecursionError) as error:
        fail("not JSON", f": {_message_of(error)}")


def _checked(source: Source, value: object, *, may_hold_surrogates: bool) -> Record:
    if not isinstance(value, dict):
        return Record(source, None, f"expected a JSON object, found {_kind(value)}")
    try:
        if may_hold_surrogates and holds_surrogates(value):
            return Record(source, None, f"not JSON: {HALF_PAIR}")
    except RecursionError as error:
        return Record(source, None, f"not JSON: {_message_of(error)}")
    return Record(source, value)


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _message_of(error: ValueError | RecursionError) -> str:
    """Return Python's message, reworded where it is about Python and not about the file."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "integer string conversion" in str(error) else str(error)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=_finite)
