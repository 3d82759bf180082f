"""Logs to an MLflow tracking server."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunemill_api.tracking import MLflow

from tunemill_trainer.tracking.run import TrackedRun
from tunemill_trainer.tracking.trackers import End, Metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "tunemill.run"
"""The tag with the identity of the run."""
_METRICS, _PARAMETERS = 1000, 100
"""The most metrics and parameters of a request."""
_SERVED = ("mlflow-artifacts", "http", "https")
"""Schemes of artifact locations to which the server itself writes. For others the client would need the credentials of
the storage, or would write to the disk of the pod."""
_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""By default, a request to a server that does not respond is retried for minutes."""


class MlflowTracker:
    """A client of a tracking server.

    Args:
        settings: spec.tracking.mlflow.
        run: the run.
        credentials: variables with the credentials; empty without credentials.
    """

    name = "MLflow"

    def __init__(self, settings: MLflow, run: TrackedRun, credentials: Mapping[str, str]) -> None:
        self._settings = settings
        self._run = run
        self._credentials = credentials
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._artifacts = ""

    def open(self) -> None:
        """Find the run by its tag, or create it in the experiment."""
        for name, value in _REQUESTS.items():
            os.environ.setdefault(name, value)
        os.environ.update(self._credentials)
        from mlflow import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._settings.uri.rstrip("/"))
        experiment = self._experiment(client)
        found = client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{self._run.digest}'", max_results=1)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {_TAG: self._run.digest, **self._run.tags}
            run = client.create_run(experiment, tags=tags, run_name=self._run.name)
        self._run_id, self._artifacts = run.info.run_id, run.info.artifact_uri
        if not run.data.params:
            self._log_settings(client)

    def log(self, metrics: Sequence[Metrics]) -> None:
        """Log metrics."""
        from mlflow.entities import Metric

        found = [
            Metric(name, value, int(1000 * each.time), each.step)
            for each in metrics
            for name, value in each.values.items()
        ]
        for at in range(0, len(found), _METRICS):
            self._opened.log_batch(self._run_id, metrics=found[at : at + _METRICS])

    def add_file(self, path: Path) -> None:
        """Upload a file, if the server stores the files of its runs.

        Raises:
            ValueError: it does not.
        """
        scheme = urlsplit(self._artifacts).scheme
        if scheme not in _SERVED:
            raise ValueError(
                f"the server leaves artifacts to its clients (scheme {scheme or 'file'}): start it with "
                "--serve-artifacts and use a new experiment"
            )
        self._opened.log_artifact(self._run_id, str(path))

    def close(self, end: End) -> None:
        """Set the state of the run, unless the next stage continues it."""
        if end is not End.CONTINUED:
            self._opened.set_terminated(self._run_id, end.name)

    @property
    def _opened(self) -> "MlflowClient":
        if self._client is None:
            raise RuntimeError("the run was not opened")
        return self._client

    def _experiment(self, client: "MlflowClient") -> str:
        """Return the id of the experiment, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        name = self._settings.experiment or self._run.namespace
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Another run may have created it in the meantime.
            if (found := client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _log_settings(self, client: "MlflowClient") -> None:
        from mlflow.entities import Param

        settings = [Param(name, value) for name, value in self._run.settings.items()]
        for at in range(0, len(settings), _PARAMETERS):
            client.log_batch(self._run_id, params=settings[at : at + _PARAMETERS])
