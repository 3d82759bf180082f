"""OpenTelemetry spans of a stage and its longer steps, as children of the run's span. No-op without an endpoint."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.traces import ENV_TRACEPARENT, SpanRef, endpoints

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

_tracer: "Tracer | None" = None
"""The tracer of this process while its stage runs. Global, so that steps anywhere in the code can use it."""


@contextlib.contextmanager
def stage(stage: Stage, run: RunSpec) -> Iterator[None]:
    """Create the span of a stage around the block, and export all spans at its end."""
    global _tracer  # noqa: PLW0603 - see there
    if not endpoints(os.environ):
        yield
        return
    from tunemill_api.span_export import below, open_provider

    try:
        provider = open_provider("tunemill-trainer", "tunemill")
    except ValueError as error:
        _log.warning("tracing is disabled: an OTEL_… environment variable is invalid: %s", error)
        yield
        return
    parent = SpanRef.parse(os.environ.get(ENV_TRACEPARENT, ""))
    attributes = {
        "k8s.namespace.name": run.namespace,
        "tunemill.finetune": run.name,
        "tunemill.run.id": run.run_id,
        "tunemill.stage": stage.value,
    }
    _tracer = provider.get_tracer("tunemill-trainer")
    try:
        with _tracer.start_as_current_span(
            stage.value, context=below(parent) if parent else None, attributes=attributes, record_exception=False
        ):
            yield
    finally:
        _tracer = None
        provider.shutdown()


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Create a span for a step of the stage, around a block or as a decorator around a function."""
    if _tracer is None:
        yield
        return
    # Without the exception: the stage's report has the failure.
    with _tracer.start_as_current_span(name, record_exception=False):
        yield
