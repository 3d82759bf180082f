"""The operator process: connect, wait for leadership, watch and reconcile, shut down."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web
from tunemill_api import traces
from tunemill_api.constants import LABEL_LEADER

from tunemill_operator import handlers
from tunemill_operator.kube.access import Access, open_access
from tunemill_operator.kube.client import KubeClient
from tunemill_operator.kube.errors import KubeError
from tunemill_operator.platform import platform_of, trusting
from tunemill_operator.progress.auth import ReportAuthenticator
from tunemill_operator.progress.board import Board
from tunemill_operator.progress.certificate import Certificate, load_or_create
from tunemill_operator.progress.server import application as progress_application
from tunemill_operator.progress.turns import Pace
from tunemill_operator.runtime import collector
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.elector import Election, Elector
from tunemill_operator.runtime.listener import listening
from tunemill_operator.runtime.profile_status import ProfileStatuses
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.reconciler import Reconciler
from tunemill_operator.runtime.reconciliation import Request
from tunemill_operator.runtime.recorder import Recorder
from tunemill_operator.runtime.resync import KindsChangedError, Resync
from tunemill_operator.runtime.warnings import Warnings
from tunemill_operator.runtime.workers import WorkObserver, work
from tunemill_operator.settings import Settings, SettingsError
from tunemill_operator.telemetry import health
from tunemill_operator.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

FILES_SECONDS = 10.0
"""Interval in seconds between checks of the certificate files for a renewal."""
STALE_RESYNCS = 4
"""Number of resync periods without a comparison of the caches after which the process is unhealthy."""


class Observer(WorkObserver, Protocol):
    """Observes reconciles and requests."""

    def requested(self, request: Request) -> None:
        """A request to the API server ended."""


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until leadership is lost. Return the exit status.

    Raises:
        AccessError: there is no access to an API server.
        SettingsError: a certificate or an OpenTelemetry variable is invalid, or a port is in use.
    """
    access = await open_access(settings.kubeconfig, settings.context)
    metrics = Metrics(version("tunemill-operator"), access.host)
    with trusting(settings.ca_bundle), _tracing() as tracing:
        return await _run(settings, access, metrics, [metrics, *tracing])


