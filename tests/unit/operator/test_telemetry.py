"""Logs, metrics and health endpoints of the operator."""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import generate_latest
from property.simulator import World
from property.worlds import a_world_at
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_operator.runtime.reconciliation import Reconciliation, Request, current
from tunemill_operator.telemetry import health, logs, reference
from tunemill_operator.telemetry.metrics import Metrics


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Restore the logging configuration of the test process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_a_json_log_line_has_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    """And its run, stage and reconcile, for filtering."""
    logs.configure("json", "info")
    token = current.set(Reconciliation(("team-a", "support"), id="r1", run="00c0ffee", stage="train"))
    try:
        logging.getLogger("x").warning("it says %s", "déjà vu")
        try:
            raise ValueError("boom")
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        current.reset(token)
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["message"], first["finetune"]) == ("warning", "it says déjà vu", "team-a/support")
    assert (first["run"], first["stage"], first["reconcileID"]) == ("00c0ffee", "train", "r1")
    assert "ValueError: boom" in second["exception"]
    assert second["reconcileID"] == "r1"


@pytest.mark.usefixtures("restored_logging")
def test_a_text_log_line_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, level, object, message."""
    logs.configure("text", "info")
    logging.getLogger("x").info("created Job")
    logging.getLogger("x").debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("info    created Job")


def test_objects_are_counted_by_phase_and_failures_by_reason() -> None:
    """All phases at every scrape; a failure once, however often its status is written."""
    metrics = Metrics("1.2.3", "api:6443")
    world = World()
    metrics.observe_phases(lambda: [world.status.phase or ""])
    before = world.status
    world.settle()
    world.start(world.live_pods()[0])
    world.fail(world.live_pods()[0], Reason.DATASET_EMPTY)
    world.settle()
    metrics.status_written(before, world.status)
    metrics.status_written(world.status, world.status)
    page = generate_latest(metrics.registry).decode()
    assert 'tunemill_finetunes{phase="Failed"} 1.0' in page
    assert 'tunemill_finetunes{phase="Succeeded"} 0.0' in page
    assert 'tunemill_failures_total{actor="User",reason="DatasetEmpty",stage="prepare"} 1.0' in page
    assert 'tunemill_stage_attempts_total{stage="prepare"} 1.0' in page
    assert 'tunemill_run_duration_seconds_count{result="Failed"} 1.0' in page
    assert 'tunemill_operator_build_info{version="1.2.3"} 1.0' in page


def test_gpu_time_and_interrupted_pods_are_counted() -> None:
    """Once each, however often the status is written."""
    metrics = Metrics("1", "api:6443")
    world = a_world_at(Stage.TRAIN, compute={"gpus": 2})
    start = world.status
    world.seconds += 300
    world.drain(world.live_pods()[0])
    world.settle()
    drained = world.status
    for before, after in ((start, drained), (drained, drained)):
        metrics.status_written(before, after)
    page = generate_latest(metrics.registry).decode()
    assert f"tunemill_gpu_seconds_total {drained.run.gpu_seconds - start.run.gpu_seconds:.1f}" in page
    assert drained.run.gpu_seconds >= 600
    assert 'tunemill_pods_cut_short_total{stage="train",why="Preempted"} 1.0' in page


def test_metrics_have_the_usual_names_of_controllers() -> None:
    """Of client-go and controller-runtime."""
    metrics = Metrics("1", "api:6443")
    metrics.queue.observe(lambda: 3, lambda: [0.5, 2.0], 16)
    metrics.queue.added()
    metrics.queue.taken(0.1)
    metrics.queue.finished(0.1)
    metrics.queue.retried()
    metrics.reconciled("error", 0.1)
    metrics.requested(Request("GET", "/api", 0, 0.0, 0.1))
    metrics.leading("lease", leads=True)
    page = generate_latest(metrics.registry).decode()
    for line in (
        'workqueue_depth{name="functioncallfinetune"} 3.0',
        'workqueue_adds_total{name="functioncallfinetune"} 1.0',
        'workqueue_retries_total{name="functioncallfinetune"} 1.0',
        'workqueue_unfinished_work_seconds{name="functioncallfinetune"} 2.5',
        'controller_runtime_active_workers{controller="functioncallfinetune"} 2.0',
        'controller_runtime_max_concurrent_reconciles{controller="functioncallfinetune"} 16.0',
        'workqueue_longest_running_processor_seconds{name="functioncallfinetune"} 2.0',
        'controller_runtime_reconcile_total{controller="functioncallfinetune",result="error"} 1.0',
        'controller_runtime_reconcile_errors_total{controller="functioncallfinetune"} 1.0',
        'rest_client_requests_total{code="<error>",host="api:6443",method="GET"} 1.0',
        'rest_client_request_duration_seconds_count{host="api:6443",verb="GET"} 1.0',
        'leader_election_master_status{name="lease"} 1.0',
    ):
        assert line in page


def test_the_reference_page_of_the_metrics_is_up_to_date() -> None:
    """It is generated from the metrics, with their labels."""
    page = Path(__file__).parents[3] / reference.PAGE
    assert page.read_text() == reference.metrics_page(), "run `make generate`"
    assert "| `tunemill_failures_total` | counter | `stage`, `reason`, `actor` |" in reference.metrics_page()


async def test_a_failed_health_check_returns_the_reason() -> None:
    """In the body of the probe's response."""
    problem = {"unhealthy": "", "not_ready": "the caches are not filled yet"}
    app = health.application(
        Metrics("1", "api:6443").registry, lambda: problem["unhealthy"], lambda: problem["not_ready"]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        assert await _fetch(port, "/healthz") == (200, "ok")
        assert await _fetch(port, "/readyz") == (500, "the caches are not filled yet")
        status, page = await _fetch(port, "/metrics")
        assert status == 200
        assert "tunemill_operator_build_info" in page
    finally:
        await runner.cleanup()


async def _fetch(port: int, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)
