"""The spans of reconciles: one trace per run, whichever operator reconciles."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from api.collector import Collector, a_collector
from tunemill_api.traces import SpanRef
from tunemill_operator.kube.errors import UnavailableError
from tunemill_operator.runtime.cache import Key
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.reconciliation import Request, current
from tunemill_operator.runtime.workers import work
from tunemill_operator.telemetry.metrics import Metrics
from tunemill_operator.telemetry.tracing import Tracing

RUN = SpanRef.of_run("uid-1", "run1")


@pytest.fixture(autouse=True)
def _restored_level() -> object:
    """Tracing silences OpenTelemetry's own loggers."""
    logger = logging.getLogger("opentelemetry")
    level = logger.level
    yield
    logger.setLevel(level)


async def reconciled_times(tracing: Tracing, reconcile: Callable[[Key], Awaitable[None]], times: int = 1) -> None:
    """Let a worker reconcile an object this many times."""
    queue = WorkQueue(Metrics("1", "host").queue)
    looks = 0
    done = asyncio.Event()

    class Last:
        def reconciled(self, result: str, seconds: float) -> None:
            nonlocal looks
            looks += 1
            done.set()

    worker = asyncio.ensure_future(work(queue, reconcile, 1, [tracing, Last()]))
    for _ in range(times):
        done.clear()
        queue.add(("team-a", "support"))
        await asyncio.wait_for(done.wait(), 10)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    tracing.close()


def record_reconcile(tracing: Tracing, *, begins: bool = False, code: int = 200) -> None:
    """Record what the reconciler and the client record during a reconcile."""
    reconciliation = current.get()
    assert reconciliation
    reconciliation.uid, reconciliation.run, reconciliation.phase, reconciliation.stage, reconciliation.begins_run = (
        "uid-1",
        "run1",
        "Training",
        "train",
        begins,
    )
    tracing.requested(Request("POST", "/apis/batch/v1/namespaces/team-a/jobs", code, time.time(), 0.01))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> object:
    """A collector set through the environment."""
    with a_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


async def test_a_reconcile_is_a_span_with_its_requests_as_children(collector: Collector) -> None:
    """It is part of its run's trace, with object, run, stage and phase."""
    tracing = Tracing()

    async def reconcile(key: Key) -> None:
        record_reconcile(tracing, code=409)

    await reconciled_times(tracing, reconcile)
    (span,), (request,) = collector.named("reconcile"), collector.named("POST")
    assert (span.trace, span.parent) == (f"{RUN.trace:032x}", f"{RUN.span:016x}")
    assert (request.trace, request.parent, request.failed) == (span.trace, span.id, True)
    assert request.attributes["http.response.status_code"] == "409"
    assert span.service == "tunemill-operator"
    assert span.attributes.items() >= {
        ("k8s.namespace.name", "team-a"),
        ("tunemill.finetune", "support"),
        ("tunemill.run.id", "run1"),
        ("tunemill.stage", "train"),
        ("tunemill.phase", "Training"),
        ("tunemill.result", "success"),
    }
    assert span.start <= request.start


async def test_a_run_starts_with_its_root_span(collector: Collector) -> None:
    """Its ids are derived from object and run; those of other spans are unique."""
    tracing = Tracing()
    looks = 0

    async def reconcile(key: Key) -> None:
        nonlocal looks
        looks += 1
        record_reconcile(tracing, begins=looks == 1)

    await reconciled_times(tracing, reconcile, times=2)
    (run,) = collector.named("run")
    assert (run.trace, run.id, run.parent) == (f"{RUN.trace:032x}", f"{RUN.span:016x}", "")
    assert {span.parent for span in collector.named("reconcile")} == {run.id}
    assert len({span.id for span in collector.spans}) == len(collector.spans) == 5


async def test_two_operators_continue_one_trace(collector: Collector) -> None:
    """The second process has no state of the first."""
    for _ in range(2):
        tracing = Tracing()

        async def reconcile(key: Key, tracing: Tracing = tracing) -> None:
            record_reconcile(tracing)

        await reconciled_times(tracing, reconcile)
    assert {span.trace for span in collector.named("reconcile")} == {f"{RUN.trace:032x}"}
    assert len(collector.named("reconcile")) == 2


async def test_a_failed_reconcile_is_a_failed_span_and_an_idle_one_is_not_exported(collector: Collector) -> None:
    """A reconcile without requests is noise."""
    tracing = Tracing()
    looks = 0

    async def reconcile(key: Key) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            record_reconcile(tracing, code=503)
            raise UnavailableError("away")

    await reconciled_times(tracing, reconcile, times=2)
    (span,) = collector.named("reconcile")
    assert span.failed
    assert span.attributes["tunemill.result"] == "error"


async def test_an_unavailable_collector_is_logged_once_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Shutdown does not wait for it for long."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = Tracing()

    async def reconcile(key: Key) -> None:
        record_reconcile(tracing)

    started = time.monotonic()
    with caplog.at_level("INFO"):
        await reconciled_times(tracing, reconcile, times=3)
    assert time.monotonic() - started < 8
    assert [record.message for record in caplog.records if "traces cannot be exported" in record.message]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_opentelemetry_is_imported_only_if_enabled() -> None:
    """It costs memory and startup time."""
    script = "import sys, tunemill_operator.app; print([name for name in sys.modules if 'opentelemetry' in name])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_traceparent_round_trips() -> None:
    """Other text is ignored."""
    assert SpanRef.parse(RUN.traceparent) == RUN
    assert SpanRef.parse("") is None
    assert SpanRef.of_run("uid-1", "run2").trace != RUN.trace