async def _run(settings: Settings, access: Access, metrics: Metrics, observers: Sequence[Observer]) -> int:
    def requested(method: str, path: str, code: int, seconds: float) -> None:
        request = Request(method, path, code, time.time() - seconds, seconds)
        for observer in observers:
            observer.requested(request)

    client = KubeClient(access.client(), requested)
    process = _Process(settings, client, metrics, observers)
    process.take_signals()
    try:
        async with process.telemetry():
            leading = asyncio.create_task(process.lead_when_elected(access))
            stopped = asyncio.create_task(process.stopping.wait())
            await asyncio.wait({leading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if leading.done():
                leading.result()
                return 1  # leadership was lost: a new process starts without stale state
            leading.cancel()
            await asyncio.wait({leading})
            log.info("stopped")
            return 0
    finally:
        await client.close()


class _Process:
    """An operator process. It waits for leadership, leads once, and ends."""

    def __init__(
        self, settings: Settings, client: KubeClient, metrics: Metrics, observers: Sequence[WorkObserver]
    ) -> None:
        self._settings = settings
        self._witnesses = observers
        self._client = client
        self._metrics = metrics
        self._certificate = _certificate(settings)
        self._platform = platform_of(settings, self._certificate)
        self._resync: Resync | None = None
        self._primed = False
        self.stopping = asyncio.Event()
        """Set when the process should stop."""

    def take_signals(self) -> None:
        """Make SIGTERM and SIGINT set `stopping`."""
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self.stopping.set)

    @contextlib.asynccontextmanager
    async def telemetry(self) -> AsyncIterator[None]:
        """Serve metrics and health checks."""
        app = health.application(self._metrics.registry, self._unhealthy, self._not_ready)
        async with _served(app, self._settings.http_host, self._settings.http_port) as port:
            log.info("metrics and health on port %d", port)
            yield

    async def lead_when_elected(self, access: Access) -> None:
        """Lead as soon as no other process does. Return when leadership is lost."""
        settings = self._settings
        await self._label(None)  # a previous leader process may have left it
        if settings.no_leader_election:
            await self._lead(access, self._client)
            return
        election = Election(settings.lease_name, settings.lease_namespace, settings.candidate)
        elector = Elector(self._client, election, lambda leads: self._metrics.leading(settings.lease_name, leads))
        await elector.run(lambda: self._lead(access, self._client.fenced(elector.holds)))

    async def _lead(self, access: Access, client: KubeClient) -> None:
        settings, metrics = self._settings, self._metrics
        cache = Cache(metrics.unreadable)
        queue = WorkQueue(metrics.queue, cache.unserved)
        board = Board(queue, Pace(settings.progress_write_seconds, settings.progress_writes_per_second))
        recorder = Recorder(client, settings.candidate)
        warnings = Warnings(client, queue.add)
        reconciler = Reconciler(client, cache, queue, board, recorder, warnings, metrics, lambda: self._platform)
        self._resync = resync = Resync(
            client, cache, queue, metrics, settings.namespaces, profiles=not settings.no_profiles
        )
        metrics.queue.observe(queue.__len__, queue.processing_seconds, settings.workers)
        metrics.observe_phases(lambda: (stored.phase for stored in cache.finetunes))
        await resync.fill_caches()
        collector.settle()
        self._primed = True
        log.info("serving %s", ", ".join(settings.namespaces) or "all namespaces")
        sinks = handlers.WatchSinks(cache, queue, metrics.seen, resync.listed)
        try:
            async with self._progress(client, cache, board), asyncio.TaskGroup() as group:
                group.create_task(
                    handlers.watch(
                        sinks,
                        settings.namespaces,
                        access.credentials,
                        self.take_signals,
                        profiles=resync.profiles_served,
                    )
                )
                group.create_task(work(queue, reconciler.reconcile, settings.workers, self._witnesses))
                group.create_task(resync.run(settings.resync_seconds))
                group.create_task(warnings.run())
                if resync.profiles_served:
                    group.create_task(ProfileStatuses(client, cache.profiles).run())
                group.create_task(self._renew())
        except* (handlers.WatchError, KindsChangedError) as ended:
            for error in ended.exceptions:
                log.error("%s; restarting the process", error)

    @contextlib.asynccontextmanager
    async def _progress(self, client: KubeClient, cache: Cache, board: Board) -> AsyncIterator[None]:
        """Serve the progress endpoint, if it is enabled, and set the label that its Service selects."""
        settings = self._settings
        if not settings.progress_url:
            yield
            return
        self._certificate = self._certificate or await self._stored_certificate(client)
        app = progress_application(ReportAuthenticator(client, cache.pods), board, self._metrics.progress_answered)
        everywhere, port = "0.0.0.0", settings.progress_port  # noqa: S104 - pods reach it
        async with _served(app, everywhere, port, self._certificate.context):
            await self._label("true")
            self._platform = replace(platform_of(settings, self._certificate), listening_since=datetime.now(UTC))
            try:
                yield
            finally:
                await self._label(None)

    async def _stored_certificate(self, client: KubeClient) -> Certificate:
        name, namespace = self._settings.progress_secret, self._settings.lease_namespace
        host = urlsplit(self._settings.progress_url).hostname or ""
        try:
            return await load_or_create(client, namespace, name, host)
        except (KubeError, OSError) as error:
            raise SettingsError(
                f"--progress-secret: the certificate in Secret {namespace}/{name} cannot be used: {error}; "
                "apply the empty Secret of the chart, in which the operator stores a certificate"
            ) from error

    async def _renew(self) -> None:
        """Read the certificate files again when they change, until cancelled."""
        while True:
            await asyncio.sleep(FILES_SECONDS)
            try:
                if self._certificate and not self._settings.progress_secret:
                    self._certificate.refresh()
                fresh = platform_of(self._settings, self._certificate)
                self._platform = replace(fresh, listening_since=self._platform.listening_since)
            except (OSError, SettingsError) as error:  # half-written: the old ones stay until the next check
                log.warning("the renewed certificates could not be read: %s", error)

    async def _label(self, value: str | None) -> None:
        settings = self._settings
        if not (settings.progress_url and settings.pod_name and settings.pod_namespace):
            return
        try:
            await self._client.label_pod(settings.pod_namespace, settings.pod_name, {LABEL_LEADER: value})
        except KubeError as error:
            log.warning("the label %s of the pod could not be set, progress may not arrive: %s", LABEL_LEADER, error)

    def _unhealthy(self) -> str:
        if self._resync is None or not self._primed:
            return ""
        age = time.monotonic() - self._resync.last
        limit = STALE_RESYNCS * self._settings.resync_seconds
        return f"the last comparison of the caches was {age:.0f} s ago" if age > limit else ""

    def _not_ready(self) -> str:
        leads = self._resync is not None
        return "the caches are not filled yet" if leads and not self._primed else ""


@contextlib.contextmanager
def _tracing() -> Iterator[Sequence[Observer]]:
    """Yield the observer that creates traces, if tracing is enabled."""
    if not traces.endpoints(os.environ):
        yield []
        return
    from tunemill_operator.telemetry.tracing import Tracing

    try:
        tracing = Tracing()
    except ValueError as error:
        raise SettingsError(f"an OTEL_… variable is invalid: {error}") from error
    try:
        yield [tracing]
    finally:
        tracing.close()


@contextlib.asynccontextmanager
async def _served(
    app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve the application while the context lasts. Yield the port."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            bound = await stack.enter_async_context(listening(app, host, port, context))
        except OSError as error:
            raise SettingsError(f"cannot listen on port {port}, choose another: {error.strerror}") from error
        yield bound


def _certificate(settings: Settings) -> Certificate | None:
    if not settings.progress_url or settings.progress_secret:
        return None
    try:
        return Certificate(Path(settings.progress_cert), Path(settings.progress_key), Path(settings.progress_ca))
    except OSError as error:
        raise SettingsError(f"--progress-cert and --progress-key cannot be used together: {error}") from error
