"""What a stage says: to its log, which many may read, and in its report, which becomes a part of the status.

The values of the pod's Secrets stand in neither, nor what URLs may hold of secrets: a library's error message often
quotes the address that it called, signature included. Control characters are shown and not obeyed.
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
"""Characters. Shorter values are words that stand in every text, and no secrets of any service."""
_OF_THE_ENVIRONMENT = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Where a run on one machine may have its credentials."""
_USER = re.compile(r"(?<=://)[^\s/@'\"<>]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"<>]+\?)[^\s'\"<>]+")


class Redaction:
    """Takes secrets out of texts.

    Args:
        credentials: of this pod.
    """

    def __init__(self, credentials: Credentials) -> None:
        values = [*credentials.values(), *(os.environ.get(name, "") for name in _OF_THE_ENVIRONMENT)]
        # In parts, as a value that no service takes, with a line feed in it, is quoted in an escaped form.
        parts = [part for value in values for part in value.split() if len(part) >= _SHORTEST_SECRET]
        found = {form for part in parts for form in (part, quote(part, safe=""))}
        # The longest first: one may be the beginning of another.
        known = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
        self._values = re.compile(known) if known else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._values is not None:
            text = self._values.sub(_HIDDEN, text)
        return _QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(f"{_HIDDEN}@", text)) if "://" in text else text

    def of_failure(self, failure: StageFailure) -> StageFailure:
        """Return a failure as it may be shown."""
        texts = {name: plain(self(getattr(failure, name))) for name in ("message", "remedy")}
        return failure.model_copy(update=texts)


class LineFormatter(logging.Formatter):
    """A message is one line; no line of a traceback can be taken for one."""

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


def log_to_stdout() -> None:
    """Have what this process logs printed, one line a message."""
    handler = _Handler(sys.stdout)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("botocore", "boto3", "s3transfer", "urllib3", "httpx", "httpx2", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # They are for the authors of the libraries, not for users.
    warnings.simplefilter("ignore", FutureWarning)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Have everything that the block prints cleaned, whoever prints it: libraries do, too, and so does a traceback."""
    redaction = Redaction(Credentials.from_environment())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console may lack a character: it shows an escape instead.
            stream.reconfigure(errors="backslashreplace")
    out, err = (cast("TextIO", _Guarded(stream, redaction)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            flush()


def flush() -> bool:
    """Write out what was printed, and return whether somebody still reads it: `head` stops when it has seen enough."""
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
    """Print a text with a line feed, and return whether somebody still reads; see `flush`."""
    return show_styled([(text, ""), ("\n", "")])


def show_styled(parts: Iterable[tuple[str, str]]) -> bool:
    """Print texts, each with a style, and return whether somebody still reads; see `flush`.

    Args:
        parts: text and style. A style is the number of a colour as terminals know it (ECMA-48), such as 32 for green;
            empty for none. Control characters in the text are shown and not obeyed.
    """
    try:
        for text, style in parts:
            if style and isinstance(sys.stdout, _Guarded):
                sys.stdout.write_styled(text, style)
            else:
                sys.stdout.write(text)
    except BrokenPipeError:
        pass  # the flush meets it again
    return flush()


def has_colours() -> bool:
    """Return whether the output is a terminal that may show colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Guarded:
    """A stream that is written to clean."""

    def __init__(self, stream: TextIO, redaction: Redaction) -> None:
        self._stream = stream
        self._redaction = redaction

    def write(self, text: str) -> int:
        """Write the text without secrets and control characters."""
        self._stream.write(plain(self._redaction(text), keep="\n\t"))
        return len(text)

    def write_styled(self, text: str, style: str) -> None:
        """Write the text in a style that ends with it."""
        self._stream.write(f"\x1b[{style}m")
        self.write(text)
        self._stream.write("\x1b[0m")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
