"""The output of a stage: log, console, and the texts of its report, without secrets and control characters.

Logs and status are readable by many users. So the values of the pod's Secrets are redacted, and credentials in URLs: an
error message of a library often has the URL of the request, including its signature. Control characters are escaped.
"""

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TextIO, cast
from urllib.parse import quote

from tunemill_api.plain_text import plain
from tunemill_api.stage_report import StageFailure
from typing_extensions import override

from tunemill_trainer.process import bars
from tunemill_trainer.storage.credentials import Credentials

_HIDDEN = "***"
_SHORTEST_SECRET = 8
"""Minimum length in characters. Shorter values occur in ordinary texts, and no service has such short secrets."""
_SECRET_VARIABLES = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Environment variables with credentials in a local run."""
_USER = re.compile(r"(?<=://)[^\s/@'\"<>]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"<>]+\?)[^\s'\"<>]+")


class Redaction:
    """Removes secrets from texts.

    Args:
        credentials: the credentials whose values are removed.
    """

    def __init__(self, credentials: Credentials) -> None:
        values = [*credentials.values(), *(os.environ.get(name, "") for name in _SECRET_VARIABLES)]
        # Split at whitespace, because messages quote a value with a line feed in escaped form.
        parts = [part for value in values for part in value.split() if len(part) >= _SHORTEST_SECRET]
        found = {form for part in parts for form in (part, quote(part, safe=""))}
        # Longest first, because one value may be a prefix of another.
        known = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        self._values = re.compile(known) if known else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._values is not None:
            text = self._values.sub(_HIDDEN, text)
        return _QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(f"{_HIDDEN}@", text)) if "://" in text else text

    def of_failure(self, failure: StageFailure) -> StageFailure:
        """Return a failure with redacted texts."""
        texts = {name: plain(self(getattr(failure, name))) for name in ("message", "remedy")}
        return failure.model_copy(update=texts)


class LineFormatter(logging.Formatter):
    """Formats each message as one line, and indents tracebacks, so that untrusted text cannot forge log lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line."""
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the traceback, indented."""
        return "  " + super().formatException(ei).replace("\n", "\n  ")  # type: ignore[arg-type] # logging's own type has no name


class _Handler(logging.StreamHandler[TextIO]):
    """Prints above the progress bars of a terminal."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with bars.printing():
            super().emit(record)


def log_to_stdout(rank: int = 0) -> None:
    """Log to stdout, one line per message.

    Args:
        rank: of this process among those that train together. All but the first log warnings and errors only.
    """
    handler = _Handler(sys.stdout)
    whose = f"rank {rank}: " if rank else ""
    handler.setFormatter(LineFormatter(f"%(asctime)s %(levelname)s {whose}%(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, handlers=[handler])
    for noisy in ("botocore", "boto3", "s3transfer", "urllib3", "httpx", "httpx2", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Addressed to developers of libraries, not to users.
    warnings.simplefilter("ignore", FutureWarning)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Redact everything that is printed inside the block, including output of libraries and tracebacks."""
    redaction = Redaction(Credentials.from_environment())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Escape characters that the console's encoding does not have.
            stream.reconfigure(errors="backslashreplace")
    out, err = (cast("TextIO", _Guarded(stream, redaction)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            flush()


def flush() -> bool:
    """Flush stdout; return False if its reader is gone, as with `| head`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return False
    return True


def discard_output() -> None:
    """Send what is still printed to /dev/null. Otherwise Python fails once more when it closes the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(text: str) -> bool:
    """Print a text and a line feed; return False if the reader is gone, see `flush`."""
    return show_styled([(text, ""), ("\n", "")])


def show_styled(parts: Iterable[tuple[str, str]]) -> bool:
    """Print texts with styles; return False if the reader is gone, see `flush`.

    Args:
        parts: text and style. A style is an ECMA-48 (ANSI) color code such as 32 for green; empty for none. Control
            characters in the text are escaped.
    """
    try:
        for text, style in parts:
            if style and isinstance(sys.stdout, _Guarded):
                sys.stdout.write_styled(text, style)
            else:
                sys.stdout.write(text)
    except BrokenPipeError:
        pass  # handled by `flush`
    return flush()


def has_colours() -> bool:
    """Return whether the output is a terminal with colors enabled (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Guarded:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO, redaction: Redaction) -> None:
        self._stream = stream
        self._redaction = redaction

    def write(self, text: str) -> int:
        """Write the text without secrets, with escaped control characters."""
        self._stream.write(plain(self._redaction(text), keep="\n\t"))
        return len(text)

    def write_styled(self, text: str, style: str) -> None:
        """Write the text in a style, and reset the style."""
        self._stream.write(f"\x1b[{style}m")
        self.write(text)
        self._stream.write("\x1b[0m")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
