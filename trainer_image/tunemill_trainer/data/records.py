"""Reads files as a stream of JSON objects with their places: JSON lines or one JSON list, plain or gzipped, or parquet.

The contents decide, not the name. Nothing holds more than a row and a buffer: a file may be larger than memory.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq
from tunemill_api.failures import Reason

from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import JsonObject, Source
from tunemill_trainer.data.values import as_json, refuse_constant
from tunemill_trainer.errors import StageError

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_ROWS_OF_A_TABLE = 256
"""Read at once; rows may be large."""
_CHUNK_BYTES = 1 << 20
_LONGEST_LITERAL = 16
"""A JSON error so close to the end of the buffer may only mean that the buffer ends within a literal or an escape."""


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, or what stands in its place: then `value` is None and `error` says what."""

    source: Source
    value: JsonObject | None
    error: str = ""


@dataclass(frozen=True)
class Line:
    """A line that was not looked at yet: parsing it may be left to another process."""

    source: Source
    content: bytes

    def parsed(self) -> Record:
        """Return the object that the line holds, or what is wrong with it."""
        return _record(self.source, self.content)


class BrokenFileError(StageError):
    """The rest of a file cannot be read at all.

    Args:
        last: the last place that was read.
        message: as of StageError.
    """

    def __init__(self, last: Source, message: str) -> None:
        super().__init__(Reason.DATASET_MALFORMED, message)
        self.last = last


def records(file: DataFile) -> Iterator[Record]:
    """Yield the objects of a file; empty lines are passed over.

    Raises:
        BrokenFileError: DatasetMalformed.
    """
    return (item if isinstance(item, Record) else item.parsed() for item in unparsed(file))


def unparsed(file: DataFile) -> Iterator[Line | Record]:
    """Yield the lines of a file as they are; what does not come in lines is parsed.

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
            start = _first_character(stream)
            for item in _elements(file.name, stream) if start == b"[" else _lines(file.name, stream):
                last, found = item.source, True
                yield item
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        where = f"after {last}" if found else f"at the start of {file.name}"
        raise BrokenFileError(last, f"expected a whole gzip file, found damage {where}: {error}") from error


def _open(file: DataFile) -> BinaryIO:
    with file.path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
    return cast("BinaryIO", gzip.open(file.path)) if zipped else file.path.open("rb")


def _rows_of_a_table(file: DataFile) -> Iterator[Record]:
    """Yield the rows of a parquet file, with the nulls that a table fills in: the reader of rows drops them."""
    number = 0
    try:
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(_ROWS_OF_A_TABLE):
                for row in batch.to_pylist():
                    number += 1
                    yield _of_a_table(Source(file.name, number, "row"), row)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        last = Source(file.name, max(number, 1), "row")
        raise BrokenFileError(last, f"expected a whole parquet file, found damage after {last}: {error}") from error


def _of_a_table(source: Source, row: JsonObject) -> Record:
    try:
        return Record(source, cast("JsonObject", as_json(row, Rule.NOT_JSON)))
    except RowError as error:
        return Record(source, None, error.problem.message)


def _first_character(stream: BinaryIO) -> bytes:
    """Move to the first byte that is neither a byte order mark nor white space, and return it."""
    peekable = cast("BufferedReader", stream)
    if peekable.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    # Lines are counted from the start, so only a list's leading white space may be passed over.
    return peekable.peek(_CHUNK_BYTES).lstrip()[:1]


def _lines(name: str, stream: BinaryIO) -> Iterator[Line]:
    for number, line in enumerate(stream, start=1):
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
        return Record(source, None, f"not JSON: {error}")
    return _checked(source, value, may_hold_surrogates="\\u" in text)


def _elements(name: str, stream: BinaryIO) -> Iterator[Record]:
    """Yield the elements of one JSON list without reading it whole."""
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

    def fail(problem: str) -> NoReturn:
        here = Source(name, max(number, 1), "element")
        raise BrokenFileError(here, f"{here}: {problem}; the rest of the list cannot be read")

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
                    if not (cut_off and fill()):
                        fail(f"not JSON: {error.msg}")
            surrogates = "\\u" in buffer[at:end]
            at = end
            yield _checked(Source(name, number, "element"), value, may_hold_surrogates=surrogates)
            following = skip_space()
            if following == ",":
                at += 1
            elif following != "]":
                fail(f"expected , or ] after it, found {following or 'the end of the file'!r}")
    except UnicodeDecodeError as error:
        fail(f"not UTF-8: {error.reason}")
    except (ValueError, RecursionError) as error:
        fail(f"not JSON: {error}")


def _checked(source: Source, value: object, *, may_hold_surrogates: bool) -> Record:
    if not isinstance(value, dict):
        return Record(source, None, f"expected a JSON object, found {_kind(value)}")
    if may_hold_surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # json.loads takes half a surrogate pair, which no tokenizer and no UTF-8 file can hold.
            return Record(source, None, r"not JSON: half of a surrogate pair (a lone \ud800 to \udfff)")
    return Record(source, value)


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
