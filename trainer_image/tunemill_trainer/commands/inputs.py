"""Files that users name on the command line: regular files, pipes such as <(…), and - for standard input."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunemill_api.failures import Reason

from tunemill_trainer.data.files import STANDARD_INPUT, file_of_user
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bars import is_terminal


def refuse_repeated_standard_input(paths: Mapping[str, Sequence[Path | None]]) -> None:
    """Refuse a command line that names standard input twice.

    Args:
        paths: the files of each option.

    Raises:
        StageError: InvalidSpec, naming the options.
    """
    named = [option for option, files in paths.items() for path in files if path == STANDARD_INPUT]
    if len(named) > 1:
        raise StageError(
            Reason.INVALID_SPEC,
            f"- stands for standard input, which can be read once, and is given {len(named)} times: {', '.join(named)}",
            "Write one of the inputs to a file.",
        )


def text_of(path: Path, scratch: Path) -> str:
    """Return a text file that a user named.

    Raises:
        OSError: it cannot be read, or is not UTF-8.
    """
    file = file_of_user(path, scratch)
    try:
        return file.path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OSError(0, f"not UTF-8: {error.reason}", file.name) from error


def row_count(paths: Sequence[Path]) -> int | None:
    """Return how many rows files hold, for a progress bar: None where only reading them can tell, or none is drawn."""
    if not is_terminal():
        return None
    counts = [_rows_in(path) for path in paths]
    return sum(counts) if None not in counts else None  # type: ignore[arg-type] # there is no None


def _rows_in(path: Path) -> int | None:
    """Return the lines of a file, or the rows of a table; None for pipes, lists and gzip."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == b"PAR1":
                rows: int = pq.read_metadata(path).num_rows
                return rows
            if start[:2] == b"\x1f\x8b" or start.lstrip()[:1] == b"[":
                return None
            file.seek(0)
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except (OSError, pa.ArrowException):
        return None
