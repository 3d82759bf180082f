"""A store of row fingerprints on disk, to find duplicates. Memory does not grow with the data."""

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

from tunemill_trainer.data.rows import Source

_CACHE_KIB = 16 << 10


class FingerprintStore:
    """Fingerprints, each with the place where it first occurred. A context manager; the file is temporary.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> Self:
        for statement in (
            # The file is not used after a crash.
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            "CREATE TABLE seen (mark BLOB PRIMARY KEY, file TEXT, line INTEGER, unit TEXT) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def before(self, mark: bytes, source: Source) -> Source | None:
        """Return where a fingerprint occurred before, or store its place and return None."""
        new = self._database.execute(
            "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)", (mark, source.file, source.line, source.unit)
        )
        return None if new.rowcount else self.find(mark)

    def find(self, mark: bytes) -> Source | None:
        """Return where a fingerprint first occurred, or None."""
        found = self._database.execute("SELECT file, line, unit FROM seen WHERE mark = ?", (mark,)).fetchone()
        return Source(*found) if found else None
