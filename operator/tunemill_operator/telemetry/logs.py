"""Log lines as text or JSON, each with the object that it is about."""

import json
import logging
import sys
from datetime import UTC, datetime

from tunemill_api.plain_text import plain

from tunemill_operator.runtime.reconciliation import current


def configure(form: str, level: str) -> None:
    """Write all log lines to standard error.

    Args:
        form: text or json.
        level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    handler.addFilter(_without_tracebacks_of_kopf)
    handler.addFilter(_is_no_late_cancellation)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf logs every event, and aiohttp every scrape.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _without_tracebacks_of_kopf(record: logging.LogRecord) -> bool:
    """Remove kopf's tracebacks of lost connections. The message is sufficient."""
    if record.name.startswith("kopf"):
        record.exc_info = None
    return True


def _is_no_late_cancellation(record: logging.LogRecord) -> bool:
    """Drop an error of kopf's own callback when a watch is stopped before the API server has answered.

    The callback looks up the task in which it runs, but there is none. The watch ends anyway.
    """
    return not (record.name == "asyncio" and "request_cancel_callback" in record.getMessage())


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        work = current.get()
        about = f" {'/'.join(work.key)}:" if work else ""
        text = f"{_time(record)} {record.levelname.lower():<7}{about} {plain(record.getMessage())}"
        # Indented, so that no line of a traceback looks like a log line.
        return "\n  ".join([text, *self.formatException(record.exc_info).splitlines()]) if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": plain(record.getMessage()),
        }
        if work := current.get():
            line |= {"finetune": "/".join(work.key), "run": work.run, "stage": work.stage, "reconcileID": work.id}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
