"""Progress reports of the running stage, to the operator and to the log.

Uses Kubeflow's status protocol (KEP-2779) like Transformers' KubeflowCallback: a POST of `{"trainerStatus": {…}}` with
a token for this purpose only. In addition, the body has the `stage`, because train and evaluate share a pod. A report
that cannot be delivered is ignored.
"""

import json
import logging
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Self, cast
from urllib.error import URLError

from tunemill_api.constants import ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL

from tunemill_trainer.process.bars import ProgressBar

INTERVAL_SECONDS = 2.0
"""Minimum time between two reports. The last report is always sent."""
_TIMEOUT_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """The receiver of progress reports.

    Attributes:
        url: the operator's endpoint for this object; https.
        token: the file with the bearer token. It is read for every report, because the kubelet rotates it.
        ca: the file with the CA certificate of the endpoint.
    """

    url: str
    token: Path
    ca: Path

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the receiver that the operator configured for this pod; None outside a cluster."""
        values = [os.environ.get(name, "") for name in (ENV_PROGRESS_URL, ENV_PROGRESS_TOKEN, ENV_PROGRESS_CA)]
        if not all(values) or not values[0].startswith("https://"):
            return None
        return cls(values[0], Path(values[1]), Path(values[2]))


def post(destination: Destination, body: Mapping[str, object]) -> bool:
    """Send a body to the operator; return whether it was delivered."""
    try:
        request = urllib.request.Request(  # noqa: S310 - Destination allows https only
            destination.url,
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {destination.token.read_text(encoding='utf-8').strip()}",
                "Content-Type": "application/json",
            },
        )
        # Without a proxy: the operator is inside the cluster, and an egress proxy must not see the token.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(destination.ca))),
        )
        opener.open(request, timeout=_TIMEOUT_SECONDS).close()
    except (URLError, OSError, ValueError, HTTPException) as error:
        _log.debug("cannot deliver a progress report: %s", error)
        return False
    return True


class Progress:
    """Sends and logs progress reports of a stage. Cheap enough for every training step."""

    def __init__(
        self,
        stage: str,
        destination: Destination | None = None,
        interval_seconds: float = INTERVAL_SECONDS,
        bar: ProgressBar | None = None,
    ) -> None:
        self._bar = bar
        self._stage = stage
        self._destination = destination
        self._interval = interval_seconds
        self._logged_at = float("-inf")
        self._changed = threading.Condition()
        self._waiting: dict[str, object] | None = None
        self._closed = False
        # In a separate thread, so that an endpoint that does not respond does not delay training.
        self._sender = threading.Thread(target=self._send_all, name="progress", daemon=True)
        if destination is not None:
            self._sender.start()

    def report(
        self, percent: float, eta_seconds: float | None = None, metrics: Mapping[str, object] | None = None
    ) -> None:
        """Report the progress. Of reports in quick succession, only the latest is sent.

        Args:
            percent: 0 to 100.
            eta_seconds: estimated remaining seconds; None if unknown.
            metrics: for example loss, learning_rate, current_step, total_steps.
        """
        status: dict[str, object] = {
            "progressPercentage": max(0, min(100, int(percent))),
            "lastUpdatedTime": datetime.now(UTC).isoformat(),
        }
        if eta_seconds is not None:
            status["estimatedRemainingSeconds"] = max(0, int(eta_seconds))
        if metrics:
            status["metrics"] = [{"name": name, "value": str(value)} for name, value in metrics.items()]
        self._log_line(status)
        with self._changed:
            self._waiting = status
            self._changed.notify()

    def close(self) -> None:
        """Send the last report and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._sender.is_alive():
            self._sender.join(timeout=2 * _TIMEOUT_SECONDS)
        if self._bar is not None:
            self._bar.close()

    def _log_line(self, status: Mapping[str, object]) -> None:
        now = time.monotonic()
        if self._bar is None and now - self._logged_at < self._interval and status["progressPercentage"] != 100:
            return
        self._logged_at = now
        metrics = status.get("metrics")
        figures = " ".join(f"{item['name']}={item['value']}" for item in metrics) if isinstance(metrics, list) else ""
        if self._bar is not None:
            self._bar.advance_to(cast("int", status["progressPercentage"]), figures)
            return
        remaining = f", {status['estimatedRemainingSeconds']} s left" if "estimatedRemainingSeconds" in status else ""
        _log.info("%s %s %%%s %s", self._stage, status["progressPercentage"], remaining, figures)

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                status, self._waiting = self._waiting, None
            if status is None:
                return
            self._send(status)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=self._interval)

    def _send(self, status: Mapping[str, object]) -> None:
        if self._destination is not None:
            post(self._destination, {"stage": self._stage, "trainerStatus": status})
