"""Log lines as text for people or as JSON for machines, each with the object that it is about."""

import json
import logging
import sys
from datetime import UTC, datetime

from tunemill_api.plain_text import plain

from tunemill_operator.runtime.reconciliation import current


def configure(form: str, level: str) -> None:
    """Send all log lines to standard error.

    Args:
        form: text or json.
        level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    handler.addFilter(_without_tracebacks_of_kopf)
    handler.addFilter(_is_no_late_cancellation)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf tells of every event that it hands over, and aiohttp of every scrape.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _without_tracebacks_of_kopf(record: logging.LogRecord) -> bool:
    """Leave out the way through kopf's code by which a lost connection came: the message says it all."""
    if record.name.startswith("kopf"):
        record.exc_info = None
    return True


def _is_no_late_cancellation(record: logging.LogRecord) -> bool:
    """Leave out what kopf's own callback raises when a watch is stopped before the API server has answered it.

    It looks for the task that it runs in, and runs in none. The watch ends all the same.
    """
    return not (record.name == "asyncio" and "request_cancel_callback" in record.getMessage())


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        work = current.get()
        about = f" {'/'.join(work.key)}:" if work else ""
        text = f"{_time(record)} {record.levelname.lower():<7}{about} {plain(record.getMessage())}"
        # Indented, no line of a traceback can be taken for one of the log.
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
